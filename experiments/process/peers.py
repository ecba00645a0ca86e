"""The processes of a run on several hosts: what they tell each other, besides arrays.

They meet at the service by which JAX connects them, so that no further port is needed. Twice a
second each says there that it lives, and looks at what the others say:

* A signal that one has caught is taken for caught by all.
* One that has said nothing for ``SILENCE`` seconds, or that has ended while others compute, is
  lost, and the others end in a line, as what they compute together can have no end.

Nothing here is a computation of JAX's, so that nothing waits for one.
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from experiments.process import interruption
from experiments.process.aborts import Aborts
from experiments.process.mistakes import EXIT_LOST, UsageError

BEAT = 0.5  # seconds
SILENCE = 30.0  # seconds: machines that are moved to others stand still for some
PARTING = 10.0  # seconds that the first process, at whose service all meet, waits for the others
NOW, SAID = "gf_jax/now", "gf_jax/said"

Made = TypeVar("Made")


class _Peers:
    """The state of this process."""

    client: Any = None
    index, count = 0, 1
    said = 0  # how often something was exchanged
    parting = False  # whether the ends of others are no news
    alone = False  # whether what this process does needs no other
    resumed_by = ""  # how the run goes on, in words
    aborts: Aborts | None = None


def leads() -> bool:
    """Whether this process writes and prints."""
    return _Peers.index == 0


def several() -> bool:
    """Whether there are other processes."""
    return _Peers.count > 1


def index() -> int:
    """The number of this process."""
    return _Peers.index


def count() -> int:
    """How many processes there are."""
    return _Peers.count


def meet(client: Any, index: int, count: int) -> None:
    """Begins to watch the others.

    Args:
      client: of JAX's service.
      index: of this process.
      count: of all of them.
    """
    _Peers.client, _Peers.index, _Peers.count = client, index, count
    sys.excepthook = _fail
    if not leads():
        _Peers.aborts = Aborts(lambda: None if _Peers.parting else _lost_text(0), EXIT_LOST)
    threading.Thread(target=_watch, daemon=True).start()


def resumed_by(command: str) -> None:
    """Notes how the run goes on, to be told where it is lost."""
    _Peers.resumed_by = from_first(command)


def alone() -> None:
    """From here on this process needs no other."""
    _Peers.alone = True


def exchange(text: str, *, interruptible: bool = True) -> list[str]:
    """What every process says, when all have said it; all must ask the same times.

    Args:
      text: what this one says.
      interruptible: whether a signal ends the wait, as it then does for all.
    """
    if not several():
        return [text]
    number, client = _Peers.said, _Peers.client
    _Peers.said += 1
    client.key_value_set(f"{SAID}/{number}/{_Peers.index}", f"={text}")
    if number > 1:  # which all have heard, or they would not have said what came after it
        client.key_value_delete(f"{SAID}/{number - 2}/{_Peers.index}")
    keys = [f"{SAID}/{number}/{process}" for process in range(_Peers.count)]
    return [_hear(key, interruptible)[1:] for key in keys]


def _hear(key: str, interruptible: bool) -> str:
    while True:
        try:
            return _Peers.client.blocking_key_value_get(key, int(1000 * BEAT))
        except Exception as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                await_news()
                raise
        if interruptible:
            interruption.check()


def agreed(make: Callable[[], Made]) -> Made:
    """What is made on every process; a mistake on any ends them all, so that none waits."""
    made, mistake = None, None
    try:
        made = make()
    except UsageError as error:
        mistake = error
    if any(exchange("" if mistake is None else "mistake")):
        _Peers.parting = True
        raise mistake or UsageError("another process of this run reports a mistake")
    return made  # type: ignore[return-value]


def from_first(text: str) -> str:
    """What the first process says."""
    return exchange(text)[0]


def common_end(done: int, *, stop: bool) -> tuple[int, bool]:
    """What all have done of a run at the end of a segment, and whether it stops there.

    A process says so once for every segment: when it is done, or when a signal has ended the wait
    for it. If one has it, all others will have it too.

    Args:
      done: base iterations.
      stop: whether this process is interrupted.
    """
    said = [each.split() for each in exchange(f"{done} {stop}", interruptible=False)]
    return max(int(done) for done, _ in said), any(stop == "True" for _, stop in said)


def wait_for_first() -> int:
    """Waits until the first process has ended; its exit status."""
    while True:
        time.sleep(BEAT)
        status = _now().get("left/0")
        if status is not None:
            return int(status)


def await_news() -> None:
    """After a failure: waits as long as it takes to know of a lost process, which ends this."""
    if several():
        time.sleep(SILENCE + 4 * BEAT)


def farewell(status: int) -> None:
    """Tells the others that this process ends; the first waits until they know."""
    if not several():
        return
    _Peers.parting, end = True, time.monotonic() + PARTING
    if _Peers.aborts is not None:
        _Peers.aborts.status = status
    try:
        _tell_signal()  # before the end, or that would be taken for a loss
        _Peers.client.key_value_set(f"{NOW}/left/{_Peers.index}", str(status), True)
        everyone = {f"left/{process}" for process in range(_Peers.count)}
        while leads() and time.monotonic() < end and not everyone <= set(_now()):
            time.sleep(BEAT / 5)
    except Exception:  # the service is gone, and with it all others
        return


def _tell_signal() -> None:
    caught = interruption.caught()
    if caught is not None:
        _Peers.client.key_value_set(f"{NOW}/stop", str(caught), True)


def _now() -> dict[str, str]:
    entries = _Peers.client.key_value_dir_get(NOW)
    return {key.removeprefix(f"{NOW}/"): value for key, value in entries}


def _watch() -> None:
    """Says twice a second that this process lives, and looks at what others say."""
    heard = {process: ("", time.monotonic()) for process in range(_Peers.count)}
    while True:
        time.sleep(BEAT)
        try:
            mine = f"{NOW}/lives/{_Peers.index}"
            _Peers.client.key_value_set(mine, str(time.monotonic()), True)
            _tell_signal()
            now = _now()
        except Exception:
            _end(0)
            return
        if "stop" in now:
            interruption.note(int(now["stop"]))
        for process, (word, since) in heard.items():
            if now.get(f"lives/{process}") != word:
                heard[process] = (now.get(f"lives/{process}", ""), time.monotonic())
            elif time.monotonic() - since > SILENCE:
                _end(process)
            if f"left/{process}" in now and interruption.caught() is None and process:
                _end(process)


def _end(process: int) -> None:
    """Ends this process, since another is lost whom it needs."""
    if _Peers.parting or _Peers.alone or process == _Peers.index:
        return
    sys.stdout.flush()
    print(_lost_text(process), file=sys.stderr, flush=True)
    os._exit(EXIT_LOST)


def _lost_text(process: int) -> str:
    fix = _Peers.resumed_by or "start it anew"
    return f"error: process {process} of this run is lost, and all others end; {fix}"


def _fail(kind: Any, error: Any, trace: Any) -> None:
    """Ends a process that fails; the others learn of it."""
    sys.__excepthook__(kind, error, trace)
    farewell(1)
    os._exit(1)
