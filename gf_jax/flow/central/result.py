"""What is told of a central flow, and why one may end early."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from gf_jax.flow.problem import Statistics

PyTree = Any

ENDINGS = (
    "",
    (
        "the start is past the edge of stability, where there is no central flow: the oscillation "
        "grows at once. Take a smaller step size or another start"
    ),
    (
        "no oscillation holds the sharpness at the edge there, so that descent leaves: it diverges "
        "or settles elsewhere"
    ),
    "more eigenvalues are at the edge than most_held allows",
    "the solve took more gradients than its budget",
)
COMPLETE, STARTED_PAST, UNHELD, CROWDED, BUDGET = range(len(ENDINGS))


class CentralFlow(NamedTuple):
    """A central flow at the times asked for, as NumPy arrays; NaN where it was not reached.

    Attributes:
      times: times, ascending.
      params: the average of descent, stacked, leaves of shape (times, ...).
      loss: f there.
      average_loss: predicted average of f over the oscillation, f + ½ ⟨∇²f, Σ⟩.
      average_squared_gradient: of ‖∇f‖², ‖F‖² + ⟨(∇²f)², Σ⟩.
      lambda_max, lambda_min: both ends of the spectrum of ∇²f there, of an optimiser in its metric.
      variances: eigenvalues of Σ, descending, zero beyond those held.
      axes: their unit eigenvectors, as vectors of all parameters in the order of the pytree's
        leaves; zero beyond those held.
      held: how many eigenvectors are held at the edge.
      event_times: when an eigenvalue reached the edge or left it.
      event_held: how many are held from then on.
      error: estimated Euclidean distance from the exact central flow.
      residual: largest norm of ∇²f v − λ v of the eigenvectors that it was followed with.
      ended: 0 if all times were reached; else see ``reason``.
      statistics: what the solve took.

    Example:
      >>> def f(w):  # sharpness w[1], which grows until it meets the edge
      ...     return w[1] * w[0] ** 2 / 2 + (w[1] - 25) ** 2 / 200
      >>> flow = gf_jax.central_flow(f, jnp.array([0.3, 19.9]), [5.0, 20.0], 0.1)
      >>> flow.lambda_max.round(3), flow.variances[:, 0].round(3), flow.held
      (array([20., 20.]), array([0.1, 0.1]), array([1, 1]))
    """

    times: Float[np.ndarray, " times"]
    params: PyTree
    loss: Float[np.ndarray, " times"]
    average_loss: Float[np.ndarray, " times"]
    average_squared_gradient: Float[np.ndarray, " times"]
    lambda_max: Float[np.ndarray, " times"]
    lambda_min: Float[np.ndarray, " times"]
    variances: Float[np.ndarray, "times most"]
    axes: Float[np.ndarray, "times most parameters"]
    held: Int[np.ndarray, " times"]
    event_times: Float[np.ndarray, " events"]
    event_held: Int[np.ndarray, " events"]
    error: Float[np.ndarray, " times"]
    residual: float
    ended: int
    statistics: Statistics

    @property
    def reason(self) -> str:
        """Why it ends before the last time, in a sentence; empty if it does not."""
        return ENDINGS[self.ended]

    @property
    def past_edge(self) -> float:
        """When the first eigenvalue reaches the edge; infinite if none does."""
        return float(self.event_times[0]) if len(self.event_times) else np.inf
