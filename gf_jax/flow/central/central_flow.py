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

Source: Cohen, Damian et al., Understanding Optimization in Deep Learning with Central Flows, ICLR
2025. The term of order s at the edge is derived here.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float

from gf_jax.comparison import precise_distance
from gf_jax.flow.central import complementarity, eigenvectors, steps
from gf_jax.flow.central.derivatives import Derivatives
from gf_jax.flow.central.result import (
    BUDGET,
    COMPLETE,
    CROWDED,
    STARTED_PAST,
    UNHELD,
    CentralFlow,
)
from gf_jax.flow.central.steps import Fault, Setting, State, Step
from gf_jax.flow.flow import check_twice, checked_step_sizes
from gf_jax.flow.problem import FlowProblem, Progress, Statistics, flow_problem, part
from gf_jax.flow.smooth import SAFETY
from gf_jax.program.program import Loss, Program

PyTree = Any

TOLERANCE = 1e-4
LOOSER = 10.0
# The difference of both solves over the error of the finer, of second order in steps of third.
SHARE = LOOSER ** (2 / 3) - 1
FIRST = 0.5  # step, in step sizes of descent
SHORTEST = 1 / 64  # likewise: no covariance holds the sharpness if none is found then
LOCATED = 1.0  # likewise: length of the step in which an eigenvalue reaches or leaves the edge
SAFE, LEAST, MOST = 0.8, 0.2, 2.5  # of the factor between two steps
LOWEST, MOST_LOWEST = 1e-2, 60  # residual of the smallest eigenvalue over the edge, and products
PAST = 1e-3  # of the edge, by which a start may be past it


class _Output(NamedTuple):
    """What is told of one time."""

    point: np.ndarray
    average_squared_gradient: float
    excess: float  # of the average loss over the loss
    lambda_max: float
    lambda_min: float
    variances: np.ndarray
    axes: np.ndarray
    held: int


class _Solve(NamedTuple):
    """One solve: outputs of the times reached, events, and why it ended."""

    outputs: list[_Output]
    events: list[tuple[float, int]]
    residual: float
    steps: int
    rejected: int
    evaluations: int
    ended: int


def central_flow(
    f: Loss | Program,
    params: PyTree,
    times: Float[ArrayLike, " times"],
    step_size: float,
    *,
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
      step_size: of descent.
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
      ValueError: as ``gradient_flow``, on an f with kinks, whose third derivatives vanish, and
        on numbers that are not accepted.

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
    if most_held < 1:
        raise ValueError(f"most_held: got {most_held}; accepted is a positive integer")
    (step_size,) = checked_step_sizes(step_size).tolist()
    problem = flow_problem(f, params, times, tolerance)
    if problem.has_kinks:
        raise ValueError(
            "f: has kinks, whose third derivatives are not seen, so that nothing would hold the "
            "sharpness; accepted is a smooth f, such as of a network with tanh, GELU or SiLU"
        )
    check_twice(problem)
    fine = tolerance or TOLERANCE
    limits = most_held, (np.inf if budget is None else budget)
    with problem.numbers.context():
        derivatives = Derivatives(problem)
        rough, found = (
            _follow(
                problem.times,
                Setting(derivatives, step_size, corrected, accepted),
                *limits,
                part(progress, begin, 0.5),
            )
            for accepted, begin in ((fine * LOOSER, 0.0), (fine, 0.5))
        )
        return _told(problem, derivatives, most_held, found, rough)


def _follow(
    times: np.ndarray,
    setting: Setting,
    most_held: int,
    budget: float,
    progress: Progress | None,
) -> _Solve:
    """One solve."""
    derivatives, step_size = setting.derivatives, setting.step_size
    before = derivatives.evaluations
    outputs, events = list[_Output](), list[tuple[float, int]]()
    at = steps.begin(setting)
    length, taken, rejected, ended, residual = FIRST * step_size, 0, 0, COMPLETE, 0.0
    fresh = False  # whether the step before had an event
    pending: float | None = None  # length of the step before the time that is told next
    bottom = np.random.default_rng(1).standard_normal((1, len(derivatives.start)))
    if at.found.values[0] > (1 + PAST) * setting.edge:
        ended = STARTED_PAST

    def emit(covariance: np.ndarray) -> None:
        nonlocal bottom
        found = _lowest(setting, at, bottom)
        bottom = found.vectors
        outputs.append(_output(setting, at, covariance, -float(found.values[0]), most_held))

    if ended == COMPLETE and times[0] == 0:
        emit(at.covariance)
    while ended == COMPLETE and at.time < times[-1]:
        target = times[len(outputs) + (pending is not None)]
        rest = target - at.time
        reaches = length >= rest * (1 - 1e-9)
        tried = rest if reaches else min(length, rest / 2 if length > rest / 2 else length)
        step = steps.attempt(setting, at, tried)
        shorter = _shorter(setting, at, step, tried)
        if step.fault is Fault.MORE:
            at = steps.widened(setting, at)
            ended = CROWDED if at.near > most_held else ended
        elif shorter is not None:
            rejected, length = rejected + 1, shorter
            unheld = step.fault is Fault.SHORTER and length < SHORTEST * step_size
            ended = UNHELD if unheld else ended
        else:
            taken, residual = taken + 1, max(residual, step.found.residual)
            if pending is not None:
                # X is that of the middle of a step, unless something happened within.
                share = pending / (pending + tried)
                share = 0.0 if step.rank != at.rank else 1.0 if fresh else share
                emit(share * step.covariance + (1 - share) * at.covariance)
                pending = None
            fresh = step.rank != at.rank
            if fresh:
                events.append((at.time + tried * _share(setting, at, step), step.rank))
            at = steps.following(setting, at, step, target if reaches else at.time + tried)
            if reaches:
                pending = tried
            ended = CROWDED if at.near > most_held else ended
            grown = tried * float(np.clip(SAFE * max(step.size, 1e-9) ** (-1 / 3), LEAST, MOST))
            length = min(max(grown, length if reaches else 0.0), steps.longest(setting))
            if progress is not None:
                progress(at.time / times[-1])
        if derivatives.evaluations - before > budget:
            ended = BUDGET
    if pending is not None:
        emit(at.covariance)
    evaluations = derivatives.evaluations - before
    return _Solve(outputs, events, residual, taken, rejected, evaluations, ended)


def _shorter(setting: Setting, at: State, step: Step, length: float) -> float | None:
    """The length with which a step is to be tried again; None if it is accepted."""
    if step.fault is not Fault.NONE:
        return length / 2
    if step.size > 1:
        return length * max(LEAST, SAFE * step.size ** (-1 / 3))
    located = LOCATED * setting.step_size
    if step.rank == at.rank or length <= located * (1 + 1e-9):
        return None
    share = _share(setting, at, step)
    return max(located, length * float(np.clip(share, 0.1, 0.9)))


def _share(setting: Setting, at: State, step: Step) -> float:
    """The share of a step after which its event takes place, interpolated."""
    if step.rank < at.rank:
        return 0.5
    gap = max(setting.edge - float(at.found.values[at.rank]), 0.0)
    return gap / (gap + step.free) if gap + step.free > 0 else 0.0


def _lowest(setting: Setting, at: State, near: np.ndarray) -> eigenvectors.Eigenpairs:
    """The smallest eigenvalue, with its sign changed."""
    derivatives = setting.derivatives
    return eigenvectors.largest(
        lambda block: -derivatives.products(at.point, block),
        *(near, 1, LOWEST * setting.edge, MOST_LOWEST),
    )


def _output(
    setting: Setting, at: State, covariance: np.ndarray, lowest: float, most: int
) -> _Output:
    """What is told of a state, with the covariance of the oscillation in its vectors."""
    values, vectors = np.linalg.eigh(covariance)
    order = np.argsort(values)[::-1][:most]
    values, vectors = np.maximum(values[order], 0), vectors[:, order]
    variances, axes = np.zeros(most), np.zeros((most, len(at.point)))
    kept = values > 0
    variances[: kept.sum()], axes[: kept.sum()] = values[kept], vectors[:, kept].T @ at.vectors
    force = complementarity.vector(covariance) @ at.gradients / 2
    whole = setting.derivatives.gradient(at.point) + force
    curvatures = at.found.values[: at.near]
    spread = np.diag(covariance)
    return _Output(
        point=at.point,
        average_squared_gradient=float(whole @ whole + spread @ curvatures**2),
        excess=float(spread @ curvatures / 2),
        lambda_max=float(at.found.values[0]),
        lambda_min=lowest,
        variances=variances,
        axes=axes,
        held=at.rank,
    )


def _told(
    problem: FlowProblem, derivatives: Derivatives, most_held: int, found: _Solve, rough: _Solve
) -> CentralFlow:
    """The result, with NaN at the times that were not reached."""
    missing = len(problem.times) - len(found.outputs)
    size = len(derivatives.start)

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
