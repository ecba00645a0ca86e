"""The numbers of the saddle, of which file, figure and table are made."""

import numpy as np

from gf_jax.records import record


@record
class Saddle:
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
