"""The numbers of runs of descent beside their gradient flow."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from gf_jax.comparison import WELL_BELOW, Metrics
from gf_jax.descent.schedule import MOST_ITERATIONS, MOST_STEPS, Clock
from gf_jax.optimizers.method import Method
from gf_jax.records import record
from gf_jax.study.fields import (
    BOOLEANS,
    INTEGERS,
    MOST,
    Numbers,
    Sizes,
    Text,
    Texts,
    build,
    declare,
)
from gf_jax.study.files import clean_label as clean_label

PERCENTILES = (5, 50, 95)
DOUBTFUL = 0.1  # relative error of a prediction


@record
class Reference:
    """Gradient flow and the predicted deviation, at the times of the snapshots.

    Attributes:
      loss: training loss of the flow, shape (snapshots,), as the next two.
      distance_from_init: distance of the flow from the initial point.
      flow_error: estimated distance of the flow from the exact one.
      distance_to_flow: of every lane, shape (snapshots, lanes), as the next four.
      resolution: error of that distance.
      measured: whether the distance is well above its resolution.
      predicted_to_flow: the distance to the flow, as predicted.
      predicted_to_base: the distance to the base run, as predicted.
      order: slope of log distance against log step size, shape (snapshots,).
      flow_evaluations, prediction_evaluations: work in gradients of f.
      checking_evaluations: work that only told the errors of both.
      predicted_error: estimated absolute error of ``predicted_to_flow``, shape (snapshots,
        lanes), NaN where it is not known; None if it is not known at all, as in older files.
        That of ``predicted_to_base`` is the larger one of a lane's and the base run's.
      rounding: how far rounding has moved every lane, likewise.
      run_loss: loss of every lane in float64, where the device has it, likewise.
      run_loss_error: error of that loss less the flow's, or another lane's.
      predicted_loss: that loss, as predicted; less ``loss`` it is what finite steps change.
      predicted_loss_error: its estimated error.
    """

    loss: np.ndarray
    distance_from_init: np.ndarray
    flow_error: np.ndarray
    distance_to_flow: np.ndarray
    resolution: np.ndarray
    measured: np.ndarray
    predicted_to_flow: np.ndarray
    predicted_to_base: np.ndarray
    order: np.ndarray
    flow_evaluations: int | np.ndarray
    prediction_evaluations: int | np.ndarray
    checking_evaluations: int | np.ndarray
    predicted_error: np.ndarray | None = None
    rounding: np.ndarray | None = None
    run_loss: np.ndarray | None = None
    run_loss_error: np.ndarray | None = None
    predicted_loss: np.ndarray | None = None
    predicted_loss_error: np.ndarray | None = None

    def loss_differences(self) -> "Differences | None":
        """How far the losses of all lanes are from that of the first; None if not known."""
        if self.run_loss is None or self.run_loss_error is None or self.predicted_loss is None:
            return None
        with np.errstate(invalid="ignore", over="ignore"):  # of lanes that diverged
            found, expected = (
                values - values[..., :1] for values in (self.run_loss, self.predicted_loss)
            )
            error = self.run_loss_error + self.run_loss_error[..., :1]
            measured = np.where(np.abs(found) >= WELL_BELOW * error, found, np.nan)
        return Differences(measured, expected)


class Differences(NamedTuple):
    """Losses of every lane less that of the first, (snapshots, lanes).

    Attributes:
      measured: NaN where rounding hides them.
      predicted: NaN where nothing is predicted.
    """

    measured: np.ndarray
    predicted: np.ndarray


@record
class Run:
    """The numbers of a run that figures and tables are made of.

    A run from several starting points has an axis of seeds in every array, before that of
    the lanes.

    Attributes:
      network_label, data_label: what was trained on what; the latter may be empty.
      step_size: step size of the base run.
      ratios: ratio of every lane, ascending from 1.
      iterations: base iterations recorded.
      metrics: NumPy arrays of shape (iterations, lanes).
      snapshot_iterations: base iterations of the snapshots.
      accuracy: training accuracy, shape (snapshots, lanes); None where there is none.
      reference: gradient flow beside it, None if it was left out.
      seeds: of the starting points, if there are several.
      loss_unit: what the loss is measured in.
      method: how its steps are made of gradients.
      doubts: sentences that say what is missing or doubtful.
    """

    network_label: str
    data_label: str
    step_size: float
    ratios: tuple[int, ...]
    iterations: np.ndarray
    metrics: Metrics
    snapshot_iterations: np.ndarray
    accuracy: np.ndarray | None = None
    reference: Reference | None = None
    seeds: tuple[int, ...] = ()
    loss_unit: str = "nats"
    method: Method = Method()
    doubts: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """What was trained on what."""
        return self.network_label + (f" on {self.data_label}" if self.data_label else "")

    @property
    def of_seeds(self) -> "list[Run]":
        """The run from each of several starting points."""
        return [self._of_seed(number) for number in range(len(self.seeds))]

    def _of_seed(self, number: int) -> "Run":
        return dataclasses.replace(
            self,
            metrics=jax.tree.map(lambda values: values[:, number], self.metrics),
            accuracy=None if self.accuracy is None else self.accuracy[:, number],
            reference=self.reference and _of_seed(self.reference, number),
            seeds=(),
        )

    @property
    def clock(self) -> Clock:
        """What times and step sizes are computed from."""
        return Clock(self.step_size, self.ratios, self.method.time_scale)

    @property
    def times(self) -> np.ndarray:
        """Time of every base iteration."""
        return self.clock.times(self.iterations)

    @property
    def snapshot_times(self) -> np.ndarray:
        """Time of every snapshot."""
        return self.clock.times(self.snapshot_iterations)

    @property
    def step_sizes(self) -> np.ndarray:
        """Step size of every lane."""
        return self.clock.step_sizes

    @property
    def arrived(self) -> bool:
        """Whether any lane is finite at the end; a run of which none is stops early."""
        return bool(np.isfinite(self.metrics.loss[-1]).any())

    def diverged_at(self, lane: int) -> int | None:
        """First base iteration at which the loss of a lane is not finite."""
        broken = ~np.isfinite(self.metrics.loss[:, lane])
        return int(self.iterations[broken.argmax()]) if broken.any() else None


def join_references(references: Sequence[Reference | None]) -> Reference | None:
    """References of several starting points as one; NaN and no work where there is none.

    Shapes are (snapshots, seeds, ...), and of the work (seeds,). None if there is none at all.
    """
    known = next((each for each in references if each is not None), None)
    if known is None:
        return None
    fields: dict[str, Any] = {
        name: _joined([each and getattr(each, name) for each in references])
        for name in REFERENCE.fields
    }
    return Reference(**fields)


def _joined(column: Sequence[Any]) -> Any:
    """One field of several references, those of which it is not known filled; None if none is."""
    known = next((np.asarray(each) for each in column if each is not None), None)
    if known is None:
        return None
    unknown = np.full_like(known, np.nan if known.dtype.kind == "f" else 0)
    whole = [unknown if each is None else np.asarray(each) for each in column]
    return np.stack(whole, axis=min(1, known.ndim))


def _of_seed(reference: Reference, number: int) -> Reference | None:
    def single(value: Any) -> Any:
        return value[number] if np.ndim(value) == 1 else value[:, number]

    found = jax.tree.map(single, reference)
    return found if found.flow_evaluations else None


def percentiles(values: np.ndarray) -> np.ndarray:
    """Along the last axis, put first: entries themselves, of which any may be infinite."""
    whole = np.where(np.isnan(values), np.inf, values)  # what diverged is beyond all bounds
    return np.percentile(whole, PERCENTILES, axis=-1, method="nearest")


_LANES = ("iterations", "seeds", "lanes")
_POINTS = ("snapshots", "seeds")
_NORM = Numbers(_LANES, least=0, unknown=True)
_OF_POINTS = Numbers((*_POINTS,), least=0, unknown=True)
_OF_LANES = Numbers((*_POINTS, "lanes"), least=0, unknown=True)
_LOSSES = Numbers((*_POINTS, "lanes"), unknown=True)
_WORK = Numbers(("seeds",), INTEGERS, least=0, most=MOST)
_COUNT = Numbers((), INTEGERS, least=0, most=MOST)
STEEPEST = 1e15  # beyond any slope of two distances in step sizes that can be told apart
SMALLEST, LARGEST = 1e-100, 1e100  # step sizes; times are well within what floats hold

METRICS = declare(
    Metrics,
    loss=Numbers(_LANES, unknown=True),
    distance_to_base=_NORM,
    distance_from_init=_NORM,
    gradient_norm=_NORM,
)
METHOD = declare(
    Method,
    momentum=Numbers(least=0, most=float(np.nextafter(1, 0))),
    nesterov=Numbers((), BOOLEANS, least=0, most=1),
    batch_size=_COUNT,
    optimizer_name=Text(),
    limit=Text(),
)
REFERENCE = declare(
    Reference,
    loss=Numbers(_POINTS, unknown=True),
    distance_from_init=_OF_POINTS,
    flow_error=_OF_POINTS,
    distance_to_flow=_OF_LANES,
    resolution=_OF_LANES,
    measured=Numbers((*_POINTS, "lanes"), BOOLEANS, least=0, most=1),
    predicted_to_flow=_OF_LANES,
    predicted_to_base=_OF_LANES,
    order=Numbers(_POINTS, least=-STEEPEST, most=STEEPEST, unknown=True),
    flow_evaluations=_WORK,
    prediction_evaluations=_WORK,
    checking_evaluations=_WORK,
    predicted_error=_OF_LANES,
    rounding=_OF_LANES,
    run_loss=_LOSSES,
    run_loss_error=_OF_LANES,
    predicted_loss=_LOSSES,
    predicted_loss_error=_OF_LANES,
)
RUN = declare(
    Run,
    network_label=Text(),
    data_label=Text(),
    step_size=Numbers(least=SMALLEST, most=LARGEST),
    ratios=Numbers(("lanes",), INTEGERS, least=1, most=MOST_STEPS, ascending=True, listed=True),
    iterations=Numbers(("iterations",), INTEGERS, least=0, most=MOST_ITERATIONS, ascending=True),
    metrics=METRICS,
    snapshot_iterations=Numbers(
        ("snapshots",), INTEGERS, least=0, most=MOST_ITERATIONS, ascending=True
    ),
    accuracy=Numbers((*_POINTS, "lanes"), least=0, most=1, unknown=True),
    reference=REFERENCE,
    seeds=Numbers(("seeds",), INTEGERS, least=0, most=2**32 - 1, ascending=True, listed=True),
    loss_unit=Text(),
    method=METHOD,
    doubts=Texts(),
)


def build_run(found: Mapping[str, Any], sizes: Sizes) -> Run:
    """A run of what a file holds, which may be a stranger's.

    Args:
      found: by field, see ``fields.build``.
      sizes: lengths of the axes of seeds, lanes, iterations and snapshots as far as they are
        known; of seeds it is, None where there is but one.

    Raises:
      ValueError: if a field is missing or not what is declared, or they do not fit together.
    """
    run: Run = build(RUN, found, sizes, "run.")
    if run.ratios[:1] != (1,) or not len(run.iterations):
        raise ValueError("run.ratios does not begin with 1, or there is no iteration")
    if not np.isin(run.snapshot_iterations, run.iterations).all():
        raise ValueError("run.snapshot_iterations are not among those that were recorded")
    if run.reference is not None:
        _check_reference(run, run.reference)
    return run


def _check_reference(run: Run, reference: Reference) -> None:
    """Raises ValueError unless a reference is one of the run."""
    if not len(run.snapshot_iterations):
        raise ValueError("run.reference is of a run without snapshots")
    predictions = (reference.predicted_to_flow, reference.predicted_to_base)
    idle = np.equal(reference.prediction_evaluations, 0)  # of every seed
    for found in predictions:
        known = np.isfinite(found).any(axis=(0, found.ndim - 1))
        if (known & idle).any():
            raise ValueError("run.reference has predictions that took no work")
