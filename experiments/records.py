"""The numbers of experiments, of which files, figures and tables are made."""

from typing import NamedTuple

import numpy as np

from gf_jax.comparison import Metrics

PERCENTILES = (5, 50, 95)
DESCRIPTIONS = ("from_flow", "from_first_order", "from_modified_flow")


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


class Run(NamedTuple):
    """The numbers of a run that figures and tables are made of.

    Attributes:
      network_label, data_label: what was trained on what.
      step_size: step size of the base run.
      ratios: ratio of every lane, ascending from 1.
      iterations: base iterations recorded; time = iteration * step_size.
      metrics: NumPy arrays of shape (iterations, lanes).
      snapshot_iterations: base iterations of the snapshots.
      accuracy: training accuracy, shape (snapshots, lanes).
      reference: gradient flow beside it, None if it was left out.
    """

    network_label: str
    data_label: str
    step_size: float
    ratios: tuple[int, ...]
    iterations: np.ndarray
    metrics: Metrics
    snapshot_iterations: np.ndarray
    accuracy: np.ndarray
    reference: Reference | None = None

    @property
    def times(self) -> np.ndarray:
        """Time of every base iteration."""
        return self.iterations * self.step_size

    @property
    def snapshot_times(self) -> np.ndarray:
        """Time of every snapshot."""
        return self.snapshot_iterations * self.step_size

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


class Prediction(NamedTuple):
    """Predicted distances between flow and descent, told without running descent.

    Attributes:
      network_label, data_label: what is trained on what.
      step_sizes: step sizes of descent, the largest first.
      times: times of the prediction.
      loss: training loss of the flow, shape (times,).
      distance_from_init: distance of the flow from the initial point, likewise.
      to_flow: predicted distance to the flow, shape (times, step sizes).
      to_base: predicted distance to descent with the largest step size, likewise.
    """

    network_label: str
    data_label: str
    step_sizes: np.ndarray
    times: np.ndarray
    loss: np.ndarray
    distance_from_init: np.ndarray
    to_flow: np.ndarray
    to_base: np.ndarray


class Sweep(NamedTuple):
    """Distances of lanes from three descriptions of descent, at the snapshots.

    Attributes:
      edge: largest stable step size at the start, 2 / lambda_max.
      travelled: distance of the flow from the initial point, shape (snapshots,).
      from_flow: distance from gradient flow, shape (snapshots, lanes).
      from_first_order: from the flow and its first-order deviation, likewise.
      from_modified_flow: from the modified flow of the lane's step size, likewise.
    """

    edge: float
    travelled: np.ndarray
    from_flow: np.ndarray
    from_first_order: np.ndarray
    from_modified_flow: np.ndarray


class Saddle(NamedTuple):
    """Descent against flow on a saddle, along its coordinates x and y.

    Attributes:
      epsilon: the accuracy asked for.
      step_sizes: of descent, the largest first.
      times: from the first iteration with the largest step size on.
      gap: distance between descent and flow, shape (2, times, step sizes).
      exact: its closed form, likewise.
      flow_error: estimated error of the flow, shape (times,).
      largest: largest step size of that accuracy up to each time, as measured between
        the step sizes, shape (2, times); NaN where there is none among them.
      largest_exact: as the closed form has it.
      approximation: its approximation along y, shape (times,).
    """

    epsilon: float
    step_sizes: np.ndarray
    times: np.ndarray
    gap: np.ndarray
    exact: np.ndarray
    flow_error: np.ndarray
    largest: np.ndarray
    largest_exact: np.ndarray
    approximation: np.ndarray


class Starts(NamedTuple):
    """Many starts of a deep linear network, on every data set, under flow and descent.

    Runs are the flow and then descent at every step size. Shapes are (runs, data sets,
    starts) unless another is said. Distances are largest over all times.

    Attributes:
      depth: number of layers.
      step_sizes: of descent, the largest first.
      times: from 0 on, those of the snapshots.
      cosine: of the angle between start and target, as vectors, (data sets, starts).
      arrival: time at which the loss above its minimum falls to epsilon; inf if it does not.
      excess: loss above its minimum at the last time.
      gap: distance between descent and flow, over all parameters; 0 for the flow.
      unbalancedness: largest of all pairs of layers.
      reduced_difference: distance between the flow's end-to-end vector and the reduced
        equation's, (data sets, starts).
      flow_error: estimated error of the flow, over all starts together.
      excess_over_time, gap_over_time, unbalancedness_over_time: percentiles over the
        starts as in ``PERCENTILES``, shape (percentiles, times, runs, data sets).
      opposite: loss above its minimum of the start opposite to the target, shape (times,
        runs, data sets).
    """

    depth: int
    step_sizes: np.ndarray
    times: np.ndarray
    cosine: np.ndarray
    arrival: np.ndarray
    excess: np.ndarray
    gap: np.ndarray
    unbalancedness: np.ndarray
    reduced_difference: np.ndarray
    flow_error: float | np.ndarray
    excess_over_time: np.ndarray
    gap_over_time: np.ndarray
    unbalancedness_over_time: np.ndarray
    opposite: np.ndarray


def percentiles(values: np.ndarray) -> np.ndarray:
    """Along the last axis, put first: entries themselves, of which any may be infinite."""
    whole = np.where(np.isnan(values), np.inf, values)  # what diverged is beyond all bounds
    return np.percentile(whole, PERCENTILES, axis=-1, method="nearest")
