"""The deviation of descent from gradient flow, for every small step size at once.

Descent with step size s stands at time k s after k iterations, at

    θ(k s) + s e(k s) + s² e₂(k s) + O(s³),
    e' = −∇²f(θ) e − ½ ∇²f(θ) ∇f(θ),   e(0) = 0,

where θ is the flow. For a smooth f both orders are solved together with the flow. With kinks e
is a difference of flows, see ``deviation``.

Source: Hairer, Nørsett & Wanner, Solving ODEs I, section II.8 (expansion of the error).
"""

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float

from gf_jax import stacks
from gf_jax.comparison import precise_distance
from gf_jax.flow import macro_steps, smooth, ties
from gf_jax.flow.expansion import expand
from gf_jax.flow.flow import PRODUCT, Flow, check_twice, checked_step_sizes, make_flow, tree_norm
from gf_jax.flow.limit_flow import is_plain, limit_from
from gf_jax.flow.problem import FlowProblem, Progress, flow_problem
from gf_jax.optimizers.momentum import OfTime, time_scale
from gf_jax.optimizers.steps import Optimizer
from gf_jax.program.compiling import jit
from gf_jax.program.program import Loss, Program

PyTree = Any

DEVIATION_COST = 1 + 3 * PRODUCT + 2 * 3  # three products, and two second derivatives
DEVIATION_TOLERANCE = 1e-6
RELATIVE = 100.0  # tolerance of e relative to its norm, over that of params
SERIES = 3.0  # share of the rest of a geometric series that an expansion may leave out
NEARBY = 1.5  # factor between two times at which an expansion is about as good
TYPICAL = 1e-3  # step size, as a share of the whole time
NEGLIGIBLE = 1e-9  # e, over params per time and gradients
TINY = 1e-300  # so that nothing over nothing is nothing
LOOSE_JUMPS = 10.0  # difference of two solves that is taken for the error of the gradient


class Deviation(NamedTuple):
    """Gradient flow and how descent leaves it, for every small step size at once.

    Attributes:
      flow: the flow.
      coherent: e, stacked as ``flow.params``: descent with a small step size s stands
        at flow.params + s e + s² e₂. With kinks it is the average over the phase at which
        steps meet them.
      second: e₂, stacked likewise; zero with kinks, where there is none.
      norm: Euclidean norm of e.
      error: estimated Euclidean error of e.
      jumps: how far the gradient is from what its Jacobian along the flow makes of it, over
        its norm at the start; where that is well above the error of the solve, something in f
        jumps that was not seen. NaN with kinks.
      rest: of an optimiser other than descent, of which e₂ is not known, the norm of what the first
        order leaves out, over the square of the step size; NaN of descent.

    Example:
      >>> def f(w):
      ...     return jnp.sum((w**2 - 1) ** 2)
      >>> w = jnp.array([0.1, 1.5])
      >>> found = gf_jax.deviation(f, w, [0.1, 0.2])
      >>> found.norm.round(2), found.gap(0.01, 0.005).round(4)
      (array([1.22, 0.77]), array([0.0066, 0.0039]))
    """

    flow: Flow
    coherent: PyTree
    second: PyTree
    norm: Float[np.ndarray, " times"]
    error: Float[np.ndarray, " times"]
    jumps: Float[np.ndarray, " times"]
    rest: Float[np.ndarray, " times"]

    def run(self, step_size: float) -> PyTree:
        """Params of descent to second order, stacked as ``flow.params``.

        Args:
          step_size: of the run, in time per iteration.
        """

        def of_block(*orders: PyTree) -> PyTree:
            return jax.tree.map(lambda z, a, b: z + step_size * a + step_size**2 * b, *orders)

        return stacks.along(of_block, self.flow.params, self.coherent, self.second)

    def gap(self, step_size: float, other: float = 0.0) -> Float[np.ndarray, " times"]:
        """Distance between descent with two step sizes, at equal times, to second order.

        Args:
          step_size: of one run, in time per iteration.
          other: of the other run; 0 is the flow itself.
        """
        first, second = step_size - other, step_size**2 - other**2

        def of_block(*orders: PyTree) -> np.ndarray:
            return tree_norm(jax.tree.map(lambda a, b: first * a + second * b, *orders))

        return stacks.along(of_block, self.coherent, self.second)

    def gap_error(self, step_size: float, other: float = 0.0) -> Float[np.ndarray, " times"]:
        """Estimated error of ``gap``: of the solve, and of the orders that are left out.

        Every order is taken to be as much smaller than the one before as the second is smaller
        than the first, at the times nearby at which it is the largest: it may be small at one
        time by chance. That makes a geometric series, and three times the sum of what follows
        the second order is taken, as networks with large first steps are off by. Where the
        second is a quarter of the first or more, the series tells nothing, and the error is the
        gap itself. What was off before is taken to be so still, or as large a share of the gap, or
        of the second order, whichever is the least. NaN with kinks, where nothing tells.

        Of an optimiser other than descent the second order is left out, see ``rest``.
        """
        largest = max(step_size, other)
        if np.isfinite(self.rest).any():
            return abs(step_size - other) * self.error + largest**2 * self.rest
        times, second = self.flow.times, largest * tree_norm(self.second)
        gap = self.gap(step_size, other)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            ratio = largest_nearby(times, np.where(self.norm > 0, second / self.norm, 0.0))
            left_out = SERIES * largest * self.norm * ratio**2 / np.maximum(1 - ratio, 0.75)
            left_out = np.where(ratio < 0.25, left_out, np.maximum(gap, left_out))
            shares = np.fmax.accumulate(np.where(gap > 0, left_out / gap, 0.0)) * gap
            orders = np.fmax.accumulate(ratio) * SERIES * largest * largest_nearby(times, second)
            before = np.fmin(np.fmax.accumulate(left_out), np.fmin(shares, orders))
            solved = abs(step_size - other) * self.error
        return np.where(np.isnan(self.jumps), np.nan, np.maximum(left_out, before) + solved)


def largest_nearby(
    times: Float[np.ndarray, " times"], values: Float[np.ndarray, "times *more"]
) -> Float[np.ndarray, "times *more"]:
    """The largest at times that differ by a factor or less, as one may be small by chance."""
    later = times[:, None] <= NEARBY * times
    near = (later & later.T).reshape(*later.shape, *(1,) * (values.ndim - 1))
    return np.where(near, values, 0.0).max(axis=1)


def deviation(
    f: Loss | Program,
    params: PyTree,
    times: Float[ArrayLike, " times"],
    *,
    optimizer: Optimizer | None = None,
    step_size: float | None = None,
    tolerance: float | None = None,
    difference: float = 1e-3,
    budget: int | None = None,
    progress: Progress | None = None,
) -> Deviation:
    """Gradient flow and the first-order deviation of descent from it, in one solve.

    Args, raises: as ``gradient_flow``, and ValueError if the gradient of a smooth f cannot be
      differentiated. For a smooth f the default tolerance is 1e-6, and that of e is a hundred
      times that, relative to its norm. With kinks there is no derivative in the step size
      where a kink is grazed; e is then the difference between the modified flow of a step
      size, ``difference``, and the flow, over that step size. With an optimizer, as in
      ``gradient_descent``, it is the optimiser's own deviation from its continuous limit, of a
      smooth f; step_size, in its own units, is of the order of those that are asked about.

    Example:
      >>> def f(w):
      ...     return jnp.sum((w**2 - 1) ** 2)
      >>> w = jnp.array([0.1, 1.5])
      >>> found = gf_jax.deviation(f, w, [0.1, 0.2])
      >>> found.gap(0.01).round(4)  # of descent with step size 0.01 from its flow
      array([0.0128, 0.0078])
    """
    problem = flow_problem(f, params, times, tolerance)
    if optimizer is not None and not is_plain(problem, optimizer):
        return _of_optimizer(problem, optimizer, step_size, budget, progress)
    if problem.has_kinks:
        lanes = np.array([0.0, *checked_step_sizes(difference)])
        states, error, statistics = macro_steps.follow(problem, lanes, False, budget, progress)
        flow = make_flow(problem, macro_steps.first_lane(states), error[:, 0], statistics)
        e = jax.tree.map(lambda leaf: (leaf[:, 1] - leaf[:, 0]) / difference, states)
        none, unknown = jax.tree.map(np.zeros_like, e), np.full(len(problem.times), np.nan)
        of_e = error.sum(axis=1) / difference
        return Deviation(flow, e, none, tree_norm(e), of_e, unknown, unknown)
    check_twice(problem)
    problem = problem._replace(tolerance=tolerance or DEVIATION_TOLERANCE)
    return _deviation(problem, budget, progress)


def _of_optimizer(
    problem: FlowProblem,
    optimizer: Optimizer,
    step_size: float | None,
    budget: int | None,
    progress: Progress | None,
) -> Deviation:
    """The first order of any optimiser but descent."""
    if problem.has_kinks:
        raise ValueError("optimizer: f has kinks; accepted with an optimizer is a smooth f")
    check_twice(problem)
    last = float(problem.times[-1])
    size = TYPICAL * last if step_size is None else step_size * time_scale(optimizer)
    start = limit_from(problem, OfTime(optimizer), size)
    found = expand(problem, start, size, budget, progress)
    flow = make_flow(problem, found.params, found.error, found.statistics)
    none = jax.tree.map(np.zeros_like, found.e)
    return Deviation(
        flow, found.e, none, tree_norm(found.e), found.e_error, found.jumps, found.rest
    )


def _deviation(problem: FlowProblem, budget: int | None, progress: Progress | None) -> Deviation:
    """The flow and both orders of the deviation of a smooth loss.

    With J the Jacobian of g = ∇f, as JAX computes it, and a = e + ½ g,

        e'  = −J a,   e₂' = −J (e₂ + ½ J a + J g/12) − ½ D²g[a, a] + D²g[g, g]/24,

    which is the expansion of Euler's method (Hairer, Nørsett & Wanner, Solving ODEs I, II.8) in
    two second derivatives instead of three. Beside them q' = −J g, q(0) = g(0), which is g
    itself unless something jumps.
    """
    pure = problem.pure

    def velocity(arguments: Any, state: tuple[PyTree, ...]) -> tuple[PyTree, ...]:
        params, e, second, _ = state
        field = pure.field(arguments[0], params)

        def along(vector: PyTree) -> tuple[PyTree, PyTree]:
            """The derivative of the gradient along a vector, and the second one."""

            def slope(point: PyTree) -> PyTree:
                return jax.jvp(field, (point,), (vector,))[1]

            return jax.jvp(slope, (params,), (vector,))

        gradient = field(params)
        ahead = optax.tree.add_scale(e, 0.5, gradient)
        both = jax.tree.map(lambda *leaves: jnp.stack(leaves), ahead, gradient)
        slopes, bends = jax.vmap(along)(both)
        (ja, jg), (daa, dgg) = (
            [jax.tree.map(operator.itemgetter(at), tree) for at in (0, 1)]
            for tree in (slopes, bends)
        )
        inner = jax.tree.map(lambda e2, a, g: e2 + a / 2 + g / 12, second, ja, jg)
        _, outer = jax.jvp(field, (params,), (inner,))
        bend = jax.tree.map(lambda out, aa, gg: -out - aa / 2 + gg / 24, outer, daa, dgg)
        negative = functools.partial(jax.tree.map, jnp.negative)
        return negative(gradient), negative(ja), bend, negative(jg)

    def size(arguments: Any, error: tuple[PyTree, ...], state: tuple[PyTree, ...]) -> Array:
        """Of params absolute; of e, and of e₂ times a typical step size, relative to e."""
        _, step_size, floor = arguments
        of_params, of_e, of_second, _ = map(optax.tree.norm, error)
        allowed = RELATIVE * (optax.tree.norm(state[1]) + floor)
        return jnp.maximum(of_params, jnp.maximum(of_e, step_size * of_second) / allowed)

    start, pure = ties.start(problem), problem.pure
    with problem.numbers.context():
        find = pure.once("gradient", lambda: jit(pure.gradient, speed=pure.flow_speed))
        gradient = jax.device_get(find(problem.data, start))
    steepest, scale = (
        float(precise_distance(tree, jax.tree.map(np.zeros_like, tree), 0))
        for tree in (gradient, jax.device_get(start))
    )
    last = problem.times[-1]
    arguments = [(problem.data, last * TYPICAL, NEGLIGIBLE * (scale / last + steepest) + TINY)]
    zeros = jax.tree.map(np.zeros_like, gradient)
    system = smooth.System(
        "deviation", velocity, smooth.FEW_STAGES, size, DEVIATION_COST, 10.0, parts=4
    )
    begin = (start, zeros, zeros, gradient)
    most = smooth.most_steps(system, budget)
    (solution,) = smooth.solve_twice(problem, system, begin, arguments, progress, most)
    params, e, second, followed = solution.state
    flow = make_flow(problem, params, solution.error[0], solution.statistics)
    with problem.numbers.context():
        stack = pure.once("gradients", lambda: jit(_along(pure.gradient), speed=pure.flow_speed))

        def of_block(params: PyTree, followed: PyTree) -> np.ndarray:
            return precise_distance(jax.device_get(stack(problem.data, params)), followed, 1)

        away = stacks.along(of_block, params, followed)
    with np.errstate(invalid="ignore"):  # what was not reached is no number
        jumps = np.maximum(away - LOOSE_JUMPS * solution.error[3], 0) / (
            steepest if steepest > 0 else 1.0
        )
    unknown = np.full(len(problem.times), np.nan)
    return Deviation(flow, e, second, tree_norm(e), solution.error[1], jumps, unknown)


def _along(function: Callable) -> Callable:
    """A function of data and params as one of data and a stack of params."""
    return lambda data, stack: jax.lax.map(lambda params: function(data, params), stack)
