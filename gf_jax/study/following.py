"""The flow beside a run of descent, its prediction, and what rounding did to the run.

Nothing that fails here costs the rest: it is missing, and a doubt says why.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import numpy as np

from gf_jax.comparison import WELL_BELOW, FlowComparison, compare_with_flow, precise_distance
from gf_jax.descent.descent import descent_segments, join
from gf_jax.descent.schedule import Schedule
from gf_jax.descent.segments import Trajectory
from gf_jax.flow import prediction
from gf_jax.flow.deviation import largest_nearby
from gf_jax.flow.flow import Flow, gradient_flow
from gf_jax.flow.limit_flow import limit_flow
from gf_jax.flow.losses import losses_of_runs
from gf_jax.flow.problem import FlowProblem, Progress, Statistics, flow_problem
from gf_jax.optimizers.steps import Optimizer
from gf_jax.program.arithmetic import flow_arithmetic
from gf_jax.program.program import Loss, Program, prepare
from gf_jax.study.record import DOUBTFUL, Reference, Run, clean_label

PyTree = Any
Solution = TypeVar("Solution")

# What the user's f, JAX and the solvers may raise; all else, such as a full disk, is not of f.
FAILURES = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
OF_OTHERS = 2.0  # rounding of the other runs, over that of the base run
PER_STEP = 1e-3  # error of a step, over that of the solution
LONG = 1000  # iterations, beyond which progress is told in between
SAME = 0.01  # relative difference between two precisions at the start that may be rounding


class Solve(Protocol):
    """Calls a solver, which takes a function to be told its progress, under a label."""

    def __call__(self, label: str, solver: Callable[[Progress | None], Solution], /) -> Solution:
        """Its solution."""


def descend(
    f: Loss | Program,
    params: PyTree,
    schedule: Schedule,
    tell: Progress | None,
    options: dict[str, Any],
) -> Trajectory:
    """Descent, up to the segment in which the last lane diverges."""
    parts: list[Trajectory] = []
    for part in descent_segments(f, params, schedule, **options):
        parts.append(part)
        if tell is not None:
            tell(part.iterations[-1] / schedule.iterations)
        if not np.isfinite(part.metrics.loss[-1]).any():
            break
    return join(parts)


class Rounding(NamedTuple):
    """What rounding did to the runs, as runs in float64 tell it.

    Attributes:
      moved: how far it has moved every lane, shape (snapshots, lanes).
      loss: losses of the lanes that were run in float64, the first ones; shape (snapshots, those).
    """

    moved: np.ndarray
    loss: np.ndarray


class Followed(NamedTuple):
    """What is known of the flow beside a run.

    Attributes:
      reference: the numbers; None if the flow could not be solved.
      flow: the flow, likewise.
      doubts: what is missing or doubtful, in sentences.
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
    rounding = _rounding(program, params, run, snapshots, solve, descent or {}, doubts)
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
    moved = None if rounding is None else rounding.moved
    compared = compare_with_flow(snapshots, flow.params, flow.error, run.step_sizes, rounding=moved)
    if moved is not None and _hides(moved[-1], compared.measured[-1], flow.error[-1]):
        doubts.append(
            f"Rounding of gradients moves the runs by about {moved[-1].max():.1g}: too much to "
            'measure their distance from the flow; arithmetic="float64" has less of it.'
        )
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


def _rounding(
    program: Program,
    params: PyTree,
    run: Run,
    snapshots: PyTree,
    solve: Solve,
    descent: dict[str, Any],
    doubts: list[str],
) -> Rounding | None:
    """How far rounding has moved the runs, and their losses without it; None in float64.

    All runs are made once more in float64, where that costs next to nothing or updates are not
    compensated, so that rounding grows with the number of steps. Else the base run is; rounding
    of the others is taken for twice as much, as smaller steps may be more sensitive to it.
    """
    dtypes = {np.asarray(leaf).dtype for leaf in jax.tree.leaves(snapshots)}
    if dtypes == {np.dtype(np.float64)}:
        return None
    exact_numbers = flow_arithmetic()
    if exact_numbers.dtype != "float64" or exact_numbers.on_host:
        # Whole runs on the host would take far longer than they did.
        doubts.append("What rounding does to the gradients is not known, without float64.")
        return None
    compensated = descent.get("arithmetic", "compensated") == "compensated"
    base_alone = compensated and _work(run) > program.pure.cheap
    options: dict[str, Any] = {"arithmetic": "float64"}
    options |= {key: descent[key] for key in ("optimizer", "batches") if key in descent}
    schedule = Schedule(
        run.step_size,
        () if base_alone else run.ratios,
        int(run.iterations[-1]),
        tuple(run.snapshot_iterations.tolist()),
        None if len(run.iterations) > LONG else 1,
    )
    try:
        exact = solve("rounding", lambda tell: descend(program, params, schedule, tell, options))
    except FAILURES as error:
        doubts.append(missing("rounding of gradients", error))
        return None
    _check_same(run, exact, doubts)
    lanes = len(schedule.lanes)
    made = jax.tree.map(lambda leaf: np.asarray(leaf)[:, :lanes], snapshots)
    count = min(len(exact.snapshot_iterations), len(run.snapshot_iterations))
    moved = precise_distance(
        jax.tree.map(lambda leaf: leaf[:count], made),
        jax.tree.map(lambda leaf: leaf[:count], exact.snapshots),
        2,
    )
    whole = np.full((len(run.snapshot_iterations), len(run.ratios)), np.nan)
    whole[:count] = moved
    if base_alone:
        whole[:, 1:] *= OF_OTHERS
    loss = np.full((len(whole), lanes), np.nan)
    at_snapshots = np.isin(exact.iterations, exact.snapshot_iterations)
    loss[:count] = exact.metrics.loss[at_snapshots][:count]
    return Rounding(whole, loss)


def _check_same(run: Run, exact: Trajectory, doubts: list[str]) -> None:
    """Doubts that f is the same in both precisions, if it is not at the start."""
    for name in ("loss", "gradient_norm"):
        narrow, wide = (
            float(getattr(metrics, name)[0, 0]) for metrics in (run.metrics, exact.metrics)
        )
        if abs(narrow - wide) > SAME * abs(wide) + float(np.finfo(np.float32).tiny):
            what = "f itself" if name == "loss" else "the norm of its gradient"
            doubts.append(
                f"At the start {what} is {narrow:.6g} in the precision of the parameters and "
                f'{wide:.6g} in float64: rounding hides it; take arithmetic="float64".'
            )


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
    for as much in other lanes as ``OF_OTHERS`` has it. Else it is what an error of params may do.
    Both have the shape (snapshots, lanes).
    """

    def of_lane(lane: int) -> PyTree:
        return jax.tree.map(lambda leaf: np.asarray(leaf)[:, lane].astype(np.float64), snapshots)

    lanes = map(of_lane, range(compared.distance.shape[1]))
    if rounding is None:
        return losses_of_runs(problem, flow.params, lanes, compared.resolution)
    of_flow = np.broadcast_to(flow.error[:, None], compared.distance.shape)
    losses, errors = losses_of_runs(problem, flow.params, lanes, of_flow)
    known = rounding.loss.shape[1]
    with np.errstate(invalid="ignore", over="ignore"):  # of lanes that diverged
        rounded = np.abs(losses[:, :known] - rounding.loss)
    seen = largest_nearby(flow.times, rounded)
    others = np.repeat(OF_OTHERS * seen[:, :1], losses.shape[1] - known, axis=1)
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
    return max(program.pure.cheap, _work(run) // 2)


def _work(run: Run) -> int:
    """Gradients that the runs took."""
    return int(run.iterations[-1]) * sum(run.ratios)


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


def missing(what: str, error: Exception) -> str:
    """A doubt: what there is not, and the first line of why."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"There is no {what}: {clean_label(reason)}."


def _hides(rounding: np.ndarray, measured: np.ndarray, flow_error: float) -> bool:
    """Whether it is rounding that keeps a distance from being measured."""
    return bool((~measured & (rounding > flow_error)).any())


def _smallest_gap(run: Run) -> float:
    """Distance from the flow of the run with the smallest step, as its gap to the base tells it."""
    gap, ratio = run.metrics.distance_to_base[-1, -1], run.ratios[-1]
    return float(gap) / (ratio - 1) if ratio > 1 else 0.0  # proportional to the step size
