"""Segments of a trajectory, put together as they come."""

from collections.abc import Iterable

import jax
import numpy as np

from gf_jax import stacks
from gf_jax.descent.schedule import Schedule
from gf_jax.descent.segments import PyTree, Trajectory


class Gathering:
    """Consecutive segments as one trajectory, of which no snapshot is in memory twice.

    Args:
      schedule: of the run, which says how many snapshots there may be.
      segments: that are there.

    Attributes:
      parts: the segments without their snapshots.
    """

    def __init__(self, schedule: Schedule, segments: Iterable[Trajectory] = ()) -> None:
        self._count, self._filled = len(schedule.snapshot_iterations), 0
        self._snapshots: PyTree = None
        self.parts: list[Trajectory] = []
        for segment in segments:
            self.add(segment)

    def add(self, segment: Trajectory) -> None:
        """The next segment."""
        self.parts.append(segment._replace(snapshots=None))
        found = len(segment.snapshot_iterations)
        if found == self._count:
            self._snapshots = segment.snapshots
        elif self._snapshots is None:
            point = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), segment.snapshots
            )
            self._snapshots = stacks.empty(point, self._count)
        if found < self._count:
            filled = slice(self._filled, self._filled + found)
            stacks.put(self._snapshots, filled, segment.snapshots)
        self._filled += found

    def trajectory(self) -> Trajectory:
        """What there is of the run: with fewer snapshots if it was cut short."""
        whole = self._filled == self._count
        snapshots = self._snapshots
        if not whole:
            snapshots = stacks.take(snapshots, slice(self._filled))
        return join(self.parts)._replace(snapshots=snapshots)


def join(trajectories: Iterable[Trajectory]) -> Trajectory:
    """Consecutive parts of a trajectory as one.

    Example:
      >>> def f(w):
      ...     return jnp.sum((w**2 - 1) ** 2)
      >>> w = jnp.array([0.1, 1.5])
      >>> schedule = gf_jax.Schedule(0.01, (2,), iterations=10, segments=2)
      >>> run = gf_jax.join(list(gf_jax.descent_segments(f, w, schedule)))
      >>> run.metrics.loss.shape
      (11, 2)
    """
    given = list(trajectories)
    parts = [each._replace(clock=None) for each in given]
    whole: Trajectory = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    return whole._replace(clock=given[-1].clock)
