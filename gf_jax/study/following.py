"""The flow beside a run of descent, and its prediction.

Nothing that fails here costs the rest: it is missing, and a doubt says why.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from gf_jax.comparison import WELL_BELOW, FlowComparison, compare_with_flow, precise_distance
from gf_jax.flow import prediction
from gf_jax.flow.deviation import largest_nearby
from gf_jax.flow.flow import Flow, gradient_flow
from gf_jax.flow.limit_flow import limit_flow
from gf_jax.flow.losses import losses_of_runs
from gf_jax.flow.problem import FlowProblem, Progress, Statistics, flow_problem
from gf_jax.optimizers.steps import Optimizer
from gf_jax.program.program import Loss, Program, prepare
from gf_jax.study.apart import apart
from gf_jax.study.contradictions import contradictions
from gf_jax.study.record import DOUBTFUL, Reference, Run
from gf_jax.study.rounding import OF_OTHERS, Rounding, rounding_of
from gf_jax.study.solving import FAILURES, Solve, missing, work_of
from gf_jax.study.stability import past_edge

PyTree = Any
PER_STEP = 3e-4  # error of a step, over that of the solution


class Followed(NamedTuple):
    """What is known of the flow beside a run.

    Attributes:
      reference: the numbers; None if the flow could not be solved.
      flow: the flow, likewise.
      doubts: what is missing or doubtful, or past the edge of stability, in sentences.
      kinks: number of kinks of f.
    """

    reference: Reference | None
    flow: Flow | None
    doubts: tuple[str, ...]
    kinks: int


def follow(
    f: Loss | Program,
    params: PyTree,
    run: Run,
    snapshots: PyTree,
    solve: Solve,
    *,
    predict: bool = True,
    descent: dict[str, Any] | None = None,
) -> Followed:
    """The flow beside a run and the prediction of the run, at the snapshots' times.

    Nothing that fails here costs the rest: it is missing, and a doubt says why.

    Args:
      f: maps parameters to a scalar loss.
      params: the initial point.
      run: of descent from there, of which some lane is finite.
      snapshots: its parameters, leaves of shape (snapshots, lanes, ...).
      solve: calls every solver, and may show its progress.
      predict: whether there is a prediction; without, it is NaN and no work.
      descent: options that the run was made with.
    """
    program, doubts = prepare(f, params), []
    problem = flow_problem(program, params, run.snapshot_times, None)
    kinks = problem.gated.size
    optimizer, batches = (descent or {}).get("optimizer"), (descent or {}).get("batches")
    metrics = run.metrics
    still = not (metrics.gradient_norm[0].any() or metrics.distance_from_init.any())
    if still:
        doubts.append(
            "The start is a critical point: the gradient is zero there, so that neither descent "
            "nor its flow moves."
        )
        flow = _standing(params, run)
        compared = compare_with_flow(snapshots, flow.params, flow.error, run.step_sizes)
        losses = _losses(problem, snapshots, compared, flow, None)
        reference = _reference(run, params, flow, compared, None, None, losses)
        return Followed(reference, flow, tuple(doubts), kinks)
    steps = {"optimizer": optimizer, "batches": batches}
    predict = predict and not (kinks and (optimizer is not None or batches is not None))
    predicted = _predict(program, params, run, steps, solve, doubts) if predict else None
    by_chance = problem if kinks and optimizer is None and batches is None else None
    rounding = rounding_of(program, params, run, snapshots, solve, descent or {}, doubts, by_chance)
    try:
        flow = _flow(program, params, run, optimizer, predicted, kinks, solve)
    except FAILURES as error:
        doubts.append(missing(run.method.flow_name, error))
        return Followed(None, None, tuple(doubts), kinks)
    if not flow.statistics.complete:
        doubts.append(
            "The flow could not be followed to the end: within it f is not finite, or changes "
            "faster than any step resolves."
        )
    if not (kinks or optimizer or batches):
        doubts += past_edge(run)
    moved = None if rounding is None else rounding.moved
    compared = compare_with_flow(snapshots, flow.params, flow.error, run.step_sizes, rounding=moved)
    if moved is not None and _hides(moved[-1], compared.measured[-1], flow.error[-1]):
        doubts.append(
            f"Rounding of gradients may move the runs by {moved[-1].max():.1g}: too much to "
            'measure their distance from the flow; arithmetic="float64" has less of it.'
        )
    if kinks and flow.statistics.complete and optimizer is None and batches is None:
        doubts += apart(problem, run, snapshots, flow.params, compared)
    if predicted is not None:
        doubts += contradictions(run, compared, predicted)
    losses = _losses(problem, snapshots, compared, flow, rounding)
    reference = _reference(run, params, flow, compared, predicted, moved, losses)
    return Followed(reference, flow, tuple(doubts), kinks)


def _predict(
    program: Program,
    params: PyTree,
    run: Run,
    steps: dict[str, Any],
    solve: Solve,
    doubts: list[str],
) -> prediction.Prediction | None:
    """The prediction; None, and a doubt that says why, if there is none that holds."""
    try:
        predicted = solve(
            "prediction",
            lambda tell: prediction.predict(
                *(program, params, run.snapshot_times, run.step_sizes),
                **steps,
                budget=_budget(program, run),
                progress=tell,
            ),
        )
    except FAILURES as error:
        doubts.append(missing("prediction", error))
        return None
    if not predicted.flow.statistics.complete:
        doubts.append(
            "Nothing is predicted: the deviation of descent from its flow was not followed to the "
            "end, with half as many gradients as the runs took; it is stiff, or not finite, or the "
            "gradient of f jumps where no kink was seen, as it does with sorting."
        )
        return None
    if predicted.jumps or not np.isfinite(predicted.to_flow).all():
        doubts.append(
            "Nothing is predicted: the gradient of f jumps where no kink was seen, as it does "
            "with sorting, gathers by argmax and derivatives of one's own, or the deviation is not "
            "finite."
        )
        return None
    if predicted.slides:
        doubts.append(
            "Nothing is predicted: a run or the flow slides along a kink, both sides of which lead "
            "to it, or crosses it again and again."
        )
        return None
    doubtful = predicted.to_flow_error[-1] > DOUBTFUL * predicted.to_flow[-1]
    if doubtful.any():
        doubts.append(
            f"The predicted distances from the flow of {int(doubtful.sum())} of {len(doubtful)} "
            "runs are known to no better than ten percent at the last time."
        )
    return predicted


def _flow(
    program: Program,
    params: PyTree,
    run: Run,
    optimizer: Optimizer | None,
    predicted: prediction.Prediction | None,
    kinks: int,
    solve: Solve,
) -> Flow:
    """The flow: with kinks, as accurate as it takes to tell the runs from it.

    That is at no more than half the work of the runs. A smooth flow is far more accurate at far
    less.
    """
    gap = _smallest_gap(run) if predicted is None else float(predicted.to_flow[-1].min())
    smallest = gap / WELL_BELOW
    tolerance = smallest if kinks and 0 < smallest < np.inf else None
    if tolerance is not None and optimizer is not None:
        tolerance *= PER_STEP  # the limit of an optimiser is not followed by macro steps

    def follow(tell: Progress | None) -> Flow:
        options: dict[str, Any] = {
            "tolerance": tolerance,
            "budget": _budget(program, run),
            "progress": tell,
        }
        problem = program, params, run.snapshot_times
        if optimizer is None:
            return gradient_flow(*problem, **options)
        return limit_flow(*problem, optimizer, step_size=run.step_sizes[-1], **options)

    return solve(run.method.flow_name, follow)


def _losses(
    problem: FlowProblem,
    snapshots: PyTree,
    compared: FlowComparison,
    flow: Flow,
    rounding: Rounding | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Losses of the snapshots in float64, where the device has it, and their errors.

    Where a lane was run in float64 too, what rounding did to its loss is seen there. It is taken
    for as much in other lanes as ``OF_OTHERS`` has it, or as kinks may have done. Else it is what
    an error of params may do. Both have the shape (snapshots, lanes).
    """

    def of_lane(lane: int) -> PyTree:
        return jax.tree.map(lambda leaf: np.asarray(leaf)[:, lane], snapshots)

    lanes = map(of_lane, range(compared.distance.shape[1]))
    if rounding is None:
        return losses_of_runs(problem, flow.params, lanes, compared.resolution)
    of_flow = np.broadcast_to(flow.error[:, None], compared.distance.shape)
    losses, errors = losses_of_runs(problem, flow.params, lanes, of_flow)
    known = rounding.loss.shape[1]
    with np.errstate(invalid="ignore", over="ignore"):  # of lanes that diverged
        rounded = np.abs(losses[:, :known] - rounding.loss)
    seen = largest_nearby(flow.times, rounded)
    others = np.maximum(OF_OTHERS * seen[:, :1], rounding.loss_by_chance)
    return losses, errors + np.concatenate([seen, others], axis=1)


def _standing(params: PyTree, run: Run) -> Flow:
    """The flow from a critical point."""
    times = run.snapshot_times
    stack = jax.tree.map(
        lambda leaf: np.repeat(np.asarray(leaf, np.float64)[None], len(times), axis=0), params
    )
    loss = np.full(len(times), float(run.metrics.loss[0, 0]))
    return Flow(times, stack, loss, np.zeros(len(times)), Statistics(0, 0, 1, True, 0))


def _budget(program: Program, run: Run) -> int:
    """Gradients that the flow may take: half of those of the runs, and what costs nothing."""
    return max(program.pure.cheap, work_of(run) // 2)


def _reference(
    run: Run,
    params: PyTree,
    flow: Flow,
    compared: FlowComparison,
    predicted: prediction.Prediction | None,
    rounding: np.ndarray | None,
    losses: tuple[np.ndarray, np.ndarray],
) -> Reference:
    unknown = np.full(compared.distance.shape, np.nan)
    took = None if predicted is None else predicted.flow.statistics
    return Reference(
        loss=flow.loss,
        distance_from_init=precise_distance(flow.params, jax.tree.map(np.asarray, params), 1),
        flow_error=flow.error,
        distance_to_flow=compared.distance,
        resolution=compared.resolution,
        measured=compared.measured,
        predicted_to_flow=unknown if predicted is None else predicted.to_flow,
        predicted_to_base=unknown if predicted is None else predicted.to_base,
        order=compared.order,
        flow_evaluations=flow.statistics.gradient_evaluations,
        prediction_evaluations=took.gradient_evaluations if took else 0,
        checking_evaluations=flow.statistics.checking_evaluations
        + (took.checking_evaluations if took else 0),
        predicted_error=unknown if predicted is None else predicted.to_flow_error,
        rounding=np.zeros_like(unknown) if rounding is None else rounding + np.zeros_like(unknown),
        run_loss=losses[0],
        run_loss_error=losses[1],
        predicted_loss=unknown if predicted is None else predicted.loss,
        predicted_loss_error=unknown if predicted is None else predicted.loss_error,
    )


def _hides(rounding: np.ndarray, measured: np.ndarray, flow_error: float) -> bool:
    """Whether it is rounding that keeps a distance from being measured."""
    return bool((~measured & (rounding > flow_error)).any())


def _smallest_gap(run: Run) -> float:
    """Distance from the flow of the run with the smallest step, as its gap to the base tells it."""
    gap, ratio = run.metrics.distance_to_base[-1, -1], run.ratios[-1]
    return float(gap) / (ratio - 1) if ratio > 1 else 0.0  # proportional to the step size
