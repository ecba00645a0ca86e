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

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float

from gf_jax import piecewise, smooth
from gf_jax.comparison import distance
from gf_jax.flow_problem import FlowProblem, Progress, Statistics, flow_problem
from gf_jax.kinks import Gated
from gf_jax.tracing import Loss

PyTree = Any

LOOSER = 100.0  # the check of a solve of order eight
PRODUCT = 2  # a Hessian-vector product, in gradients
DEVIATION_TOLERANCE = 1e-6
E_TOLERANCE = 10.0  # that of e, per norm of the first gradient, over that of params
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
        at flow.params + s e. With kinks it is the average over the phase at which
        steps meet them.
      norm: Euclidean norm of e.
      rate: logarithmic derivative of that norm in time; 1/t, that of e near the start,
        where it is not known.
      error: estimated Euclidean error of e.

    Example:
      >>> def f(w):
      ...     return jnp.sum((w**2 - 1) ** 2)
      >>> w = jnp.array([0.1, 1.5])
      >>> found = gf_jax.deviation(f, w, [0.1, 0.2])
      >>> found.norm.round(2), found.gap(0.01, 0.005).round(4)
      (array([1.22, 0.77]), array([0.0065, 0.004 ]))
    """

    flow: Flow
    coherent: PyTree
    norm: Float[np.ndarray, " times"]
    rate: Float[np.ndarray, " times"]
    error: Float[np.ndarray, " times"]

    def gap(self, step_size: float, other: float = 0.0) -> Float[np.ndarray, " times"]:
        """Distance between descent with two step sizes, at equal times.

        To first order |s - s'| ‖e(t)‖. In the first iterations that is a few percent too
        small, since the error made in a step does not decay within it. The next order
        is taken from a quadratic f of one mode, for which e = -½ λ² t exp(-λ t) and the
        gap is larger by the factor 1 + (s + s') (2/3 λ - λ² t/4); λ is read off from e,
        as the rate at which ‖e(t)‖/t decays.

        Args:
          step_size: of one run, in time per iteration.
          other: of the other run; 0 is the flow itself.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            decay = np.where(self.norm > 0, 1 / self.flow.times - self.rate, 0.0)
        second_order = (step_size + other) * decay * (2 / 3 - decay * self.flow.times / 4)
        return abs(step_size - other) * self.norm * np.exp(second_order)


def gradient_flow(
    f: Loss,
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
        states, error, statistics = _follow(problem, np.zeros(1), True, budget, progress)
        return make_flow(problem, first_lane(states), error[:, 0], statistics)

    def velocity(constants: list[Array], params: PyTree) -> PyTree:
        gradient = jax.grad(problem.f, argnums=1)(constants, params)
        return jax.tree.map(jnp.negative, gradient)

    method = smooth.Method(velocity, smooth.HIGH_ORDER, optax.tree.norm, 1, LOOSER)
    (solution,) = smooth.solve_twice(problem, method, problem.params, [problem.constants], progress)
    return make_flow(problem, solution.state, solution.error[0], solution.statistics)


def modified_flow(
    f: Loss,
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

    def velocity(arguments: tuple[list[Array], Array], params: PyTree) -> PyTree:
        constants, step_size = arguments
        gradient, product = _gradient(problem.f, constants, params)
        slope = optax.tree.add_scale(gradient, step_size / 2, product(gradient))
        return jax.tree.map(jnp.negative, slope)

    method = smooth.Method(velocity, smooth.HIGH_ORDER, optax.tree.norm, 1 + PRODUCT, LOOSER)
    arguments = [(problem.constants, float(step_size)) for step_size in lanes]
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
    f: Loss,
    params: PyTree,
    times: Float[ArrayLike, " times"],
    *,
    tolerance: float | None = None,
    difference: float = 1e-3,
    budget: int | None = None,
    progress: Progress | None = None,
) -> Deviation:
    """Gradient flow and the first-order deviation of descent from it, in one solve.

    Args, raises: as ``gradient_flow``. For a smooth f the default tolerance is 1e-6,
      and that of e is ten times the tolerance times the norm of the gradient
      at the start. With kinks there is no derivative in the step size where a kink
      is grazed; e is then the difference between the modified flow of a step size,
      ``difference``, and the flow, over that step size.

    Example:
      >>> def f(w):
      ...     return jnp.sum((w**2 - 1) ** 2)
      >>> w = jnp.array([0.1, 1.5])
      >>> found = gf_jax.deviation(f, w, [0.1, 0.2])
      >>> found.gap(0.01).round(4)  # of descent with step size 0.01 from its flow
      array([0.0128, 0.0079])
    """
    problem = flow_problem(f, params, times, tolerance)
    if problem.has_kinks:
        lanes = np.array([0.0, *checked_step_sizes(difference)])
        states, error, statistics = _follow(problem, lanes, False, budget, progress)
        flow = make_flow(problem, first_lane(states), error[:, 0], statistics)
        e = jax.tree.map(lambda leaf: (leaf[:, 1] - leaf[:, 0]) / difference, states)
        with np.errstate(divide="ignore"):
            rate = 1 / problem.times
        return Deviation(flow, e, _norm(e), rate, error.sum(axis=1) / difference)
    problem = problem._replace(tolerance=tolerance or DEVIATION_TOLERANCE)
    with problem.numbers.context():
        scale = optax.tree.norm(jax.grad(lambda p: problem.f(problem.constants, p))(problem.params))

    def velocity(constants: list[Array], state: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
        params, e = state
        gradient, product = _gradient(problem.f, constants, params)
        forward = optax.tree.add_scale(e, 0.5, gradient)
        return jax.tree.map(jnp.negative, (gradient, product(forward)))

    def norm(state: tuple[PyTree, PyTree]) -> Array:
        return jnp.maximum(
            optax.tree.norm(state[0]), optax.tree.norm(state[1]) / (E_TOLERANCE * scale)
        )

    start = (problem.params, jax.tree.map(jnp.zeros_like, problem.params))
    method = smooth.Method(velocity, smooth.FEW_STAGES, norm, 1 + PRODUCT, 10.0, parts=2)
    (solution,) = smooth.solve_twice(problem, method, start, [problem.constants], progress)
    (params, e), (error, e_error) = solution.state, solution.error
    took = solution.statistics
    evaluations = took.gradient_evaluations + (1 + PRODUCT) * len(problem.times)  # for the rate
    took = took._replace(gradient_evaluations=evaluations)
    flow = make_flow(problem, params, error, took)
    rate = _growth(problem, velocity, (params, e))
    return Deviation(flow, e, _norm(e), rate, e_error)


def _growth(problem: FlowProblem, velocity: Callable, states: tuple[PyTree, PyTree]) -> np.ndarray:
    """Logarithmic derivative of the norm of e at every state; NaN where e is 0."""

    def one(constants: list[Array], state: tuple[PyTree, PyTree]) -> Array:
        e, slope = state[1], velocity(constants, state)[1]
        return optax.tree.vdot(e, slope) / optax.tree.vdot(e, e)

    with problem.numbers.context():
        solve = jax.jit(lambda c, states: jax.lax.map(lambda state: one(c, state), states))
        return np.asarray(solve(problem.constants, states))


def checked_step_sizes(step_sizes: ArrayLike) -> np.ndarray:
    """Step sizes as an array; ValueError unless they are positive finite numbers."""
    lanes = np.atleast_1d(np.asarray(step_sizes, np.float64))
    if lanes.ndim != 1 or not lanes.size or not (np.isfinite(lanes) & (lanes > 0)).all():
        raise ValueError(f"step_sizes: got {step_sizes}; accepted are positive finite numbers")
    return lanes


def _gradient(
    f: Callable, constants: list[Array], params: PyTree
) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
    """The gradient, and the product of the Hessian with a vector."""
    return jax.linearize(lambda p: jax.grad(f, argnums=1)(constants, p), params)


def make_flow(
    problem: FlowProblem, params: PyTree, error: np.ndarray, statistics: Statistics
) -> Flow:
    """The flow with its losses; params are leaves of shape (times, ...)."""
    losses = problem.losses(params, stack_axes=1)
    return Flow(problem.times, params, losses, error, statistics)


def first_lane(stack: PyTree) -> PyTree:
    """The first lane of leaves of shape (times, lanes, ...)."""
    return jax.tree.map(lambda leaf: leaf[:, 0], stack)


def _norm(stack: PyTree) -> np.ndarray:
    return precise_distance(stack, jax.tree.map(np.zeros_like, stack), 1)


def precise_distance(stack: PyTree, reference: PyTree, stack_axes: int) -> np.ndarray:
    """As ``distance``, in float64."""
    with jax.enable_x64(True):
        return np.asarray(distance(stack, reference, stack_axes=stack_axes))


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

    def program(
        gated: Gated, macro_steps: piecewise.MacroSteps, tell: piecewise.Tell | None
    ) -> PyTree:
        return piecewise.follow(
            gated,
            problem.params,
            macro_steps,
            jnp.asarray(step_sizes),
            times=len(problem.times),
            exact_phase=exact_phase,
            tell=tell,
        )

    tolerance = problem.tolerance or KINK_TOLERANCE
    cost = piecewise.COST * len(step_sizes)
    first = FIRST_MACRO_STEPS
    if budget is not None:  # so that the first two solves, of n and 2 n steps, are within it
        first = max(1, min(first, int(budget / (3.5 * cost))))
    halving = piecewise.halve(
        problem,
        program,
        lambda before, after: bool(precise_distance(after, before, 2).max() <= tolerance),
        longest=problem.times[-1] / first,
        cost=cost,
        budget=budget,
        progress=progress,
    )
    change = np.full((len(problem.times), len(step_sizes)), np.nan)  # unknown
    if halving.before is not None:
        change = precise_distance(halving.solution, halving.before, 2)
    return halving.solution, change, halving.statistics
