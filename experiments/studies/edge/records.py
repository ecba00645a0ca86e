"""The numbers of the experiment, of which file, figure and table are made."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

import gf_jax
from gf_jax.records import record


class Averages(NamedTuple):
    """What a run is on average over windows of iterations.

    Attributes:
      params: stacked, leaves of shape (times, ...).
      loss: of the iterate in the middle.
      average_loss, average_squared_gradient: over the window.
      variance: of the part of the iterates that alternates, summed over all parameters.
      covariance: of that part, along the axes of the predicted oscillation.
      seconds: that the run took.
    """

    params: Any
    loss: Float[np.ndarray, " times"]
    average_loss: Float[np.ndarray, " times"]
    average_squared_gradient: Float[np.ndarray, " times"]
    variance: Float[np.ndarray, " times"]
    covariance: Float[np.ndarray, "times most most"]
    seconds: float


class Followed(NamedTuple):
    """A central flow, and the seconds that it took."""

    flow: gf_jax.CentralFlow
    seconds: float


@record
class Edges:
    """Runs averaged over windows beside their central flows and gradient flow.

    All arrays have the axes (times, lanes), but for the loss of gradient flow, (times,), and those
    said to be of lanes. Of an optimiser gradient flow is its continuous limit, and sharpness that
    in its metric, which is not told of the runs.

    Attributes:
      network_label, data_label: what is trained on what.
      runs: what the runs are called.
      limit: what gradient flow is called.
      loss_unit: what the loss is measured in.
      window: iterations over which a run is averaged.
      step_sizes: of the lanes, the largest first.
      times: of all numbers below.
      flow_loss, flow_sharpness: of gradient flow.
      loss, average_loss, average_squared_gradient: of the runs.
      sharpness: largest eigenvalue of the Hessian at the averaged runs.
      travelled: distance of the averaged runs from the start.
      variance: of the oscillation of the runs.
      variance_within: of that, what lies along the predicted axes.
      central_loss, central_squared_gradient: averages that the central flow predicts.
      central_sharpness, central_variance, held: of the central flow.
      central_error: estimated distance from the exact one.
      from_flow, from_central: distance of the averaged runs from the two flows.
      past_edge: when the central flow reaches the edge, of lanes; infinite if it does not.
      ended: why the central flow ended before the last time, of lanes; 0 if it did not.
      evaluations: gradients that the runs took, of lanes.
      central_evaluations: that the central flow took with its check, of lanes.
    """

    network_label: str
    data_label: str
    runs: str
    limit: str
    loss_unit: str
    window: int
    step_sizes: np.ndarray
    times: np.ndarray
    flow_loss: np.ndarray
    flow_sharpness: np.ndarray
    loss: np.ndarray
    average_loss: np.ndarray
    average_squared_gradient: np.ndarray
    sharpness: np.ndarray
    travelled: np.ndarray
    variance: np.ndarray
    variance_within: np.ndarray
    central_loss: np.ndarray
    central_squared_gradient: np.ndarray
    central_sharpness: np.ndarray
    central_variance: np.ndarray
    held: np.ndarray
    central_error: np.ndarray
    from_flow: np.ndarray
    from_central: np.ndarray
    past_edge: np.ndarray
    ended: np.ndarray
    evaluations: np.ndarray
    central_evaluations: np.ndarray
