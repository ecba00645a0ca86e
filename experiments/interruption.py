"""What SIGINT and SIGTERM do: the first ends the run in order, the second ends it at once.

A signal raises KeyboardInterrupt, which experiments catch. Two things it does not break into:
what is ``shielded``, such as the writing of a file, and compiled code. So ``call`` runs what
takes long in a thread of its own and leaves it behind: a machine that is taken away gives
less notice than a segment takes.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TypeVar

Made = TypeVar("Made")

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Process:
    """The state of this process: signals are a process's, not a run's."""

    handled = False
    caught: int | None = None  # the first signal
    told = False  # whether it was raised
    shields = 0
    worker: threading.Thread | None = None


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Within it signals are handled as above; without effect outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # One that is ignored, as nohup and shells arrange it, stays so.
    before = {n: signal.getsignal(n) for n in SIGNALS if signal.getsignal(n) != signal.SIG_IGN}
    _Process.caught, _Process.told, _Process.handled = None, False, True
    for number in before:
        signal.signal(number, _handle)
    try:
        yield
    finally:
        _Process.handled = False
        for number, handler in before.items():
            signal.signal(number, handler)


def _handle(number: int, _: object) -> None:
    if _Process.caught is not None:
        os._exit(128 + number)
    _Process.caught = number
    if not _Process.shields:
        _tell()


def _tell() -> None:
    if _Process.caught is not None and not _Process.told:
        _Process.told = True
        raise KeyboardInterrupt


@contextlib.contextmanager
def shielded() -> Iterator[None]:
    """Within it a first signal waits, for the next ``call``."""
    _Process.shields += 1
    try:
        yield
    finally:
        _Process.shields -= 1


def call(function: Callable[[], Made]) -> Made:
    """The result of a function that takes long; a signal ends the wait for it, and is raised."""
    _tell()
    if not _Process.handled or threading.current_thread() is not threading.main_thread():
        return function()
    future: Future[Made] = Future()

    def work() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    _Process.worker = threading.Thread(target=work, daemon=True)
    _Process.worker.start()
    return future.result()


def exit_status(status: int) -> int:
    """What shells report of the signal that was caught, in place of that of an interrupt."""
    interrupted = status == 128 + signal.SIGINT and _Process.caught is not None
    return 128 + _Process.caught if interrupted and _Process.caught else status


def leave(status: int) -> int:
    """The status; ends the process at once if something that was left behind still computes.

    Python would take the ground from under it.
    """
    if _Process.told and _Process.worker is not None and _Process.worker.is_alive():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status
