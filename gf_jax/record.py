"""The numbers of runs of descent beside their gradient flow."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gf_jax.comparison import Metrics
from gf_jax.method import Method

PERCENTILES = (5, 50, 95)


class Reference(NamedTuple):
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
      predicted_error: estimated error of ``predicted_to_flow``, (snapshots, lanes); None in files
        that do not have it, as the next.
      rounding: how far rounding has moved every lane, likewise.
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


class Run(NamedTuple):
    """The numbers of a run that figures and tables are made of.

    A run from several starting points has an axis of seeds in every array, before that of
    the lanes.

    Attributes:
      network_label, data_label: what was trained on what; the latter may be empty.
      step_size: step size of the base run.
      ratios: ratio of every lane, ascending from 1.
      iterations: base iterations recorded; time = iteration * step_size, times the
        method's time scale.
      metrics: NumPy arrays of shape (iterations, lanes).
      snapshot_iterations: base iterations of the snapshots.
      accuracy: training accuracy, shape (snapshots, lanes); None where there is none.
      reference: gradient flow beside it, None if it was left out.
      seeds: of the starting points, if there are several.
      loss_unit: what the loss is measured in.
      method: how its steps are made of gradients.
      doubts: what is missing or doubtful, in sentences.
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
        return [
            self._replace(
                metrics=Metrics(*(values[:, number] for values in self.metrics)),
                accuracy=None if self.accuracy is None else self.accuracy[:, number],
                reference=self.reference and _of_seed(self.reference, number),
                seeds=(),
            )
            for number in range(len(self.seeds))
        ]

    @property
    def times(self) -> np.ndarray:
        """Time of every base iteration."""
        return self.iterations * self.step_size * self.method.time_scale

    @property
    def snapshot_times(self) -> np.ndarray:
        """Time of every snapshot."""
        return self.snapshot_iterations * self.step_size * self.method.time_scale

    @property
    def step_sizes(self) -> np.ndarray:
        """Step size of every lane."""
        return self.step_size / np.array(self.ratios)

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
    unknown = Reference(*(_unknown(np.asarray(value)) for value in known))
    whole = [unknown if each is None else each for each in references]
    return Reference(
        *(np.stack(values, axis=min(1, np.ndim(values[0]))) for values in zip(*whole, strict=True))
    )


def _unknown(like: np.ndarray) -> np.ndarray:
    return np.full_like(like, np.nan if like.dtype.kind == "f" else 0)


def _of_seed(reference: Reference, number: int) -> Reference | None:
    arrays = [np.asarray(value) for value in reference]
    single = Reference(*(each[number] if each.ndim == 1 else each[:, number] for each in arrays))
    return single if single.flow_evaluations else None


def percentiles(values: np.ndarray) -> np.ndarray:
    """Along the last axis, put first: entries themselves, of which any may be infinite."""
    whole = np.where(np.isnan(values), np.inf, values)  # what diverged is beyond all bounds
    return np.percentile(whole, PERCENTILES, axis=-1, method="nearest")


def check_run(run: Run) -> None:
    """Raises ValueError unless the arrays of a run, perhaps a stranger's, fit together."""
    for name, numbers in (
        ("ratio", run.ratios),
        ("iteration", run.iterations),
        ("iteration of snapshots", run.snapshot_iterations),
    ):
        counts = np.asarray(numbers)
        _expect(name, counts, (counts.size,), "iu")
        if (counts < 0).any() or (counts[1:] <= counts[:-1]).any():
            raise ValueError(f"{name} is not ascending")
    if run.ratios[:1] != (1,) or not len(run.iterations):
        raise ValueError("ratio does not begin with 1, or there is no iteration")
    starts = (len(run.seeds),) if run.seeds else ()
    lanes = (*starts, len(run.ratios))
    for name, values in run.metrics._asdict().items():
        _expect(name, values, (len(run.iterations), *lanes), "f")
    if run.accuracy is not None:
        _expect("accuracy", run.accuracy, (len(run.snapshot_iterations), *lanes), "f")
    if not np.isin(run.snapshot_iterations, run.iterations).all():
        raise ValueError("snapshots are not of iterations that were recorded")
    for name, values in ({} if run.reference is None else run.reference._asdict()).items():
        points = (len(run.snapshot_iterations), *starts)
        if name.endswith("evaluations"):
            _expect(name, np.asarray(values), starts, "iu")
        elif name in ("loss", "distance_from_init", "flow_error", "order"):
            _expect(name, values, points, "f")
        else:
            _expect(name, values, (*points, len(run.ratios)), "bf")


def _expect(name: str, values: np.ndarray, shape: tuple[int, ...], kinds: str) -> None:
    if values.shape != shape or values.dtype.kind not in kinds:
        raise ValueError(f"{name} is {values.dtype} of shape {values.shape}, wanted is {shape}")


def clean_label(text: object) -> str:
    """A text, perhaps a stranger's, without what terminals and Matplotlib take for commands."""
    return "".join(letter for letter in str(text)[:200] if letter.isprintable() and letter != "$")
