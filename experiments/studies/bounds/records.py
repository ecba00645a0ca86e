"""The numbers of the experiment, of which file, figure and tables are made."""

import numpy as np

from experiments.studies.spectra import Spectrum
from gf_jax.records import record
from gf_jax.theory.bounds import AllowedStepSize


@record
class Tube:
    """Constants that hold in the tube of width epsilon around the flow.

    Attributes:
      lambda_min: lower bound on the smallest eigenvalue, at every time.
      beta: bound on the Hessian's spectral norm.
      gamma: bound on the gradient's norm.
    """

    lambda_min: np.ndarray
    beta: float
    gamma: float


@record
class Answer:
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


@record
class BoundsRun:
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
