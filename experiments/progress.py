"""Progress of what takes long, with an estimate of the time left, on standard error.

At a terminal it is a bar. Elsewhere, as in the log of a batch job, it is a line at each tenth, and
in between after one, two, four, ... minutes without one. Until something is computed both say that
it is being compiled.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TextIO, TypeVar

import jax
import numpy as np
from tqdm import tqdm

import gf_jax
from experiments import devices, interruption
from gf_jax.flow_problem import Progress
from gf_jax.placement import Memory
from gf_jax.schedule import Schedule
from gf_jax.segments import Trajectory
from gf_jax.tracing import Loss

SHAPE = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
TICK = 1.0  # seconds after which a bar is drawn again, as its clock goes on
SILENCE = 60.0  # seconds after which a line is written though no tenth is done, doubled each time

Solution = TypeVar("Solution")


def segments(
    f: Loss,
    params: Any,
    schedule: Schedule,
    arithmetic: str,
    label: str = "descent",
    resume_from: tuple[int, Sequence[np.ndarray]] | None = None,
    check_memory: Callable[[Memory], None] = lambda needed: None,
    **options: Any,
) -> Iterator[tuple[Trajectory, list[jax.Array]]]:
    """Segments of descent and states, see ``gf_jax.resumable_segments``, with their progress."""
    options |= {"arithmetic": arithmetic, "resume_from": resume_from}
    done = resume_from[0] / schedule.iterations if resume_from else 0.0
    with _shown(label) as tell:

        def compiled(needed: Memory) -> None:
            check_memory(needed)
            tell(done)

        options["check_memory"] = compiled
        computed = gf_jax.resumable_segments(f, params, schedule, **options)
        while (segment := interruption.call(lambda: next(computed, None))) is not None:
            tell(int(segment[0].iterations[-1]) / schedule.iterations)
            yield segment


def solve(label: str, solver: Callable[[Progress], Solution]) -> Solution:
    """Calls a solver, which tells the share that is done, and shows its progress."""
    with _shown(label) as tell:
        solution = interruption.call(lambda: solver(lambda share: tell(float(share))))
        tell(1.0)
    return solution


class _Display(Protocol):
    """Where progress is shown, from a label and the share that is done."""

    def tell(self, share: float) -> None:
        """Shows the share that is done; the first that is told means that all is compiled."""

    def tick(self) -> None:
        """Shows that time goes on; called every ``TICK`` seconds."""

    def close(self) -> None:
        """Ends it; what is told later is not shown."""


@contextlib.contextmanager
def _shown(label: str) -> Iterator[Progress]:
    """Shows the progress of what is done within, which is told by the function that it gives."""
    if not devices.leads() or sys.stderr is None:
        yield lambda share: None
        return
    display: _Display = _Bar(label) if _is_terminal(sys.stderr) else _Lines(label)
    over = threading.Event()

    def tick() -> None:
        while not over.wait(TICK):
            display.tick()

    clock = threading.Thread(target=tick, daemon=True)
    clock.start()
    try:
        yield display.tell
    finally:
        over.set()
        clock.join()
        display.close()


def _is_terminal(stream: TextIO) -> bool:
    """Whether it is a terminal with room for a bar; some that record a session have no width."""
    try:
        return os.get_terminal_size(stream.fileno()).columns > 0
    except (OSError, ValueError):
        return False


class _Bar:
    """A bar as wide as the terminal."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._bar = tqdm(
            total=1.0, desc=f"{label}, compiling", bar_format=SHAPE, dynamic_ncols=True
        )

    def tell(self, share: float) -> None:
        self._bar.set_description_str(self._label, refresh=False)
        self._bar.update(max(0.0, share - self._bar.n))

    def tick(self) -> None:
        self._bar.refresh()

    def close(self) -> None:
        self._bar.close()


class _Lines:
    """Lines with label, percentage, and the time that has passed and that is left."""

    def __init__(self, label: str) -> None:
        self._label, self._share = label, 0.0
        self._begun = self._said = time.monotonic()
        self._first: tuple[float, float] | None = None  # that was told: when, and what
        self._silence, self._lock, self._closed = SILENCE, threading.Lock(), False
        self._say("compiling")

    def tell(self, share: float) -> None:
        with self._lock:
            before, self._share = self._share, max(self._share, share)
            self._first = self._first or (time.monotonic(), self._share)
            if _whole(10 * self._share) > _whole(10 * before):
                self._say(self._state())

    def tick(self) -> None:
        with self._lock:
            if time.monotonic() - self._said >= self._silence:
                self._silence *= 2
                self._say(self._state())

    def close(self) -> None:
        with self._lock:
            self._closed = True

    def _state(self) -> str:
        now = time.monotonic()
        elapsed = f"{tqdm.format_interval(now - self._begun)} elapsed"
        if self._first is None:
            return f"compiling, {elapsed}"
        text = f"{_whole(100 * self._share)}%, {elapsed}"
        since, first = self._first
        if not first < self._share < 1:
            return text
        left = (now - since) * (1 - self._share) / (self._share - first)
        return f"{text}, about {tqdm.format_interval(left)} left"

    def _say(self, text: str) -> None:
        self._said = time.monotonic()
        if not self._closed:
            with contextlib.suppress(OSError, ValueError):  # of a log that takes no more
                print(f"{self._label}: {text}", file=sys.stderr, flush=True)


def _whole(parts: float) -> int:
    """How many of them are done, but for rounding."""
    return int(parts + 1e-9)
