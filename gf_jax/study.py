"""A whole study in one call: does descent on a loss stay near its gradient flow?"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import jax
import numpy as np

from gf_jax import prediction, spectrum, summary, table
from gf_jax.comparison import WELL_BELOW, compare_with_flow
from gf_jax.descent import descent_segments, join
from gf_jax.flow import Flow, gradient_flow, precise_distance
from gf_jax.flow_problem import Progress, flow_problem
from gf_jax.method import Method
from gf_jax.record import Reference, Run, clean_label
from gf_jax.schedule import Schedule
from gf_jax.segments import Trajectory
from gf_jax.tracing import Loss

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PyTree = Any
Tell = Callable[[str, float], None]
Solution = TypeVar("Solution")

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
    f: Loss,
    params: PyTree,
    *,
    step_size: float,
    iterations: int,
    ratios: Sequence[int] = (2, 5, 10),
    snapshots: int | tuple[int, ...] | None = None,
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
           0.01  1.04904  1.290e-02 ± 3e-08  1.278e-02           0.000e+00  0.000e+00
          0.005  1.05813  6.275e-03 ± 3e-08  6.251e-03           6.622e-03  6.534e-03
      <BLANKLINE>
      Order of the distance from the flow in the step size: 1.039.
      Verdict: descent with step size 0.01 stays in sight of its gradient flow...
    """
    for name, instead in ELSEWHERE.items():
        if descent.get(name):
            raise ValueError(
                f"{name}: compare takes {instead}; for others take gradient_descent and "
                "compare_with_flow"
            )
    method = Method(momentum, nesterov)
    if method.record is not None:
        descent["transformation"] = method.record.transformation
    if curvature and not flow:
        raise ValueError("curvature: is found on the flow, which flow=False leaves out")

    def solve(what: str, solver: Callable[[Progress | None], Any]) -> Any:
        return solver(None if progress is None else lambda share: progress(what, float(share)))

    schedule = Schedule(step_size, tuple(ratios), iterations, snapshots, None)
    trajectory: Trajectory = solve(
        "descent", lambda tell: _descend(f, params, schedule, tell, descent)
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
    if not flow or not run.arrived:
        return Comparison(run, trajectory.snapshots)
    kinks = flow_problem(f, params, run.snapshot_times, None).gated.size
    predict = predict and not (kinks and momentum)  # where theory has a prediction
    reference, solved = follow(f, params, run, trajectory.snapshots, solve, predict=predict)
    found = None
    if curvature:
        found = solve("curvature", lambda tell: spectrum.curvature(f, solved.params, progress=tell))
    whole = run._replace(reference=reference)
    return Comparison(whole, trajectory.snapshots, solved.params, found, kinks)


def _descend(
    f: Loss, params: PyTree, schedule: Schedule, tell: Progress | None, options: dict[str, Any]
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


def follow(
    f: Loss, params: PyTree, run: Run, snapshots: PyTree, solve: Solve, *, predict: bool = True
) -> tuple[Reference, Flow]:
    """The flow beside a run and the prediction of the run, at the snapshots' times.

    Args:
      f: maps parameters to a scalar loss.
      params: the initial point.
      run: of descent from there, of which some lane is finite.
      snapshots: its parameters, leaves of shape (snapshots, lanes, ...).
      solve: calls every solver, and may show its progress.
      predict: whether there is a prediction; without, it is NaN and no work.

    Returns:
      What is known of the flow beside the run, and the flow.
    """
    times, step_sizes = run.snapshot_times, run.step_sizes
    unknown = np.full((len(times), len(step_sizes)), np.nan)
    to_flow, to_base, took = unknown, unknown, None
    if predict:
        predicted = solve(
            "prediction",
            lambda tell: prediction.predict(
                *(f, params, times, step_sizes), momentum=run.method.record, progress=tell
            ),
        )
        to_flow, to_base, took = predicted.to_flow, predicted.to_base, predicted.flow.statistics
    # With kinks, as accurate as it takes to tell the runs from the flow, but at no more
    # than half the work of the runs. A smooth flow is far more accurate at far less.
    smallest = (float(to_flow[-1].min()) if predict else _smallest_gap(run)) / WELL_BELOW
    kinks = flow_problem(f, params, times, None).has_kinks
    tolerance = smallest if kinks and 0 < smallest < np.inf else None
    budget = int(run.iterations[-1]) * sum(run.ratios) // 2
    flow = solve(
        "gradient flow",
        lambda tell: gradient_flow(
            f, params, times, tolerance=tolerance, budget=budget, progress=tell
        ),
    )
    compared = compare_with_flow(snapshots, flow.params, flow.error, step_sizes)
    return Reference(
        loss=flow.loss,
        distance_from_init=precise_distance(flow.params, jax.tree.map(np.asarray, params), 1),
        flow_error=flow.error,
        distance_to_flow=compared.distance,
        resolution=compared.resolution,
        measured=compared.measured,
        predicted_to_flow=to_flow,
        predicted_to_base=to_base,
        order=compared.order,
        flow_evaluations=flow.statistics.gradient_evaluations,
        prediction_evaluations=took.gradient_evaluations if took else 0,
        checking_evaluations=flow.statistics.checking_evaluations
        + (took.checking_evaluations if took else 0),
    ), flow


def _smallest_gap(run: Run) -> float:
    """Distance from the flow of the run with the smallest step, as its gap to the base tells it."""
    gap, ratio = run.metrics.distance_to_base[-1, -1], run.ratios[-1]
    return float(gap) / (ratio - 1) if ratio > 1 else 0.0  # proportional to the step size
