"""The numbers of experiments, of which files, figures and tables are made."""

from typing import NamedTuple

import numpy as np

from gf_jax.study.record import PERCENTILES as PERCENTILES
from gf_jax.study.record import Reference as Reference
from gf_jax.study.record import Run as Run
from gf_jax.study.record import join_references as join_references
from gf_jax.study.record import percentiles as percentiles
from gf_jax.theory.bounds import AllowedStepSize

DESCRIPTIONS = ("from_flow", "from_first_order", "from_modified_flow")


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
      momentum: its decay, 0 for plain descent.
    """

    network_label: str
    data_label: str
    step_sizes: np.ndarray
    times: np.ndarray
    loss: np.ndarray
    distance_from_init: np.ndarray
    to_flow: np.ndarray
    to_base: np.ndarray
    momentum: float = 0.0


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


class Spectrum(NamedTuple):
    """Curvature at stacked points, each array of shape (points,).

    Attributes:
      lambda_min, lambda_max: extremal eigenvalues of the Hessian.
      lambda_min_residual, lambda_max_residual: within them there is an eigenvalue.
      theorem, sharpened: lower bounds on lambda_min.
      gradient_norm: norm of the gradient.
    """

    lambda_min: np.ndarray
    lambda_min_residual: np.ndarray
    lambda_max: np.ndarray
    lambda_max_residual: np.ndarray
    theorem: np.ndarray
    sharpened: np.ndarray
    gradient_norm: np.ndarray


class CurvatureRun(NamedTuple):
    """Curvature along gradient flow or descent.

    Attributes:
      network_label, data_label: what is trained on what.
      along: "flow" or "descent".
      step_size: of descent, in time per iteration.
      times: ascending from 0, shape (points,).
      loss: there.
      integral: of max(-lambda_min, 0) from 0 to there.
      spectrum: the curvature there.
    """

    network_label: str
    data_label: str
    along: str
    step_size: float
    times: np.ndarray
    loss: np.ndarray
    integral: np.ndarray
    spectrum: Spectrum


class Tube(NamedTuple):
    """Constants that hold in the tube of width epsilon around the flow.

    Attributes:
      lambda_min: lower bound on the smallest eigenvalue, at every time.
      beta: bound on the Hessian's spectral norm.
      gamma: bound on the gradient's norm.
    """

    lambda_min: np.ndarray
    beta: float
    gamma: float


class Answer(NamedTuple):
    """A step size for an accuracy.

    Attributes:
      by: how it was found.
      allowed: what the a-priori theorem used, if it was by that.
      step_size: in time per iteration.
      gap: largest distance from the flow that was measured with it, if any was.
    """

    by: str
    step_size: float
    allowed: AllowedStepSize | None = None
    gap: float | None = None


class BoundsRun(NamedTuple):
    """A run of descent, its gap to the flow, and what theory and prediction say of it.

    Attributes:
      network_label, data_label: what is trained on what.
      epsilon: accuracy asked for.
      step_size: of the run.
      kinks: whether the loss has kinks.
      times: of the samples, ascending from 0; arrays have shape (times,).
      loss: of the flow.
      travelled: distance of the flow from the start.
      gap: distance between descent and flow.
      flow_error: estimated distance of the flow from the exact one.
      predicted: the gap as predicted.
      bound: the fundamental theorem's, on measured defects and lambda_min.
      defects: mean defect of the step that begins there.
      spectrum: curvature on the flow.
      descent_lambda_min: smallest eigenvalue on descent.
      suggested: step size for the accuracy, by prediction.
      tube: constants proven around the flow, None where there are none.
    """

    network_label: str
    data_label: str
    epsilon: float
    step_size: float
    kinks: bool
    times: np.ndarray
    loss: np.ndarray
    travelled: np.ndarray
    gap: np.ndarray
    flow_error: np.ndarray
    predicted: np.ndarray
    bound: np.ndarray
    defects: np.ndarray
    spectrum: Spectrum
    descent_lambda_min: np.ndarray
    suggested: float
    tube: Tube | None


class NearZero(NamedTuple):
    """The smallest eigenvalue of the Hessian near zero, for several depths.

    Attributes:
      network_label, data_label: what is trained on what.
      depths: numbers of layers.
      scales: factors on the start, descending; also the widths of the tubes.
      at_starts: the smallest eigenvalue, shape (depths, scales), as the next three.
      starts_bound: its lower bound.
      in_tubes: the smallest one found in the tube around the nearest start.
      tubes_bound: lower bound that holds in all of the tube.
    """

    network_label: str
    data_label: str
    depths: np.ndarray
    scales: np.ndarray
    at_starts: np.ndarray
    starts_bound: np.ndarray
    in_tubes: np.ndarray
    tubes_bound: np.ndarray


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
