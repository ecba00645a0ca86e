"""A run of descent averaged over windows, while it is made, so that few iterates are held."""

import collections
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

import gf_jax
from experiments.studies.edge.records import Averages
from gf_jax.descent.schedule import Schedule
from gf_jax.flow.problem import Progress
from gf_jax.optimizers.steps import Optimizer
from gf_jax.program.program import Loss


def average(
    f: Loss,
    start: Any,
    schedule: Schedule,
    middles: np.ndarray,
    half: int,
    axes: np.ndarray,
    arithmetic: str,
    optimizer: Optimizer | None,
    tell: Progress,
) -> Averages:
    """Runs descent and averages it.

    The first and the last iterate of a window count half, so that what alternates averages to 0.

    Args:
      f: the loss.
      start: the initial point.
      schedule: of one run, whose snapshots are all iterates within windows.
      middles: iterations in the middle of the windows.
      half: of the length of a window.
      axes: of the predicted oscillation at each, shape (windows, most, parameters).
      arithmetic: name of the arithmetic of descent.
      optimizer: whose steps they are; None is plain descent.
      tell: is told the share of the run that is done.
    """
    started = time.perf_counter()
    iterates = _iterates(f, start, schedule, arithmetic, optimizer, tell)
    held: collections.deque[tuple[int, np.ndarray, float, float]] = collections.deque()
    rows = list[tuple[Any, ...]]()
    for middle, directions in zip(middles, axes, strict=True):
        while not held or held[-1][0] < middle + half:
            held.append(next(iterates))
        while held[0][0] < middle - half:
            held.popleft()
        rows.append(_window([each for each in held if each[0] <= middle + half], directions))
    columns: list[Any] = [np.stack(column) for column in zip(*rows, strict=True)]
    params, *others = columns
    leaves, structure = jax.tree.flatten(start)
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1]
    parts = np.split(params, ends, axis=1)
    shaped = [
        part.reshape(len(part), *leaf.shape) for part, leaf in zip(parts, leaves, strict=True)
    ]
    whole = jax.tree.unflatten(structure, shaped)
    return Averages._make([whole, *others, time.perf_counter() - started])


def _iterates(
    f: Loss,
    start: Any,
    schedule: Schedule,
    arithmetic: str,
    optimizer: Optimizer | None,
    tell: Progress,
) -> Iterator[tuple[int, np.ndarray, float, float]]:
    """Iteration, params as a vector, loss and gradient's norm of every iterate that is kept."""
    how: dict[str, Any] = {"arithmetic": arithmetic, "optimizer": optimizer}
    for part in gf_jax.descent_segments(f, start, schedule, **how):
        kept = np.isin(part.iterations, part.snapshot_iterations)
        losses, norms = (
            np.asarray(each[:, 0], float)
            for each in (part.metrics.loss, part.metrics.gradient_norm)
        )
        if part.iterations[0] == 0:
            flat = np.concatenate(
                [np.asarray(leaf, float).ravel() for leaf in jax.tree.leaves(start)]
            )
            yield 0, flat, float(losses[0]), float(norms[0])
        leaves = [leaf[:, 0] for leaf in jax.tree.leaves(part.snapshots)]
        for number, at in enumerate(np.flatnonzero(kept)):
            flat = np.concatenate([np.asarray(leaf[number], float).ravel() for leaf in leaves])
            yield int(part.iterations[at]), flat, float(losses[at]), float(norms[at])
        tell(int(part.iterations[-1]) / schedule.iterations)


@np.errstate(over="ignore", invalid="ignore")  # of a run that diverges
def _window(iterates: list[tuple[int, np.ndarray, float, float]], axes: np.ndarray) -> tuple:
    """The averages of one window, in the order of ``Averages``."""
    _, points, losses, norms = (np.array(each) for each in zip(*iterates, strict=True))
    weights = np.ones(len(points))
    weights[[0, -1]] = 0.5
    weights /= weights.sum()
    # What is left of an iterate beside those before and after is what alternates.
    alternating = points[1:-1] / 2 - (points[:-2] + points[2:]) / 4
    along = alternating @ np.nan_to_num(axes).T
    count = len(alternating)
    return (
        weights @ points,
        losses[len(losses) // 2],
        weights @ losses,
        weights @ norms**2,
        (alternating**2).sum() / count,
        along.T @ along / count,
    )
