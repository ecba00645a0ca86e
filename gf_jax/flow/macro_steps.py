"""Flows of losses with kinks: macro steps, halved until the solution no longer changes.

``piecewise`` makes the steps; here they are halved until no point changes by more than the
tolerance, or no more steps fit.
"""

import itertools
from typing import Any

import jax
import numpy as np

from gf_jax.comparison import precise_distance
from gf_jax.flow import piecewise
from gf_jax.flow.problem import FlowProblem, Progress, Statistics

PyTree = Any

KINK_TOLERANCE = 1e-5
FIRST_MACRO_STEPS = 256  # of a flow, before they are halved


def follow(
    problem: FlowProblem,
    step_sizes: np.ndarray,
    exact_phase: bool,
    budget: int | None,
    progress: Progress | None,
) -> tuple[PyTree, np.ndarray, Statistics]:
    """Lanes by macro steps, halved until nothing changes by more than the tolerance.

    Returns:
      Leaves of shape (times, lanes, ...), the last change (times, lanes), statistics.
    """
    tolerance = problem.tolerance or KINK_TOLERANCE
    cost = piecewise.COST * len(step_sizes)
    first = FIRST_MACRO_STEPS
    if budget is not None:  # so that the first two solves are within it
        first = max(1, min(first, int(budget / ((1.5 + piecewise.HALF) * cost))))
    halving = piecewise.halve(
        problem,
        step_sizes,
        lambda before, after: bool(precise_distance(after, before, 2).max() <= tolerance),
        exact_phase=exact_phase,
        longest=problem.times[-1] / first,
        cost=cost,
        budget=budget,
        progress=progress,
    )
    return halving.solution, error_of_changes(halving.solutions, 2), halving.statistics


def error_of_changes(solutions: list[PyTree], axes: int) -> np.ndarray:
    """Estimated error of the last of ever finer solutions; NaN if it is the only one.

    Twice what the last halving changed, or half of what the one before did if that is more:
    kinks make the changes irregular, so that one of them may be small by chance. It never falls
    in time: which side of a kink was taken is not forgotten, though solutions that took the same
    one may agree later.

    Args:
      solutions: leaves of shape (times, ...) or (times, lanes, ...).
      axes: how many of these axes are not the parameters'; the shape of the error.
    """
    shape = jax.tree.leaves(solutions[-1])[0].shape[:axes]
    if len(solutions) < 2:
        return np.full(shape, np.nan)
    changes = [precise_distance(b, a, axes) for a, b in itertools.pairwise(solutions)]
    earlier = changes[-2] / 4 if len(changes) > 1 else 0.0
    return np.maximum.accumulate(2 * np.maximum(changes[-1], earlier), axis=0)


def first_lane(stack: PyTree) -> PyTree:
    """The first lane of leaves of shape (times, lanes, ...)."""
    return jax.tree.map(lambda leaf: leaf[:, 0], stack)
