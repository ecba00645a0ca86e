"""The continuous limit of any optimiser on a loss.

``gf_jax.optimizers.limit`` makes the equation of a program; here it is found and solved.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float

from gf_jax.flow import smooth
from gf_jax.flow.expansion import LOOSER, TINY, from_start, size_of_error
from gf_jax.flow.flow import Flow, gradient_flow, make_flow
from gf_jax.flow.problem import FlowProblem, Progress, flow_problem
from gf_jax.flow.slopes import slopes_of
from gf_jax.optimizers.limit import Point
from gf_jax.optimizers.momentum import OfTime, time_scale
from gf_jax.optimizers.search import Start, find_limit
from gf_jax.optimizers.steps import Optimizer, check_optimizer, is_descent
from gf_jax.program.compiling import jit
from gf_jax.program.program import Loss, Program

PyTree = Any

NEAR = 1e-6  # length of a difference, over that of params
TYPICAL = 1e-3  # step size, as a share of the whole time


def limit_from(problem: FlowProblem, optimizer: Optimizer, step_size: float) -> Start:
    """The limit of an optimiser on a loss from its start.

    Args:
      problem: the loss, start and times.
      optimizer: the function of the step size.
      step_size: the smallest of those that it is compared with.

    Raises:
      LimitError: if there is none.
    """
    pure, time = problem.pure, float(problem.times[-1])
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(problem.params)]
    slopes, data = slopes_of(problem)
    start_of = *(leaf.tobytes() for leaf in leaves), slopes
    name = ("start", optimizer, step_size, time, *start_of)
    kept = pure.kept.get(name)
    if kept is not None and all(a is b for a, b in zip(kept[0], data, strict=True)):
        return kept[1]

    def slope(data: Any, params: PyTree) -> PyTree:
        return slopes.gradients(data, slopes.number)(params)

    def derivative(data: Any, params: PyTree, direction: PyTree) -> PyTree:
        """By a difference: not every gradient can be differentiated."""
        length = (optax.tree.norm(params) + NEAR) / (optax.tree.norm(direction) + TINY)
        ahead = optax.tree.add_scale(params, NEAR * length, direction)
        return jax.tree.map(
            lambda b, a: (b - a) / (NEAR * length), slope(data, ahead), slope(data, params)
        )

    with problem.numbers.context():
        find = pure.once(("slope", slopes), lambda: jit(slope, speed=pure.flow_speed))
        change = pure.once(("derivative", slopes), lambda: jit(derivative, speed=pure.flow_speed))
        start = find_limit(
            optimizer,
            problem.params,
            find(data, problem.params),
            lambda direction: change(data, problem.params, direction),
            step_size=step_size,
            time=time,
        )

    def behind(numbers: Sequence[int]) -> PyTree:
        with problem.numbers.context():
            return start.behind(numbers)

    found = start._replace(behind=behind)
    pure.kept.put(name, (data, found))
    return found


def is_plain(problem: FlowProblem, optimizer: Optimizer) -> bool:
    """Whether an optimiser is plain descent; what fails is not, and is told by its limit."""
    check_optimizer(optimizer)
    if problem.batched is not None:
        return False
    with problem.numbers.context(), contextlib.suppress(Exception):
        return is_descent(optimizer, problem.params)
    return False


def limit_in_words(
    f: Loss | Program, params: PyTree, times: np.ndarray, step_size: float, optimizer: Any
) -> str:
    """Which equation an optimiser follows from params; empty for plain descent.

    Args, raises: as ``limit_flow``; step_size is the smallest that the limit is compared with.
    """
    problem = flow_problem(f, params, times, None)
    if is_plain(problem, optimizer):
        return ""
    step_size *= time_scale(optimizer)
    return limit_from(problem, OfTime(optimizer), step_size).limit.words


def limit_flow(
    f: Loss | Program,
    params: PyTree,
    times: Float[ArrayLike, " times"],
    optimizer: Optimizer,
    *,
    step_size: float | None = None,
    tolerance: float | None = None,
    budget: int | None = None,
    progress: Progress | None = None,
) -> Flow:
    """The continuous limit of an optimiser on f, from params: what it follows as h goes to zero.

    For descent, and for momentum at a fixed decay, that is gradient flow, in times of its own.

    Args:
      f: maps parameters to a scalar loss; differentiable by JAX.
      params: initial point, a pytree whose floating-point arrays move, see ``compare``.
      times: ascending times from 0, the last above 0; time is iteration * step_size, times the
        optimiser's time scale if it has one.
      optimizer: maps a step size to an optax transformation, as in ``gradient_descent``.
      step_size: of the order of the smallest that the limit is compared with, which the limit is
        found at; None is a thousandth of the whole time.
      tolerance: as in ``gradient_flow``.
      budget: gradients beyond which the solve is given up.
      progress: as in ``gradient_flow``.

    Raises:
      ValueError: as ``gradient_flow``, and if the optimiser has no continuous limit; names what it
        lacks.

    Source: see ``gf_jax.optimizers.limit``.

    Example:
      >>> import optax
      >>> def f(w):
      ...     return jnp.sum((w**2 - 1) ** 2)
      >>> w = jnp.array([0.1, 1.5])
      >>> flow = gf_jax.limit_flow(f, w, [0.5], lambda h: optax.adam(h, b1=1 - 10 * h, b2=1 - h))
      >>> flow.params.round(2)
      array([[0.65, 1.1 ]])
    """
    problem = flow_problem(f, params, times, tolerance)
    scale = time_scale(optimizer)
    if is_plain(problem, optimizer):
        return gradient_flow(
            problem.program, params, times, tolerance=tolerance, budget=budget, progress=progress
        )
    smallest = TYPICAL * float(problem.times[-1]) if step_size is None else step_size * scale
    start = limit_from(problem, OfTime(optimizer), smallest)
    if start.limit.speed is not None:
        flow = gradient_flow(
            problem.program,
            params,
            start.limit.speed * problem.times,
            tolerance=tolerance,
            budget=budget,
            progress=progress,
        )
        return flow._replace(times=problem.times)
    solution = _solve(problem, start, budget, progress)
    return make_flow(problem, solution.state[0], solution.error[0], solution.statistics)


def points_along(
    problem: FlowProblem, start: Start, budget: int | None, progress: Progress | None
) -> Point:
    """The limit's points at the times of a problem, stacked: params, slow leaves, and time."""
    if start.limit.speed is None:
        return Point(*_solve(problem, start, budget, progress).state)
    times = start.limit.speed * problem.times
    flow = gradient_flow(problem.program, problem.params, times, budget=budget, progress=progress)
    with problem.numbers.context():
        return Point(flow.params, [], jnp.asarray(problem.times))


def _solve(
    problem: FlowProblem, start: Start, budget: int | None, progress: Progress | None
) -> smooth.Solution:
    """The limit alone, of which the state is that of its points."""
    limit, (slopes, data) = start.limit, slopes_of(problem)

    def velocity(arguments: Any, state: Any) -> Any:
        data, given = arguments
        gradients = slopes.gradients(data, limit.period)
        return tuple(limit.velocity(given, gradients, Point(*state)))

    def size(arguments: Any, error: Any, state: Any) -> Array:
        return size_of_error(error, state)

    name = ("limit", limit, slopes)
    system = smooth.System(name, velocity, smooth.FEW_STAGES, size, 1, LOOSER, parts=3)
    fine, rough = ([(data, given)] for given in (start.given, start.rough))
    most = smooth.most_steps(system, budget)
    (solution,) = smooth.solve_twice(
        from_start(problem, start), system, tuple(start.point), fine, progress, most, rough
    )
    return solution
