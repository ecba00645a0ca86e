"""The numbers of the starts, of which files, figure and tables are made."""

import numpy as np
from jaxtyping import Float

from gf_jax.records import record


@record
class Starts:
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
    step_sizes: Float[np.ndarray, " lanes"]
    times: Float[np.ndarray, " times"]
    cosine: Float[np.ndarray, "data starts"]
    arrival: Float[np.ndarray, "runs data starts"]
    excess: Float[np.ndarray, "runs data starts"]
    gap: Float[np.ndarray, "runs data starts"]
    unbalancedness: Float[np.ndarray, "runs data starts"]
    reduced_difference: Float[np.ndarray, "data starts"]
    flow_error: float
    excess_over_time: Float[np.ndarray, "percentiles times runs data"]
    gap_over_time: Float[np.ndarray, "percentiles times runs data"]
    unbalancedness_over_time: Float[np.ndarray, "percentiles times runs data"]
    opposite: Float[np.ndarray, "times runs data"]
