"""Gradient flow, its first-order deviation, and the modified flow.

Gradient flow is dθ/dt = −∇f(θ) from θ(0) = params. Descent with step size s stands
at time k s after k iterations, at

    θ(k s) + s e(k s) + O(s²),   e' = −∇²f(θ) e − ½ ∇²f(θ) ∇f(θ),   e(0) = 0,

and stays within O(s²) of the modified flow θ' = −∇f − (s/2) ∇²f ∇f.

For a smooth f all of them are solved by an adaptive Runge–Kutta method of high order.
If f has kinks (ReLU, max-pooling, absolute values; ``kinks`` says which are seen),
they are followed by the macro steps of ``piecewise``, halved until the solution no
longer changes by more than the tolerance, or no more steps fit. Errors and tolerances
are Euclidean norms over all parameters, numbers are float64 where the device has it.

Sources: Elkabetz & Cohen, NeurIPS 2021; Barrett & Dherin, ICLR 2021 (modified flow);
Hairer, Nørsett & Wanner, Solving ODEs I, section II.8 (expansion of the error).
"""

import functools
import itertools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float

from gf_jax import piecewise, smooth
from gf_jax.comparison import precise_distance
from gf_jax.flow_problem import FlowProblem, Progress, Statistics, flow_problem
from gf_jax.program import Loss, Program

PyTree = Any

LOOSER = 100.0  # the check of a solve of order eight
PRODUCT = 2  # a Hessian-vector product, in gradients
DEVIATION_COST = 1 + 3 * PRODUCT + 2 * 3  # three products, and two second derivatives
DEVIATION_TOLERANCE = 1e-6
RELATIVE = 100.0  # tolerance of e relative to its norm, over that of params
SERIES = 5.0  # share of the next term of a geometric series that an expansion may leave out
TYPICAL = 1e-3  # step size, as a share of the whole time
NEGLIGIBLE = 1e-9  # e, over params per time and gradients
TINY = 1e-300  # so that nothing over nothing is nothing
LOOSE_JUMPS = 10.0  # difference of two solves that is taken for the error of the gradient
KINK_TOLERANCE = 1e-5
FIRST_MACRO_STEPS = 256  # of a flow, before they are halved


class Flow(NamedTuple):
    """A flow at the times asked for, as NumPy arrays.

    Attributes:
      times: times, ascending.
      params: stacked parameters, leaves of shape (times, ...).
      loss: f there.
      error: estimated Euclidean distance from the exact flow.
      statistics: what the solve took.

    Example:
      >>> def f(w):
      ...     return jnp.sum((w**2 - 1) ** 2)
      >>> w = jnp.array([0.1, 1.5])
      >>> flow = gf_jax.gradient_flow(f, w, [0.1, 0.2])
      >>> flow.params.shape, flow.statistics.complete
      ((2, 2), True)
    """

    times: Float[np.ndarray, " times"]
    params: PyTree
    loss: Float[np.ndarray, " times"]
    error: Float[np.ndarray, " times"]
    statistics: Statistics


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

    def gap(self, step_size: float, other: float = 0.0) -> Float[np.ndarray, " times"]:
        """Distance between descent with two step sizes, at equal times, to second order.

        Args:
          step_size: of one run, in time per iteration.
          other: of the other run; 0 is the flow itself.
        """
        first, second = step_size - other, step_size**2 - other**2
        return tree_norm(
            jax.tree.map(lambda a, b: first * a + second * b, self.coherent, self.second)
        )

    def gap_error(self, step_size: float, other: float = 0.0) -> Float[np.ndarray, " times"]:
        """Estimated error of ``gap``: of the solve, and of the orders that are left out.

        What follows the second order is taken to be as much smaller than it as it is smaller
        than the first, as in a geometric series, and five times that, as networks with large
        first steps are off by. Where the second is a quarter of the first or more, the series
        tells nothing, and the error is the gap itself.
        """
        largest = max(step_size, other)
        second = largest * tree_norm(self.second)
        gap = self.gap(step_size, other)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            ratio = np.where(self.norm > 0, second / self.norm, 0.0)
            left_out = SERIES * largest * self.norm * ratio**2
            solved = abs(step_size - other) * self.error
        return np.where(ratio < 0.25, left_out, np.maximum(gap, left_out)) + solved


def gradient_flow(
    f: Loss | Program,
    params: PyTree,
    times: Float[ArrayLike, " times"],
    *,
    tolerance: float | None = None,
    budget: int | None = None,
    progress: Progress | None = None,
) -> Flow:
    """Gradient flow of f from params, at all times in one solve.

    Args:
      f: maps parameters to a scalar loss; differentiable by JAX.
      params: initial point, a pytree of floating-point arrays.
      times: ascending times from 0, the last above 0; time is iteration * step_size.
      tolerance: for a smooth f, largest error per step; None is 1e-8 in float64, and
        1e-6 where the device has only float32. With kinks, largest change when all
        steps are halved; None is 1e-5.
      budget: with kinks, gradient evaluations beyond which steps are not halved.
      progress: is called now and then with the share of the work done, at most.

    Returns:
      The flow, with an error from a second solve, at a hundred times the tolerance or
      with steps twice as long.

    Raises:
      ValueError: on times, tolerance, parameters or an f that are not accepted.

    Example:
      >>> def f(w):
      ...     return jnp.sum((w**2 - 1) ** 2)
      >>> w = jnp.array([0.1, 1.5])
      >>> flow = gf_jax.gradient_flow(f, w, [0.1, 0.2])
      >>> flow.loss.round(3), bool((flow.error < 1e-6).all())
      (array([1.067, 0.923]), True)
    """
    problem = flow_problem(f, params, times, tolerance)
    if problem.has_kinks:
        return _flow_by_macro_steps(problem, budget, progress)
    pure = problem.pure

    def velocity(data: list[Array], params: PyTree) -> PyTree:
        return jax.tree.map(jnp.negative, pure.gradient(data, params))

    method = smooth.Method("flow", velocity, smooth.HIGH_ORDER, smooth.whole, 1, LOOSER)
    arguments, most = [problem.data], smooth.most_steps(method, budget)
    (solution,) = smooth.solve_twice(problem, method, problem.params, arguments, progress, most)
    if not solution.statistics.complete and most < smooth.MOST_STEPS:
        # Something jumps that is not seen: macro steps do not mind.
        return _flow_by_macro_steps(problem, budget, progress)
    return make_flow(problem, solution.state, solution.error[0], solution.statistics)


def _flow_by_macro_steps(
    problem: FlowProblem, budget: int | None, progress: Progress | None
) -> Flow:
    states, error, statistics = _follow(problem, np.zeros(1), True, budget, progress)
    return make_flow(problem, first_lane(states), error[:, 0], statistics)


def modified_flow(
    f: Loss | Program,
    params: PyTree,
    times: Float[ArrayLike, " times"],
    step_sizes: Float[ArrayLike, " lanes"],
    *,
    tolerance: float | None = None,
    budget: int | None = None,
    progress: Progress | None = None,
) -> Flow:
    """The modified flow of descent at each step size s: θ' = −∇f − (s/2) ∇²f ∇f.

    It is the gradient flow of f + (s/4) ‖∇f‖² and stays within O(s²) of descent. With
    kinks, the jumps of ∇f count in ∇²f ∇f.

    Args, raises: as ``gradient_flow``; step_sizes in time per iteration.

    Returns:
      As ``gradient_flow``, with a lane axis behind the times in every array: leaves of
      ``params`` have shape (times, lanes, ...). Statistics are those of all lanes.

    Source: Barrett & Dherin, Implicit Gradient Regularization, ICLR 2021.

    Example:
      >>> def f(w):
      ...     return jnp.sum((w**2 - 1) ** 2)
      >>> w = jnp.array([0.1, 1.5])
      >>> gf_jax.modified_flow(f, w, [0.1], [0.01, 0.005]).params.shape  # times, lanes, parameters
      (1, 2, 2)
    """
    problem = flow_problem(f, params, times, tolerance)
    lanes = checked_step_sizes(step_sizes)
    if problem.has_kinks:
        states, error, statistics = _follow(problem, lanes, False, budget, progress)
        losses = problem.losses(states, stack_axes=2)
        return Flow(problem.times, states, losses, error, statistics)

    _check_twice(problem)
    pure = problem.pure

    def velocity(arguments: tuple[list[Array], Array], params: PyTree) -> PyTree:
        data, step_size = arguments
        gradient, product = pure.linearize(data, params)
        slope = optax.tree.add_scale(gradient, step_size / 2, product(gradient))
        return jax.tree.map(jnp.negative, slope)

    cost = 1 + PRODUCT
    method = smooth.Method("modified", velocity, smooth.HIGH_ORDER, smooth.whole, cost, LOOSER)
    arguments = [(problem.data, float(step_size)) for step_size in lanes]
    solutions = smooth.solve_twice(problem, method, problem.params, arguments, progress)
    states, error = jax.tree.map(
        lambda *leaves: np.stack(leaves, axis=1), *[(s.state, s.error[0]) for s in solutions]
    )
    parts = [solution.statistics for solution in solutions]
    statistics = Statistics(
        steps=sum(part.steps for part in parts),
        rejected_steps=sum(part.rejected_steps for part in parts),
        gradient_evaluations=sum(part.gradient_evaluations for part in parts),
        complete=all(part.complete for part in parts),
        checking_evaluations=sum(part.checking_evaluations for part in parts),
    )
    losses = problem.losses(states, stack_axes=2)
    return Flow(problem.times, states, losses, error, statistics)


def deviation(
    f: Loss | Program,
    params: PyTree,
    times: Float[ArrayLike, " times"],
    *,
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
      size, ``difference``, and the flow, over that step size.

    Example:
      >>> def f(w):
      ...     return jnp.sum((w**2 - 1) ** 2)
      >>> w = jnp.array([0.1, 1.5])
      >>> found = gf_jax.deviation(f, w, [0.1, 0.2])
      >>> found.gap(0.01).round(4)  # of descent with step size 0.01 from its flow
      array([0.0128, 0.0078])
    """
    problem = flow_problem(f, params, times, tolerance)
    if problem.has_kinks:
        lanes = np.array([0.0, *checked_step_sizes(difference)])
        states, error, statistics = _follow(problem, lanes, False, budget, progress)
        flow = make_flow(problem, first_lane(states), error[:, 0], statistics)
        e = jax.tree.map(lambda leaf: (leaf[:, 1] - leaf[:, 0]) / difference, states)
        none, unknown = jax.tree.map(np.zeros_like, e), np.full(len(problem.times), np.nan)
        return Deviation(flow, e, none, tree_norm(e), error.sum(axis=1) / difference, unknown)
    _check_twice(problem)
    problem = problem._replace(tolerance=tolerance or DEVIATION_TOLERANCE)
    return _deviation(problem, budget, progress)


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

    start, pure = problem.params, problem.pure
    with problem.numbers.context():
        find = pure.once("gradient", lambda: jax.jit(pure.gradient))
        gradient = jax.device_get(find(problem.data, start))
    steepest, scale = (
        float(precise_distance(tree, jax.tree.map(np.zeros_like, tree), 0))
        for tree in (gradient, jax.device_get(start))
    )
    last = problem.times[-1]
    arguments = [(problem.data, last * TYPICAL, NEGLIGIBLE * (scale / last + steepest) + TINY)]
    zeros = jax.tree.map(np.zeros_like, gradient)
    method = smooth.Method(
        "deviation", velocity, smooth.FEW_STAGES, size, DEVIATION_COST, 10.0, parts=4
    )
    begin = (start, zeros, zeros, gradient)
    most = smooth.most_steps(method, budget)
    (solution,) = smooth.solve_twice(problem, method, begin, arguments, progress, most)
    params, e, second, followed = solution.state
    flow = make_flow(problem, params, solution.error[0], solution.statistics)
    with problem.numbers.context():
        stack = pure.once("gradients", lambda: jax.jit(_along(pure.gradient)))
        actual = jax.device_get(stack(problem.data, params))
    away = precise_distance(actual, followed, 1)
    with np.errstate(invalid="ignore"):  # what was not reached is no number
        jumps = np.maximum(away - LOOSE_JUMPS * solution.error[3], 0) / (
            steepest if steepest > 0 else 1.0
        )
    return Deviation(flow, e, second, tree_norm(e), solution.error[1], jumps)


def _along(function: Callable) -> Callable:
    """A function of data and params as one of data and a stack of params."""
    return lambda data, stack: jax.lax.map(lambda params: function(data, params), stack)


def _check_twice(problem: FlowProblem) -> None:
    """Raises ValueError unless the gradient can be differentiated."""
    with problem.numbers.context():
        reason = problem.pure.once_only(problem.data, problem.params)
    if reason is not None:
        raise ValueError(
            f"f: its gradient cannot be differentiated ({reason}); accepted for deviations and "
            "predictions is an f without custom_vjp, callbacks and adjoints of solvers"
        )


def checked_step_sizes(step_sizes: ArrayLike) -> np.ndarray:
    """Step sizes as an array; ValueError unless they are positive finite numbers."""
    lanes = np.atleast_1d(np.asarray(step_sizes, np.float64))
    if lanes.ndim != 1 or not lanes.size or not (np.isfinite(lanes) & (lanes > 0)).all():
        raise ValueError(f"step_sizes: got {step_sizes}; accepted are positive finite numbers")
    return lanes


def make_flow(
    problem: FlowProblem, params: PyTree, error: np.ndarray, statistics: Statistics
) -> Flow:
    """The flow with its losses; params are leaves of shape (times, ...)."""
    losses = problem.losses(params, stack_axes=1)
    return Flow(problem.times, params, losses, error, statistics)


def first_lane(stack: PyTree) -> PyTree:
    """The first lane of leaves of shape (times, lanes, ...)."""
    return jax.tree.map(lambda leaf: leaf[:, 0], stack)


def tree_norm(stack: PyTree) -> np.ndarray:
    """Norm of every point of a stack, leaves (times, ...), in float64."""
    return precise_distance(stack, jax.tree.map(np.zeros_like, stack), 1)


def _follow(
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
    if budget is not None:  # so that the first two solves, of n and 2 n steps, are within it
        first = max(1, min(first, int(budget / (3.5 * cost))))
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
    return halving.solution, macro_step_error(halving), halving.statistics


def macro_step_error(halving: piecewise.Halving) -> np.ndarray:
    """Estimated error of a solution by macro steps, shape (times, lanes); NaN if unknown.

    Twice what the last halving changed, or half of what the one before did if that is more:
    kinks make the changes irregular, so that one of them may be small by chance. It never falls
    in time: which side of a kink was taken is not forgotten, though solutions that took the same
    one may agree later.
    """
    solutions = halving.solutions
    shape = jax.tree.leaves(halving.solution)[0].shape[:2]
    if len(solutions) < 2:
        return np.full(shape, np.nan)
    changes = [precise_distance(b, a, 2) for a, b in itertools.pairwise(solutions)]
    earlier = changes[-2] / 4 if len(changes) > 1 else 0.0
    return np.maximum.accumulate(2 * np.maximum(changes[-1], earlier), axis=0)
