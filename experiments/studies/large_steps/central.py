"""Descent beside the central flow of its step size, the description that holds past the edge.

Past its edge descent stands in turn on either side of what the central flow describes. So the
mean of an iterate and the next is compared, x − (s/2) ∇f(x) in the middle of a step.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

import gf_jax
from experiments.runs import harness, structures
from experiments.runs.harness import NetworkWorkplace
from experiments.studies.large_steps.options import Options
from gf_jax.comparison import precise_distance
from gf_jax.flow.problem import Progress
from gf_jax.study.record import Run

TOLERANCE = 1e-4  # of a step of the central flow, in parameters
BUDGET = 200  # gradients of a solve, over those of the run


class Central(NamedTuple):
    """A central flow in the middle of steps.

    Attributes:
      params: stacked, leaves of shape (times, ...).
      error: estimated Euclidean error, shape (times,).
      ended: why it ended early, 0 if it did not.
      past_edge: when the edge is reached; infinite if it is not.
    """

    params: Any
    error: np.ndarray
    ended: int
    past_edge: float


def distances(
    workplace: NetworkWorkplace[Options], run: Run, snapshots: Any, lanes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Distance of the mean of two iterates from the central flow, and the error of the latter.

    Both are of shape (snapshots, lanes).

    Args:
      workplace: of the experiment.
      run: the runs.
      snapshots: their params, leaves of shape (snapshots, lanes, ...).
      lanes: which are compared; NaN stands for the others, and where there is no central flow.
    """
    gaps = np.full((len(run.snapshot_times), len(run.step_sizes)), np.nan)
    errors = gaps.copy()
    told = workplace.options
    if told.chosen_optimizer is not None or not told.smooth:
        return gaps, errors
    slopes = jax.jit(lambda stack: jax.lax.map(jax.grad(workplace.study.objective.loss), stack))
    for lane in np.flatnonzero(lanes):
        half = run.step_sizes[lane] / 2
        stack = jax.tree.map(lambda leaf, lane=lane: leaf[:, lane], snapshots)
        mean = jax.tree.map(
            lambda leaf, slope, half=half: np.asarray(leaf, float) - half * np.asarray(slope),
            *(stack, slopes(stack)),
        )
        flow = _flow(workplace, run, float(2 * half))
        gaps[:, lane] = precise_distance(mean, flow.params, 1)
        errors[:, lane] = flow.error
    return gaps, errors


def _flow(workplace: NetworkWorkplace[Options], run: Run, step_size: float) -> Central:
    """The central flow of a step size."""
    f, start = workplace.study.objective.loss, workplace.study.initial_params
    times = run.snapshot_times + step_size / 2

    def follow(tell: Progress) -> Central:
        found = gf_jax.central_flow(
            *(f, start, times, step_size),
            tolerance=TOLERANCE,
            budget=BUDGET * round(times[-1] / step_size),
            progress=tell,
        )
        return Central(found.params, found.error, found.ended, found.past_edge)

    return harness.solve_once(
        workplace,
        f"central flow, step size {step_size:g}",
        follow,
        structures.of(Central, start, times=len(times)),
    )
