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
from typing import Any, TextIO, TypeVar

import jax
import numpy as np
from tqdm import tqdm

import gf_jax
from experiments.process import interruption
from experiments.runs import devices
from gf_jax.descent.placement import Memory
from gf_jax.descent.schedule import Schedule
from gf_jax.descent.segments import Trajectory
from gf_jax.flow.problem import Progress
from gf_jax.program.program import Loss

SHAPE = "{desc} |{bar}| {unit}"  # a label with its share, and what is to be said of the time
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


@contextlib.contextmanager
def _shown(label: str) -> Iterator[Progress]:
    """Shows the progress of what is done within, which is told by the function that it gives."""
    if not devices.leads() or sys.stderr is None:
        yield lambda share: None
        return
    display = (_Bar if _has_room(sys.stderr) else _Lines)(label)
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


def _has_room(stream: TextIO) -> bool:
    """Whether it is a terminal of some size; those that record a session may have none."""
    try:
        return min(os.get_terminal_size(stream.fileno())) > 0
    except (OSError, ValueError):
        return False


class _Display:
    """What is shown of one task.

    Args:
      label: what it is called.
    """

    def __init__(self, label: str) -> None:
        self.label, self.share, self.open = label, 0.0, True
        self.begun = time.monotonic()
        self.first: tuple[float, float] | None = None  # that was told: when, and what
        self.lock = threading.RLock()

    def tell(self, share: float) -> None:
        """Takes the share that is done; the first that is told means that all is compiled."""
        with self.lock:
            before, self.share = self.share, max(self.share, share)
            self.first = self.first or (time.monotonic(), self.share)
            if self.open:
                self.show(before)

    def tick(self) -> None:
        """Is called every ``TICK`` seconds, told or not."""

    def close(self) -> None:
        """Ends it; what is told later is not shown."""
        with self.lock:
            self.open = False

    def show(self, before: float) -> None:
        """Shows that more is done than before."""

    def state(self) -> str:
        """How much is done, for a start."""
        return "compiling" if self.first is None else f"{_whole(100 * self.share)}%"

    def times(self) -> str:
        """What has passed, and what is left if that can be told; compiling is no measure of it."""
        now = time.monotonic()
        elapsed = f"{tqdm.format_interval(now - self.begun)} elapsed"
        since, first = self.first or (now, 1.0)
        if not first < self.share < 1:
            return elapsed
        left = (now - since) * (1 - self.share) / (self.share - first)
        return f"{elapsed}, about {tqdm.format_interval(left)} left"


class _Bar(_Display):
    """A bar as wide as the terminal, with a clock that goes on."""

    def __init__(self, label: str) -> None:
        super().__init__(label)
        # With a delay, be it none, the first that is drawn is that of tick.
        self._bar = tqdm(total=1.0, bar_format=SHAPE, dynamic_ncols=True, delay=1e-9)
        self.tick()

    def show(self, before: float) -> None:
        self._bar.set_description_str(f"{self.label}: {self.state()}", refresh=False)
        self._bar.n, self._bar.unit = self.share, self.times()
        self._bar.refresh()

    def tick(self) -> None:
        with self.lock:
            self.show(self.share)

    def close(self) -> None:
        super().close()
        self._bar.close()


class _Lines(_Display):
    """Lines of a file."""

    def __init__(self, label: str) -> None:
        super().__init__(label)
        self._said, self._silence = self.begun, SILENCE
        self._say(self.state())

    def show(self, before: float) -> None:
        if _whole(10 * self.share) > _whole(10 * before):
            self._say(f"{self.state()}, {self.times()}")

    def tick(self) -> None:
        with self.lock:
            if time.monotonic() - self._said >= self._silence:
                self._silence *= 2
                self._say(f"{self.state()}, {self.times()}")

    def _say(self, text: str) -> None:
        self._said = time.monotonic()
        with contextlib.suppress(OSError, ValueError):  # of a file that takes no more
            print(f"{self.label}: {text}", file=sys.stderr, flush=True)


def _whole(parts: float) -> int:
    """How many of them are done, but for rounding."""
    return int(parts + 1e-9)
