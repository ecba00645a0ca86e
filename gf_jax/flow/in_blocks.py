"""A solve of which states are not all in memory at once: one block of times after another.

A solve of a single block is one call. Of several, each ends with the step that goes past its last
time, and the next begins with that step again. So steps are those of a single call, but for
rounding: were they cut short at the ends of blocks, two tolerances might take the same ones, and
their difference would tell no error.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from gf_jax.flow.problem import Progress, tell_after_solve

PyTree = Any

COUNTS = ("num_steps", "num_accepted_steps", "num_rejected_steps")


class Before(NamedTuple):
    """Where a solve stood before its last step.

    Attributes:
      time: the time.
      state: the state.
      step: length of the step.
      memory: what the controller of steps keeps, None before the first.
    """

    time: Any
    state: Any
    step: Any
    memory: Any


class Blocks:
    """A solve and what it took; after a block that is not solved, none is.

    Args:
      solve: maps where it stood, a block of times, the share of the work that is done, and what the
        block adds to it, to states at these times, with what they took.
      start: where it stands at time 0.
      times: all of them.
      most_steps: of all blocks.
      progress: is told the share of this solve that is done.

    Attributes:
      complete: whether all times were reached so far.
      calls: how many there were.
      counts: steps by ``COUNTS``.
    """

    def __init__(
        self,
        solve: Callable,
        start: Before,
        times: np.ndarray,
        most_steps: int,
        progress: Progress | None,
    ) -> None:
        self._solve, self._before, self._times = solve, start, times
        self._most_steps, self._progress = most_steps, progress
        self.complete, self.calls, self.counts = True, 0, dict.fromkeys(COUNTS, 0)

    def states(self, at: slice) -> PyTree:
        """States at the times of the next block."""
        times, last = self._times[at], self._times[-1]
        begin = self._times[at.start - 1] if at.start else 0.0
        length = times[-1] - begin
        if not self.complete or not length:
            value = None if self.complete else np.nan
            return jax.tree.map(lambda leaf: _repeated(leaf, len(times), value), self._before.state)
        done, share = begin / last, length / last
        found = jax.device_get(self._solve(self._before, times, done, share))
        self.calls, self._before = self.calls + 1, found.before
        for name in COUNTS:
            self.counts[name] += int(found.stats[name])
        self.complete = bool(found.complete) and self.counts["num_steps"] <= self._most_steps
        tell_after_solve(self._progress, done + share)
        return found.states


def _repeated(leaf: Any, times: int, value: float | None) -> np.ndarray:
    """A leaf, or a value in its place, at so many times."""
    array = np.asarray(leaf) if value is None else np.full_like(leaf, value)
    return np.broadcast_to(array, (times, *array.shape))
