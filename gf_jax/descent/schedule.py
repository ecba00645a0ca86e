"""Which steps descent takes from its starting point, and what is kept of them."""

import dataclasses
import itertools
import math
import numbers
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import ArrayLike, Float, Int

MOST_SEGMENTS = 100  # of the default: a progress bar needs no finer steps
MOST_ITERATIONS = 100_000_000  # every one is recorded
MOST_STEPS = 2**31 - 1  # of a lane per base iteration: what a compiled loop counts


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Clock:
    """How much time the iterations of a run are.

    Attributes:
      step_size: step size of the base run.
      lanes: ratios of the lanes, ascending from 1.
      time_scale: time per iteration over the step size: 1 of plain descent, 1/(1 − β) of
        momentum.
    """

    step_size: float
    lanes: tuple[int, ...]
    time_scale: float = 1.0

    def times(self, iterations: Int[ArrayLike, "..."] | Sequence[int]) -> Float[np.ndarray, "..."]:
        """Times of base iterations: iterations * step_size * time_scale."""
        return np.asarray(iterations) * self.step_size * self.time_scale

    @property
    def step_sizes(self) -> Float[np.ndarray, " lanes"]:
        """Step size of every lane, the largest first."""
        return self.step_size / np.array(self.lanes)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Which steps are taken, and what is kept of them.

    Attributes:
      step_size: step size of the base run.
      ratios: positive integers up to 2^31 - 1; each adds a run with step size
        step_size/ratio. Ratio 1 names the base run, which is always there.
      iterations: iterations of the base run, up to 100,000,000.
      snapshots: number of evenly spaced base iterations at which the parameters
        are kept, the last of them the final one: iteration floor(j K / P) for
        j = 1 ... P. None is 100, or every iteration if there are fewer. A tuple
        names the iterations themselves, ascending from 1 on.
      segments: number of equal parts into which the run is cut, each one call of
        the same compiled function; a divisor of ``iterations``. None is the
        largest divisor up to 100.

    Raises:
      ValueError: on any other value, with one line that names the field.

    Example:
      >>> schedule = gf_jax.Schedule(0.1, (5, 2), iterations=1000, snapshots=4)
      >>> schedule.lanes, schedule.snapshot_iterations, schedule.gradient_evaluations
      ((1, 2, 5), array([ 250,  500,  750, 1000]), 8001)
    """

    step_size: float
    ratios: tuple[int, ...]
    iterations: int
    snapshots: int | tuple[int, ...] | None = None
    segments: int | None = None

    def __post_init__(self) -> None:
        _require(
            isinstance(self.step_size, numbers.Real)
            and math.isfinite(self.step_size)
            and self.step_size > 0,
            f"step_size: got {self.step_size!r}; accepted is a positive finite number",
        )
        for ratio in self.ratios:
            _require(
                _is_integer(ratio) and 1 <= ratio <= MOST_STEPS,
                f"ratios: got {ratio}; accepted are positive integers"
                + (f" up to {MOST_STEPS}" if ratio > MOST_STEPS else ""),
            )
            _require(
                self.ratios.count(ratio) == 1,
                f"ratios: {ratio} is given more than once; give every ratio once",
            )
        _require(
            _is_integer(self.iterations) and 1 <= self.iterations <= MOST_ITERATIONS,
            f"iterations: got {self.iterations}; accepted is a positive integer"
            f" up to {MOST_ITERATIONS}",
        )
        if self.snapshots is None:
            object.__setattr__(self, "snapshots", min(100, self.iterations))
        if isinstance(self.snapshots, tuple):
            bounded = (0, *self.snapshots, self.iterations + 1)
            _require(
                len(bounded) > 2
                and all(map(_is_integer, self.snapshots))
                and all(a < b for a, b in itertools.pairwise(bounded)),
                f"snapshots: got {self.snapshots}; accepted are ascending iterations from 1 to "
                f"{self.iterations}",
            )
        else:
            assert self.snapshots is not None
            _require(
                _is_integer(self.snapshots) and 1 <= self.snapshots <= self.iterations,
                f"snapshots: got {self.snapshots}; "
                f"accepted is 1 to the number of iterations, {self.iterations}",
            )
        divisors = _divisors(self.iterations)
        if self.segments is None:
            segments = max(n for n in divisors if n <= MOST_SEGMENTS)
            object.__setattr__(self, "segments", segments)
        _require(
            self.segments in divisors,
            f"segments: got {self.segments}; accepted are divisors of the number of iterations, "
            f"{self.iterations}, such as {_nearest(divisors, self.segments)}",
        )

    @property
    def lanes(self) -> tuple[int, ...]:
        """Ratios of the lanes, ascending; the base run is lane 0."""
        return tuple(sorted({1, *self.ratios}))

    @property
    def step_sizes(self) -> tuple[float, ...]:
        """Step sizes of the lanes."""
        return tuple(self.step_size / ratio for ratio in self.lanes)

    def clock(self, time_scale: float = 1.0) -> Clock:
        """What times are computed from, see ``Clock``."""
        return Clock(self.step_size, self.lanes, time_scale)

    @property
    def gradient_evaluations(self) -> int:
        """Gradients that the whole run needs: all steps, and one at the start.

        Of many lanes a few more are evaluated, see ``gf_jax.descent.grouping``.
        """
        return self.iterations * sum(self.lanes) + 1

    @property
    def segment_length(self) -> int:
        """Base iterations per segment."""
        assert self.segments is not None
        return self.iterations // self.segments

    @property
    def snapshot_iterations(self) -> Int[np.ndarray, " snapshots"]:
        """Base iterations at which snapshots are taken."""
        assert self.snapshots is not None
        if isinstance(self.snapshots, tuple):
            return np.array(self.snapshots)
        return np.arange(1, self.snapshots + 1) * self.iterations // self.snapshots

    @property
    def snapshot_capacity(self) -> int:
        """Most snapshots that fall into one segment."""
        segments = (self.snapshot_iterations - 1) // self.segment_length
        return int(np.bincount(segments).max())

    def snapshot_slots(
        self, recorded: int
    ) -> tuple[Int[np.ndarray, " length"], Int[np.ndarray, " snapshots"]]:
        """Of the segment behind ``recorded`` iterations: rows of its iterates, and those kept.

        Rows are of a buffer of ``snapshot_capacity`` and one more, for what is not kept.
        """
        wanted, length = self.snapshot_iterations, self.segment_length
        kept = wanted[(wanted > recorded) & (wanted <= recorded + length)]
        slots = np.full(length, self.snapshot_capacity, np.int32)
        slots[kept - recorded - 1] = np.arange(len(kept))
        return slots, kept


def whole_numbers(name: str, value: object) -> tuple[int, ...]:
    """One integer, or a sequence of them, as a tuple; what they may be is checked elsewhere.

    Raises:
      ValueError: if it is neither.
    """
    many: tuple[Any, ...] = tuple(value) if isinstance(value, Iterable) else (value,)
    _require(
        all(map(_is_integer, many)),
        f"{name}: got {value!r}; accepted are integers, such as (2, 5, 10)",
    )
    return tuple(int(number) for number in many)


def _is_integer(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _divisors(number: int) -> list[int]:
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


def _nearest(divisors: list[int], wanted: object) -> str:
    target = wanted if isinstance(wanted, int) else 1
    nearest = sorted(divisors, key=lambda n: abs(n - target))[:2]
    return " or ".join(str(n) for n in sorted(nearest))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
