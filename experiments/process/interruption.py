"""What signals do: the first ends the run in order, the second ends it at once.

A handler only notes the signal, since what it raised could fall into a callback of JAX, which
swallows it. ``check`` and ``call`` look at the note and raise KeyboardInterrupt, which
experiments catch. As compiled code looks at nothing, ``call`` runs what takes long in a thread of
its own and leaves it behind: a machine that is taken away gives less notice than a segment
takes. Before a run has begun there is nothing to be kept, so that the first signal ends all.
"""

import contextlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

Made = TypeVar("Made")

# A terminal that is closed sends SIGHUP, perhaps twice: by the system and by the shell.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
POLL = 0.05  # seconds between looks at the note


class _Process:
    """The state of this process: signals are a process's, not a run's."""

    handled = False
    caught: int | None = None  # the first signal
    told = False  # whether it was raised
    shields = 0
    worker: threading.Thread | None = None
    outcome: tuple[list[Any], list[BaseException]] = ([], [])  # of the worker
    status: int | None = None  # with which it is about to end


def watch() -> None:
    """From here on signals end the process in a line, until ``handled``."""
    _install()


def _install() -> dict[signal.Signals, Any]:
    """Takes over the signals; those that are ignored, as nohup and shells arrange it, stay so."""
    before = {n: signal.getsignal(n) for n in SIGNALS if signal.getsignal(n) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, _handle)
    return before


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Within it signals are handled as above; without effect outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _Process.caught, _Process.told, _Process.handled = None, False, True
    before = _install()
    try:
        yield
    finally:
        _Process.handled = False
        for number, handler in before.items():
            signal.signal(number, handler)


def _handle(number: int, _: object) -> None:
    if not _Process.handled:
        _end(number)
    elif _Process.caught is None:
        _Process.caught = number
    elif number != signal.SIGHUP:
        os._exit(128 + number)


def _end(number: int) -> None:
    """Ends the process at once: before its run, or after it, with the status that it has."""
    if _Process.status is None:
        with contextlib.suppress(OSError):
            os.write(2, b"interrupted\n")
    os._exit(128 + number if _Process.status is None else _Process.status)


def check() -> None:
    """Raises KeyboardInterrupt if a signal was noted, once."""
    if _Process.caught is not None and not _Process.told and not _Process.shields:
        _Process.told = True
        raise KeyboardInterrupt


def caught() -> int | None:
    """The signal that was noted."""
    return _Process.caught


def note(number: int) -> None:
    """Notes a signal that another process of the run has caught."""
    if _Process.handled and _Process.caught is None:
        _Process.caught = number


@contextlib.contextmanager
def shielded() -> Iterator[None]:
    """Within it a first signal waits, for the next ``check`` or ``call``."""
    _Process.shields += 1
    try:
        yield
    finally:
        _Process.shields -= 1


def call(
    function: Callable[[], Made], seconds: float | None = None, *, begin: bool = False
) -> Made:
    """The result of a function that takes long; a signal ends the wait for it, and is raised.

    Args:
      function: what to call.
      seconds: how long to wait for it where signals are handled; None is without end.
      begin: whether it begins even if a signal was caught before, as others count on it.

    Raises:
      TimeoutError: if it has not come to its end by then; it is left behind.
    """
    if not begin:
        check()
    if not _Process.handled or threading.current_thread() is not threading.main_thread():
        return function()
    made: list[Made] = []
    failed: list[BaseException] = []
    _Process.outcome = (made, failed)

    def work() -> None:
        try:
            made.append(function())
        except BaseException as error:
            failed.append(error)

    worker = _Process.worker = threading.Thread(target=work, daemon=True)
    worker.start()
    end = math.inf if seconds is None else time.monotonic() + seconds
    while worker.is_alive():
        worker.join(POLL)
        if worker.is_alive():
            check()
            if time.monotonic() > end:
                raise TimeoutError(f"not done after {seconds:.0f} seconds")
    return rest()


def rest() -> Any:
    """The result of the last ``call``, to the end of which it waits after all."""
    assert _Process.worker is not None
    _Process.worker.join()
    made, failed = _Process.outcome
    if failed:
        raise failed[0]
    return made[0]


def exit_status(status: int) -> int:
    """What shells report of the signal that was caught, in place of that of an interrupt."""
    interrupted = status == 128 + signal.SIGINT and _Process.caught is not None
    return 128 + _Process.caught if interrupted and _Process.caught else status


def leave(status: int, *, at_once: bool = False) -> int:
    """The status; ends the process at once if something that was left behind still computes.

    Python would take the ground from under it.

    Args:
      status: with which the process ends.
      at_once: whether to end it so in any case.
    """
    _Process.status = status
    if at_once or (_Process.worker is not None and _Process.worker.is_alive()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status
