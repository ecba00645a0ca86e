"""Progress of what takes long, with an estimate of the time left, on standard error.

At a terminal it is a bar. Elsewhere, as in the log of a batch job, it is a line at each tenth, and
in between after one, two, four, ... minutes without one. Until something is computed both say that
it is being compiled. Where there is no bar, what is solved in seconds is told when it is solved, so
that programs need not call back, and JAX's compilation cache keeps them.
"""

import contextlib
import datetime
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO, TypeVar

import jax
import numpy as np
from rich.console import Console
from rich.live_render import LiveRender
from rich.progress_bar import ProgressBar
from rich.table import Table

import gf_jax
from experiments.process import interruption, peers
from gf_jax.descent.placement import Memory
from gf_jax.descent.schedule import Schedule
from gf_jax.descent.segments import Trajectory
from gf_jax.flow.problem import BetweenSolves, Progress
from gf_jax.program.program import Loss

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
        begun = resume_from[0] if resume_from else 0
        for segment in _in_step(computed, begun, schedule.iterations):
            tell(int(segment[0].iterations[-1]) / schedule.iterations)
            yield segment


def _in_step(
    computed: Iterator[tuple[Trajectory, list[jax.Array]]], done: int, iterations: int
) -> Iterator[tuple[Trajectory, list[jax.Array]]]:
    """Segments as they are computed; several processes stop after the same one.

    A process that was interrupted in one that another has waits for it, which takes no longer.

    Raises:
      KeyboardInterrupt: if this process is interrupted, or another.
    """
    while done < iterations:
        try:
            # Others may be in it already, and their devices wait for this process's part.
            segment = interruption.call(lambda: next(computed), begin=peers.several())
            stop = False
        except KeyboardInterrupt:
            if peers.common_end(done, stop=True)[0] == done:
                raise
            segment, stop = interruption.rest(), True
        except Exception:
            peers.await_news()
            raise
        else:
            done = int(segment[0].iterations[-1])
            stop = peers.common_end(done, stop=False)[1]
        yield segment
        if stop:
            raise KeyboardInterrupt


def solve(label: str, solver: Callable[[Progress], Solution]) -> Solution:
    """Calls a solver, which tells the share that is done, and shows its progress."""
    with _shown(label) as tell:
        solution = interruption.call(lambda: solver(tell))
        tell(1.0)
    return solution


@contextlib.contextmanager
def _shown(label: str) -> Iterator[Progress]:
    """Shows the progress of what is done within, which is told by the function that it gives."""
    if not peers.leads() or sys.stderr is None:
        yield BetweenSolves(lambda share: None)
        return
    display = (_Bar if _is_terminal(sys.stderr) else _Lines)(label)
    over = threading.Event()

    def tick() -> None:
        while not over.wait(TICK):
            display.tick()

    clock = threading.Thread(target=tick, daemon=True)
    clock.start()
    try:
        yield display.tell if isinstance(display, _Bar) else BetweenSolves(display.tell)
    finally:
        over.set()
        clock.join()
        display.close()


def _is_terminal(stream: TextIO) -> bool:
    """Whether a bar can be redrawn there: those that record a session may have no size."""
    try:
        room = min(os.get_terminal_size(stream.fileno())) > 0
        return room and os.environ.get("TERM") not in ("dumb", "unknown")
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

    def tell(self, share: Any) -> None:
        """Takes the share that is done; the first that is told means that all is compiled."""
        with self.lock:
            before, self.share = self.share, max(self.share, float(share))
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
        elapsed = f"{_clock(now - self.begun)} elapsed"
        since, first = self.first or (now, 1.0)
        if not first < self.share < 1:
            return elapsed
        left = (now - since) * (1 - self.share) / (self.share - first)
        return f"{elapsed}, about {_clock(left)} left"


class _Bar(_Display):
    """A bar as wide as the terminal, with a clock that goes on."""

    def __init__(self, label: str) -> None:
        super().__init__(label)
        self._stream = sys.stderr
        self._console = Console(file=self._stream, highlight=False, markup=False)
        self._drawn = LiveRender("")  # rich's Live hides the cursor, also from those who kill it
        self.tick()

    def show(self, before: float) -> None:
        line, done = Table.grid(expand=True, padding=(0, 1)), f"{self.label}: {self.state()}"
        line.add_column(no_wrap=True, min_width=len(done))  # of what has no room the first to stay
        line.add_column(ratio=1)
        line.add_column(no_wrap=True)
        bar = ProgressBar(total=1.0, completed=self.share)
        line.add_row(done, bar, self.times())
        self._drawn.set_renderable(line)
        with contextlib.suppress(OSError, ValueError):  # of a terminal that was closed
            self._console.width = os.get_terminal_size(self._stream.fileno()).columns
            self._console.control(self._drawn.position_cursor())
            self._console.print(self._drawn, end="")

    def tick(self) -> None:
        with self.lock:
            self.show(self.share)

    def close(self) -> None:
        super().close()
        with contextlib.suppress(OSError, ValueError):
            self._console.line()


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


def _clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    return str(datetime.timedelta(seconds=int(seconds)))


def _whole(parts: float) -> int:
    """How many of them are done, but for rounding."""
    return int(parts + 1e-9)
