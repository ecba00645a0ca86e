"""Gradient flows of losses with kinks: ever finer steps until the solution changes no more.

``crossings`` takes the steps. Where they do not lead to a solution that is known well, as where
many kinks that slide bear on one another, ``macro_steps`` are tried as well, which are of lower
order and forget at every step; the solution that is known better is taken.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from gf_jax.comparison import precise_distance
from gf_jax.flow import crossings, macro_steps, sides, ties
from gf_jax.flow.crossings import Followed, Resolution
from gf_jax.flow.problem import (
    FlowProblem,
    Progress,
    Statistics,
    Telling,
    part,
    tell_after_solve,
    tells_meanwhile,
)
from gf_jax.program.compiling import jit

PyTree = Any

COST = 4 / 3  # of a step in gradients: one, and a forward pass
MOST_STEPS = 2**15
# Of the first solve: steps at least, crossings in each. Where few are crossed, as late in training,
# many slide, and what they are off by grows with the length of a step.
COARSE_STEPS, COARSE_CROSSINGS = 1024, 32.0
FINER = 2.3  # by what both are divided from solve to solve, as macro steps are
POORLY = 100.0  # known is a solution whose error is so many times the tolerance


class Solved(NamedTuple):
    """A flow, leaves of shape (times, ...), its estimated error at these times, what it took."""

    params: PyTree
    error: Float[np.ndarray, " times"]
    statistics: Statistics


def solve(problem: FlowProblem, budget: int | None, progress: Progress | None) -> Solved:
    """The flow of a problem with kinks.

    Args:
      problem: the problem.
      budget: gradients beyond which no finer solve is begun.
      progress: is told the share of the work done, at most.
    """
    tolerance = problem.tolerance or macro_steps.KINK_TOLERANCE
    found = _by_crossings(problem, tolerance, budget, part(progress, 0.0, 0.9))
    spent = 0
    if found is not None:
        statistics = found.statistics
        spent = statistics.gradient_evaluations + statistics.checking_evaluations
        if found.error.max() <= POORLY * tolerance or (budget is not None and spent > budget / 2):
            return found
    other = _by_macro_steps(problem, budget and budget - spent, part(progress, 0.9, 0.1))
    if found is None or not found.error.max() <= other.error.max():
        found, other = other, found
    if other is None:
        return found
    checks = found.statistics.checking_evaluations + other.statistics.checking_evaluations
    checks += other.statistics.gradient_evaluations
    return found._replace(statistics=found.statistics._replace(checking_evaluations=checks))


def _by_macro_steps(problem: FlowProblem, budget: int | None, progress: Progress | None) -> Solved:
    states, error, statistics = macro_steps.follow(problem, np.zeros(1), True, budget, progress)
    return Solved(macro_steps.first_lane(states), error[:, 0], statistics)


def _by_crossings(
    problem: FlowProblem, tolerance: float, budget: int | None, progress: Progress | None
) -> Solved | None:
    """None if two solves would take more steps than fit."""
    tells, start = tells_meanwhile(progress, problem.program), ties.start(problem)
    telling, solver = _solver(problem, tells)
    resolution = _coarsest(problem.times[-1], budget)
    solutions: list[PyTree] = []
    steps, spent, fewest, finest = 0, 0, len(problem.times), resolution
    while True:
        most = MOST_STEPS if budget is None else min(MOST_STEPS, int(budget / COST) - spent)
        if fewest > most:
            break
        done = len(solutions)
        if progress is not None:
            telling.progress = lambda share, done=done: progress(_overall(done, share))
        with problem.numbers.context():
            found = jax.device_get(solver(problem.data, start, problem.times, resolution, most))
        spent += int(found.steps)
        if not found.complete:
            break
        steps, solutions, finest = int(found.steps), [*solutions[-2:], found.params], resolution
        tell_after_solve(progress, _overall(done, 1.0))
        if _settled(problem, solutions, tolerance, COST * spent):
            break
        resolution = Resolution(resolution.crossings / FINER, resolution.longest / FINER)
        fewest = int(FINER * steps)
    if len(solutions) < 2:
        return None
    complete = all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(solutions[-1]))

    def follow_on(point: PyTree, times: np.ndarray) -> PyTree:
        """The flow from a point, at the finest resolution."""
        nonlocal spent
        with problem.numbers.context():
            point = problem.numbers.cast(point)
            found = jax.device_get(solver(problem.data, point, times, finest, MOST_STEPS))
        spent += int(found.steps)
        return found.params

    error = _error(problem, solutions, follow_on)
    evaluations, checks = round(COST * steps), round(COST * (spent - steps))
    statistics = Statistics(steps, 0, evaluations, complete, checks)
    return Solved(solutions[-1], error, statistics)


def _error(
    problem: FlowProblem, solutions: list[PyTree], follow_on: Callable[[PyTree, np.ndarray], PyTree]
) -> np.ndarray:
    """Estimated error of the finest solution, see ``error_of_changes``.

    A coarser one that has taken the other side of a kink whose sides lead apart tells nothing of
    the two finer ones from then on, if these passed that kink with more to spare than lies
    between them.
    """
    error = macro_steps.error_of_changes(solutions, 1)
    if len(solutions) < 3:
        return error
    coarse, middle, fine = solutions
    change = np.maximum.accumulate(2 * precise_distance(fine, middle, 1))
    if not (error > change).any():
        return error
    found = next(iter(sides.partings(problem, coarse, fine)), None)
    if found is None or not sides.surely(problem, found, coarse, middle, fine, follow_on):
        return error
    before = np.where(np.arange(len(error)) < found.slot, error, 0.0)
    return np.maximum(np.maximum.accumulate(before), change)


def _coarsest(last: float, budget: int | None) -> Resolution:
    """The resolution of the first solve, so that the first two are likely within the budget."""
    coarser = 1.0
    if budget is not None:
        coarser = max(1.0, COARSE_STEPS * COST * (1.5 + FINER) / max(budget, 1))
    return Resolution(COARSE_CROSSINGS * coarser, last / COARSE_STEPS * coarser)


def _settled(
    problem: FlowProblem, solutions: list[PyTree], tolerance: float, evaluations: float
) -> bool:
    """Whether the solution changes no more; where that is cheap, of the last two changes."""
    pairs = list(itertools.pairwise(solutions))
    wanted = 1 if evaluations > problem.pure.cheap else 2
    changes = [precise_distance(b, a, 1).max() for a, b in pairs[-wanted:]]
    return len(changes) == wanted and bool(max(changes) <= tolerance)


def _overall(solves: int, share: Any) -> float:
    """The share of the work that is done, as if every solve took as long as all before it."""
    return 1 - 0.5 ** (solves + float(share))


def _solver(problem: FlowProblem, tells: bool) -> tuple[Telling, Callable]:
    """The compiled solver, for all resolutions, and what it tells its progress to."""
    gated_with = problem.gated_of

    def make() -> tuple[Telling, Callable]:
        telling = Telling()

        def solve(
            data: list[Array], params: PyTree, times: Array, resolution: Resolution, most: Array
        ) -> Followed:
            gated, tell = gated_with(data, params), telling if tells else None
            return crossings.follow(gated, params, times, resolution, most, tell)

        return telling, jit(solve, speed=problem.pure.flow_speed)

    return problem.pure.once(("crossings", tells, problem.numbers.dtype), make)
