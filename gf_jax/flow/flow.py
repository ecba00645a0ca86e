"""Gradient flow.

Gradient flow is dθ/dt = −∇f(θ) from θ(0) = params. Descent with step size s stands near it
at time k s after k iterations, see ``deviation``, and stays within O(s²) of the modified flow
θ' = −∇f − (s/2) ∇²f ∇f.

For a smooth f both are solved by an adaptive Runge–Kutta method of high order. If f has kinks
(ReLU, max-pooling, absolute values; ``kinks`` says which are seen), gradient flow is followed in
steps that account for every crossing, see ``crossings``, and the modified flow by ``macro_steps``.
Errors and tolerances are Euclidean norms over all parameters, numbers are float64 where the device
has it.

Sources: Elkabetz & Cohen, NeurIPS 2021; Barrett & Dherin, ICLR 2021 (modified flow).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from gf_jax.comparison import precise_distance
from gf_jax.flow import macro_steps, smooth, through_kinks, ties
from gf_jax.flow.problem import FlowProblem, Progress, Statistics, flow_problem
from gf_jax.program.program import Loss, Program

PyTree = Any

LOOSER = 100.0  # the check of a solve of order eight
PRODUCT = 2  # a Hessian-vector product, in gradients


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
      params: initial point, a pytree whose floating-point arrays move, see ``compare``.
      times: ascending times from 0, the last above 0; time is iteration * step_size.
      tolerance: for a smooth f, largest error per step; None is 1e-8 in float64, and
        1e-6 where there is only float32. With kinks, largest change when all
        steps are made finer; None is 1e-5.
      budget: with kinks, gradient evaluations beyond which steps are made no finer.
      progress: is called now and then with the share of the work done, at most.

    Returns:
      The flow, with an error from a second solve, at a hundred times the tolerance or
      with coarser steps.

    Raises:
      ValueError: on times, tolerance, parameters or an f that are not accepted, and if entries that
        f sorts tie at the start, so that there are many flows.

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
        solved = through_kinks.solve(problem, budget, progress)
        return make_flow(problem, solved.params, solved.error, solved.statistics)
    pure = problem.pure

    def velocity(data: list[Array], params: PyTree) -> PyTree:
        return jax.tree.map(jnp.negative, pure.gradient(data, params))

    system = smooth.System("flow", velocity, smooth.HIGH_ORDER, smooth.whole, 1, LOOSER)
    arguments, most = [problem.data], smooth.most_steps(system, budget)
    (solution,) = smooth.solve_twice(
        problem, system, ties.start(problem), arguments, progress, most
    )
    if not solution.statistics.complete and most < smooth.MOST_STEPS:
        # The gradient jumps where no kink was seen; macro steps get across.
        return _flow_by_macro_steps(problem, budget, progress)
    return make_flow(problem, solution.state, solution.error[0], solution.statistics)


def _flow_by_macro_steps(
    problem: FlowProblem, budget: int | None, progress: Progress | None
) -> Flow:
    states, error, statistics = macro_steps.follow(problem, np.zeros(1), True, budget, progress)
    return make_flow(problem, macro_steps.first_lane(states), error[:, 0], statistics)


def check_twice(problem: FlowProblem) -> None:
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


def tree_norm(stack: PyTree) -> np.ndarray:
    """Norm of every point of a stack, leaves (times, ...), in float64."""
    zero = jax.tree.map(lambda leaf: np.zeros(leaf.shape[1:], leaf.dtype), stack)
    return precise_distance(stack, zero, 1)
