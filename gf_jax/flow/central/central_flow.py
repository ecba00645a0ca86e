"""The central flow: what descent follows on average past the edge of stability.

Where the largest curvature reaches 2 / s descent of step size s oscillates along its eigenvectors
and does not follow −∇f any more. Its average follows

    w' = −F,   F = ∇f + ½ ∇⟨∇²f, Σ⟩,   Σ = U X Uᵀ,

U the eigenvectors at the edge and Σ the covariance of the oscillation, which is as large as it has
to be for no eigenvalue to exceed 2 / s: X ⪰ 0 is complementary to (2/s) I − Uᵀ∇²fU ⪰ 0.

Descent that alternates between c + a and c − a moves by exactly −s F(c) a step, up to fourth
derivatives. So its average c is a sequence of steps of Euler's method for the central flow, as
descent below the edge is for gradient flow, and stays within O(s²) of

    w' = −F + (s/2) dF/dt,   dF/dt along the flow,

which is the modified flow of descent where Σ is 0. That is one description for both sides of the
edge.

Of optimisers such as RMSProp params and memory of squares are averaged together, and the edge is
that of their own metric, see ``gf_jax.flow.central.scaling``.

Source: Cohen, Damian et al., Understanding Optimization in Deep Learning with Central Flows, ICLR
2025. The term of order s at the edge is derived here.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float

from gf_jax.comparison import precise_distance
from gf_jax.flow.central.derivatives import Derivatives
from gf_jax.flow.central.following import Limits, Solve, follow
from gf_jax.flow.central.result import COMPLETE, CentralFlow
from gf_jax.flow.central.scaling import scaling_of
from gf_jax.flow.central.steps import Setting
from gf_jax.flow.flow import check_twice, checked_step_sizes
from gf_jax.flow.problem import FlowProblem, Progress, Statistics, flow_problem, part
from gf_jax.flow.smooth import SAFETY
from gf_jax.optimizers.steps import Optimizer
from gf_jax.program.program import Loss, Program

PyTree = Any

TOLERANCE = 1e-4
LOOSER = 10.0
# The difference of both solves over the error of the finer, of second order in steps of third.
SHARE = LOOSER ** (2 / 3) - 1


def central_flow(
    f: Loss | Program,
    params: PyTree,
    times: Float[ArrayLike, " times"],
    step_size: float,
    *,
    optimizer: Optimizer | None = None,
    first_steps: int = 0,
    corrected: bool = True,
    most_held: int = 8,
    tolerance: float | None = None,
    budget: int | None = None,
    progress: Progress | None = None,
) -> CentralFlow:
    """The central flow of descent with a step size, at all times in one solve.

    It is followed in adaptive steps by a stabilised method of second order; steps are shortened
    until one no longer than the step size meets an eigenvalue that reaches or leaves the edge,
    within which its time is interpolated. Third derivatives are taken along eigenvectors; no
    Hessian is formed. With k eigenvalues near the edge a step takes k (k + 1) / 2 such
    derivatives, of five gradients each, two or three times, and as many vectors of all parameters
    are kept.

    Args:
      f: maps parameters to a scalar loss without kinks; differentiable three times by JAX.
      params: initial point, a pytree whose floating-point arrays move, see ``compare``.
      times: ascending times from 0, the last above 0; time is iteration * step_size.
      step_size: of descent, or of the optimiser.
      optimizer: maps a step size to an optax transformation whose steps scale every entry of the
        gradient by a memory of its square, such as RMSProp; None is plain descent.
      first_steps: steps that are made as they are before the flow begins, since a memory that
        begins at zero makes steps that no flow describes.
      corrected: whether the first order of descent's deviation counts, (s/2) dF/dt, below the
        edge and at it; False is the central flow as published.
      most_held: eigenvalues at the edge beyond which the flow is given up.
      tolerance: largest Euclidean error of a step; None is 1e-4.
      budget: gradients beyond which a solve is given up.
      progress: is called now and then with the share of the work done.

    Returns:
      The flow, with an error from a second solve at ten times the tolerance. Where it does not
      apply ``reason`` says so, and what was not reached is NaN.

    Raises:
      ValueError: as ``gradient_flow``, on an f with kinks, whose third derivatives vanish, on
        an optimiser that does anything else, such as momentum, and on numbers that are not
        accepted.

    Source: Cohen, Damian et al., ICLR 2025.

    Example:
      >>> def f(w):  # sharpness w[1], which grows until it meets the edge
      ...     return w[1] * w[0] ** 2 / 2 + (w[1] - 25) ** 2 / 200
      >>> flow = gf_jax.central_flow(f, jnp.array([0.3, 19.9]), [5.0, 20.0], 0.1)
      >>> (flow.average_loss - flow.loss).round(2)  # what the oscillation adds
      array([1., 1.])
      >>> round(flow.past_edge, 1)
      2.0
    """
    for name, value, least in (("most_held", most_held, 1), ("first_steps", first_steps, 0)):
        if value < least:
            accepted = "positive" if least else "non-negative"
            raise ValueError(f"{name}: got {value}; accepted is a {accepted} integer")
    (step_size,) = checked_step_sizes(step_size).tolist()
    problem = flow_problem(f, params, times, tolerance)
    _check(problem, first_steps * step_size)
    fine = tolerance or TOLERANCE
    limits = Limits(most_held, np.inf if budget is None else budget)
    with problem.numbers.context():
        scaling = scaling_of(optimizer, step_size, problem.params)
        derivatives = Derivatives(problem, scaling, step_size)
        rough, found = (
            follow(
                problem.times,
                Setting(derivatives, step_size, corrected, accepted),
                *(first_steps, limits, part(progress, begin, 0.5)),
            )
            for accepted, begin in ((fine * LOOSER, 0.0), (fine, 0.5))
        )
        return _told(problem, derivatives, most_held, found, rough)


def _check(problem: FlowProblem, begins: float) -> None:
    """Raises ValueError on kinks, and on times before the flow begins."""
    if problem.has_kinks:
        raise ValueError(
            "f: has kinks, whose third derivatives are not seen, so that nothing would hold the "
            "sharpness; accepted is a smooth f, such as of a network with tanh, GELU or SiLU"
        )
    check_twice(problem)
    if problem.times[0] < begins:
        raise ValueError(
            f"times: the first is {problem.times[0]:g}, before first_steps end, at {begins:g}; "
            "accepted are times from there on, or fewer first_steps"
        )


def _told(
    problem: FlowProblem, derivatives: Derivatives, most_held: int, found: Solve, rough: Solve
) -> CentralFlow:
    """The result, with NaN at the times that were not reached."""
    missing = len(problem.times) - len(found.outputs)
    size = derivatives.size

    def column(name: str, *shape: int) -> np.ndarray:
        known = [np.asarray(getattr(each, name), float) for each in found.outputs]
        return np.stack([*known, *[np.full(shape, np.nan)] * missing])

    points = column("point", size)
    params = jax.tree.map(np.asarray, jax.vmap(derivatives.unravel)(jnp.asarray(points)))
    loss = problem.losses(params, stack_axes=1)
    again = [each.point for each in rough.outputs[: len(points)]]
    again += [np.full(size, np.nan)] * (len(points) - len(again))
    return CentralFlow(
        times=problem.times,
        params=params,
        loss=loss,
        average_loss=loss + column("excess"),
        average_squared_gradient=column("average_squared_gradient"),
        lambda_max=column("lambda_max"),
        lambda_min=column("lambda_min"),
        variances=column("variances", most_held),
        axes=column("axes", most_held, size),
        held=np.nan_to_num(column("held")).astype(int),
        event_times=np.array([time for time, _ in found.events], float),
        event_held=np.array([held for _, held in found.events], int),
        error=SAFETY / SHARE * precise_distance(points, np.stack(again), 1),
        residual=found.residual,
        ended=found.ended,
        statistics=Statistics(
            found.steps,
            found.rejected,
            found.evaluations,
            found.ended == COMPLETE,
            rough.evaluations,
        ),
    )
