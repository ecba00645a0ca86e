"""A whole study in one call: does descent on a loss stay near its gradient flow?"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import jax
import numpy as np

from gf_jax import prediction, spectrum, summary, table
from gf_jax.arithmetic import check_params, flow_arithmetic
from gf_jax.comparison import WELL_BELOW, FlowComparison, compare_with_flow, precise_distance
from gf_jax.descent import descent_segments, join
from gf_jax.flow import Flow, gradient_flow
from gf_jax.flow_problem import Progress, Statistics, cheap, flow_problem
from gf_jax.method import Method
from gf_jax.program import Loss, Program, prepare
from gf_jax.record import Reference, Run, clean_label
from gf_jax.schedule import Schedule, whole_numbers
from gf_jax.segments import Trajectory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PyTree = Any
Tell = Callable[[str, float], None]
Solution = TypeVar("Solution")

# What the user's f, JAX and the solvers may raise; all else, such as a full disk, is not of f.
FAILURES = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
OF_DESCENT = ("arithmetic", "sharding", "check_memory")
OF_OTHERS = 2.0  # rounding of the other runs, over that of the base run
DOUBTFUL = 0.1  # relative error of a prediction
LONG = 1000  # iterations, beyond which progress is told in between
SAME = 0.01  # relative difference between two precisions at the start that may be rounding

# Options of descent that a comparison has not.
ELSEWHERE = {
    "starts": "one starting point",
    "batches": "all examples",
    "transformation": "momentum=β",
}


class Solve(Protocol):
    """Calls a solver, which takes a function to be told its progress, under a label."""

    def __call__(self, label: str, solver: Callable[[Progress | None], Solution], /) -> Solution:
        """Its solution."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """What ``compare`` found, as NumPy arrays. It prints as a table with a verdict.

    Attributes:
      run: losses, distances and gradient norms of all runs at every base iteration, and in
        ``run.reference`` the flow's losses, distances to it, and predictions.
      snapshots: parameters of all runs, leaves of shape (snapshots, lanes, ...).
      flow: parameters of the flow, leaves of shape (snapshots, ...); None if left out.
      curvature: of f on the flow, at the snapshots; None if left out.
      kinks: number of kinks of f; 0 means that f was taken as smooth.

    After ``load``, the pytrees are dictionaries from path names to arrays.

    Example:
      >>> def f(w):
      ...     return jnp.sum((w**2 - 1) ** 2)
      >>> w = jnp.array([0.1, 1.5])
      >>> found = gf_jax.compare(f, w, step_size=0.01, ratios=(2,), iterations=10)
      >>> found.distance.shape, float(found.order[-1].round(2))
      ((10, 2), 1.04)
      >>> figure = found.plot()  # figure.savefig("comparison.png") writes it
    """

    run: Run
    snapshots: PyTree
    flow: PyTree = None
    curvature: spectrum.Curvature | None = None
    kinks: int = 0

    @property
    def times(self) -> np.ndarray:
        """Times of the snapshots, iteration * step_size."""
        return self.run.snapshot_times

    @property
    def step_sizes(self) -> np.ndarray:
        """Step size of every lane, the largest first."""
        return self.run.step_sizes

    @property
    def distance(self) -> np.ndarray:
        """Distance of every lane from the flow, shape (snapshots, lanes)."""
        return self._reference.distance_to_flow

    @property
    def resolution(self) -> np.ndarray:
        """Error of that distance, shape (snapshots, lanes)."""
        return self._reference.resolution

    @property
    def predicted(self) -> np.ndarray:
        """That distance as predicted, shape (snapshots, lanes); NaN if left out."""
        return self._reference.predicted_to_flow

    @property
    def predicted_error(self) -> np.ndarray:
        """Estimated error of the prediction, shape (snapshots, lanes); NaN where nothing tells."""
        error = self._reference.predicted_error
        return np.full_like(self.predicted, np.nan) if error is None else error

    @property
    def doubts(self) -> tuple[str, ...]:
        """What is missing or doubtful, and why, in sentences; empty where nothing is."""
        return self.run.doubts

    @property
    def order(self) -> np.ndarray:
        """Slope of log distance against log step size, shape (snapshots,)."""
        return self._reference.order

    @property
    def summary(self) -> dict[str, Any]:
        """The numbers of the table at the last time, as JSON has them."""
        return summary.summarise(self.run)

    @property
    def verdict(self) -> str:
        """Whether descent stays near its flow, in words and numbers."""
        return " ".join(summary.verdict(self.summary))

    def plot(self) -> "Figure":
        """Losses, distances and predictions as a Matplotlib figure."""
        from gf_jax import drawing  # Matplotlib is slow to import, and seldom needed

        return drawing.draw(self.run)

    def save(self, path: str | Path) -> None:
        """Writes everything into one npz file, which ``gf_jax.load`` reads.

        Raises:
          ValueError: if the name does not end with ``.npz``.
          OSError: if it cannot be written.
        """
        from gf_jax import saving  # which knows this class

        saving.save(self, path)

    def __str__(self) -> str:
        return table.as_text(table.of_run(self.summary, self.kinks))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return table.as_html(table.of_run(self.summary, self.kinks))

    @property
    def _reference(self) -> Reference:
        if self.run.reference is None:
            raise ValueError("flow: was left out; compare with flow=True")
        return self.run.reference


def compare(
    f: Loss | Program,
    params: PyTree,
    *,
    step_size: float,
    iterations: int,
    ratios: int | Sequence[int] = (2, 5, 10),
    snapshots: int | Sequence[int] | None = None,
    flow: bool = True,
    predict: bool = True,
    curvature: bool = False,
    momentum: float = 0.0,
    nesterov: bool = False,
    label: str = "loss",
    progress: Tell | None = None,
    **descent: Any,
) -> Comparison:
    """Runs descent at several step sizes, follows the flow, and compares them.

    Args:
      f: maps parameters to a scalar loss; differentiable by JAX, closed over data of any form.
      params: initial point, any pytree of floating-point arrays. Parts of a model that are
        not are split off before: ``eqx.partition(model, eqx.is_inexact_array)``,
        ``nnx.split(model, nnx.Param, ...)``.
      step_size: of the base run; time = iteration * step_size.
      iterations: of the base run.
      ratios: positive integers r, each of which adds a run with step size step_size/r.
      snapshots: base iterations at which runs, flow and predictions are compared and
        parameters kept, see ``Schedule``; by default 100, evenly spaced.
      flow: whether the flow is solved; without it there are no predictions either.
      predict: whether the distances are predicted, too.
      curvature: whether both ends of the Hessian's spectrum are found at every snapshot of
        the flow: about 40 Hessian-vector products for each.
      momentum: the decay β of past gradients, from 0 to below 1, of heavy-ball descent, whose
        time per iteration is step_size / (1 - β), see ``gf_jax.heavy_ball``.
      nesterov: whether momentum is Nesterov's.
      label: what table and figure call the model.
      progress: is called now and then with what is done and the share of it that is done.
      descent: options of ``gradient_descent``, such as ``arithmetic="float64"``.

    Raises:
      ValueError: on values that are not accepted, as ``gradient_descent`` and
        ``gradient_flow``; on ``starts``, ``batches`` and ``transformation``, of which a
        comparison has one, all examples, and momentum.
      FloatingPointError: if the compiler cancels the compensation of descent.

    Example:
      >>> def f(w):
      ...     return jnp.sum((w**2 - 1) ** 2)
      >>> w = jnp.array([0.1, 1.5])
      >>> found = gf_jax.compare(f, w, step_size=0.01, ratios=(2,), iterations=10)
      >>> print(found)
      loss, 10 iterations to time 0.1
      <BLANKLINE>
      step size     loss      from the flow  predicted  from largest step  predicted
           0.01  1.04904  1.290e-02 ± 4e-08  1.285e-02          0.000e+00  0.000e+00
          0.005  1.05813  6.275e-03 ± 4e-08  6.270e-03          6.622e-03  6.580e-03
      <BLANKLINE>
      Order of the distance from the flow in the step size: 1.039.
      Verdict: descent with step size 0.01 stays in sight of its gradient flow...
    """
    _check_options(descent)
    method = Method(momentum, nesterov)
    if method.record is not None:
        descent["transformation"] = method.record.transformation
    if curvature and not flow:
        raise ValueError("curvature: is found on the flow, which flow=False leaves out")

    def solve(what: str, solver: Callable[[Progress | None], Any]) -> Any:
        return solver(None if progress is None else lambda share: progress(what, float(share)))

    schedule = Schedule(
        step_size,
        whole_numbers("ratios", ratios),
        iterations,
        tuple(snapshots) if isinstance(snapshots, Iterable) else snapshots,
        descent.pop("segments", None),
    )
    check_params(params)
    if not all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(params)):
        raise ValueError("params: not all numbers are finite; accepted is a finite initial point")
    program = prepare(f, params)
    trajectory: Trajectory = solve(
        "descent", lambda tell: _descend(program, params, schedule, tell, descent)
    )
    run = Run(
        network_label=clean_label(label) + method.words,
        data_label="",
        step_size=float(step_size),
        ratios=schedule.lanes,
        iterations=trajectory.iterations,
        metrics=trajectory.metrics,
        snapshot_iterations=trajectory.snapshot_iterations,
        loss_unit="loss",
        method=method,
    )
    _check_start(run)
    if not flow or not run.arrived:
        return Comparison(run, trajectory.snapshots)
    followed = follow(
        program, params, run, trajectory.snapshots, solve, predict=predict, descent=descent
    )
    doubts, found = list(followed.doubts), None
    if curvature and followed.flow is not None:
        try:
            stack = followed.flow.params
            found = solve(
                "curvature", lambda tell: spectrum.curvature(program, stack, progress=tell)
            )
        except FAILURES as error:
            doubts.append(_missing("curvature", error))
    run = run._replace(reference=followed.reference, doubts=tuple(doubts))
    path = None if followed.flow is None else followed.flow.params
    return Comparison(run, trajectory.snapshots, path, found, followed.kinks)


def _check_start(run: Run) -> None:
    for what, values in (("it", run.metrics.loss), ("its gradient", run.metrics.gradient_norm)):
        if not np.isfinite(values[0]).all():
            raise ValueError(
                f"f: {what} is not finite at the initial point; accepted is an f that is finite "
                "there, with its gradient"
            )


def _check_options(descent: dict[str, Any]) -> None:
    for name, instead in ELSEWHERE.items():
        if descent.get(name):
            raise ValueError(
                f"{name}: compare takes {instead}; for others take gradient_descent and "
                "compare_with_flow"
            )
    for name in descent:
        if name not in (*OF_DESCENT, *ELSEWHERE, "segments"):
            raise ValueError(
                f"{name}: compare has no such option; accepted of descent are segments, "
                + ", ".join(OF_DESCENT)
            )


def _descend(
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
    kinks = flow_problem(program, params, run.snapshot_times, None).gated.size
    still = not np.asarray(run.metrics.gradient_norm)[0].any()
    if still:
        doubts.append(
            "The start is a critical point: the gradient is zero there, so that neither descent "
            "nor its flow moves."
        )
        flow = _standing(params, run)
        compared = compare_with_flow(snapshots, flow.params, flow.error, run.step_sizes)
        reference = _reference(run, params, flow, compared, None, None)
        return Followed(reference, flow, tuple(doubts), kinks)
    predict = predict and not (kinks and run.method.record is not None)
    predicted = _predict(program, params, run, solve, doubts) if predict else None
    rounding = _rounding(program, params, run, snapshots, solve, descent or {}, doubts)
    try:
        flow = _flow(program, params, run, predicted, kinks, solve)
    except FAILURES as error:
        doubts.append(_missing("gradient flow", error))
        return Followed(None, None, tuple(doubts), kinks)
    if not flow.statistics.complete:
        doubts.append(
            "The flow could not be followed to the end: within it f is not finite, or changes "
            "faster than any step resolves."
        )
    compared = compare_with_flow(
        snapshots, flow.params, flow.error, run.step_sizes, rounding=rounding
    )
    if rounding is not None and _hides(rounding[-1], compared.measured[-1], flow.error[-1]):
        doubts.append(
            f"Rounding of gradients moves the runs by about {rounding[-1].max():.1g}: too much to "
            'measure their distance from the flow; arithmetic="float64" has less of it.'
        )
    reference = _reference(run, params, flow, compared, predicted, rounding)
    return Followed(reference, flow, tuple(doubts), kinks)


def _predict(
    program: Program, params: PyTree, run: Run, solve: Solve, doubts: list[str]
) -> prediction.Prediction | None:
    """The prediction; None, and a doubt that says why, if there is none that holds."""
    try:
        predicted = solve(
            "prediction",
            lambda tell: prediction.predict(
                *(program, params, run.snapshot_times, run.step_sizes),
                momentum=run.method.record,
                budget=_budget(program, run),
                progress=tell,
            ),
        )
    except FAILURES as error:
        doubts.append(_missing("prediction", error))
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
) -> np.ndarray | None:
    """How far rounding has moved the runs, shape (snapshots, lanes); None in float64.

    All runs are made once more in float64, where that costs next to nothing or updates are not
    compensated, so that rounding grows with the number of steps. Else the base run is; rounding
    of the others is taken for twice as much, as smaller steps may be more sensitive to it.
    """
    dtypes = {np.asarray(leaf).dtype for leaf in jax.tree.leaves(snapshots)}
    if dtypes == {np.dtype(np.float64)}:
        return None
    if flow_arithmetic().dtype != "float64":
        doubts.append("What rounding does to the gradients is not known, without float64.")
        return None
    compensated = descent.get("arithmetic", "compensated") == "compensated"
    base_alone = compensated and _work(run) > cheap(program)
    options: dict[str, Any] = {"arithmetic": "float64"}
    options |= {key: descent[key] for key in ("transformation", "batches") if key in descent}
    schedule = Schedule(
        run.step_size,
        () if base_alone else run.ratios,
        int(run.iterations[-1]),
        tuple(run.snapshot_iterations.tolist()),
        None if len(run.iterations) > LONG else 1,
    )
    try:
        exact = solve("rounding", lambda tell: _descend(program, params, schedule, tell, options))
    except FAILURES as error:
        doubts.append(_missing("rounding of gradients", error))
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
    return whole


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
    return solve(
        "gradient flow",
        lambda tell: gradient_flow(
            program,
            params,
            run.snapshot_times,
            tolerance=tolerance,
            budget=_budget(program, run),
            progress=tell,
        ),
    )


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
    return max(cheap(program), _work(run) // 2)


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
    )


def _missing(what: str, error: Exception) -> str:
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
