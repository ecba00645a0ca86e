"""The modified flow: the equation that steps of one size follow to second order.

For descent it is θ' = −∇f − (s/2) ∇²f ∇f, for any other optimiser F + s (G − ½ DF F), from what
its first steps start with, see ``gf_jax.optimizers.limit``.

Source: Barrett & Dherin, Implicit Gradient Regularization, ICLR 2021.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float

from gf_jax.flow import macro_steps, smooth, ties
from gf_jax.flow.expansion import modified_solutions
from gf_jax.flow.flow import LOOSER, PRODUCT, Flow, check_twice, checked_step_sizes
from gf_jax.flow.limit_flow import is_plain, limit_from
from gf_jax.flow.problem import FlowProblem, Progress, Statistics, flow_problem
from gf_jax.optimizers.momentum import OfTime, time_scale
from gf_jax.optimizers.steps import Optimizer
from gf_jax.program.program import Loss, Program

PyTree = Any


def modified_flow(
    f: Loss | Program,
    params: PyTree,
    times: Float[ArrayLike, " times"],
    step_sizes: Float[ArrayLike, " lanes"],
    *,
    optimizer: Optimizer | None = None,
    tolerance: float | None = None,
    budget: int | None = None,
    progress: Progress | None = None,
) -> Flow:
    """The modified flow of descent at each step size s: θ' = −∇f − (s/2) ∇²f ∇f.

    It is the gradient flow of f + (s/4) ‖∇f‖² and stays within O(s²) of descent. With
    kinks, the jumps of ∇f count in ∇²f ∇f.

    Args, raises: as ``gradient_flow``; step_sizes in time per iteration; optimizer as in
      ``gradient_descent``, of a smooth f, whose modified flow is then followed instead.

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
    if optimizer is not None and not is_plain(problem, optimizer):
        if problem.has_kinks:
            raise ValueError("optimizer: f has kinks; accepted with an optimizer is a smooth f")
        check_twice(problem)
        smallest = float(lanes.min()) * time_scale(optimizer)
        start = limit_from(problem, OfTime(optimizer), smallest)
        per_iteration = [float(step_size) * time_scale(optimizer) for step_size in lanes]
        return _joined(problem, modified_solutions(problem, start, per_iteration, budget, progress))
    if problem.has_kinks:
        states, error, statistics = macro_steps.follow(problem, lanes, False, budget, progress)
        losses = problem.losses(states, stack_axes=2)
        return Flow(problem.times, states, losses, error, statistics)

    check_twice(problem)
    pure = problem.pure

    def velocity(arguments: tuple[list[Array], Array], params: PyTree) -> PyTree:
        data, step_size = arguments
        gradient, product = pure.linearize(data, params)
        slope = optax.tree.add_scale(gradient, step_size / 2, product(gradient))
        return jax.tree.map(jnp.negative, slope)

    cost = 1 + PRODUCT
    system = smooth.System("modified", velocity, smooth.HIGH_ORDER, smooth.whole, cost, LOOSER)
    arguments = [(problem.data, float(step_size)) for step_size in lanes]
    solutions = smooth.solve_twice(problem, system, ties.start(problem), arguments, progress)
    return _joined(problem, solutions)


def _joined(problem: FlowProblem, solutions: list[smooth.Solution]) -> Flow:
    """The solutions of all step sizes as one flow with an axis of lanes."""
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
