"""The numbers of the sweep, of which file, figure and table are made."""

import numpy as np

from gf_jax.records import record

DESCRIPTIONS = ("from_flow", "from_first_order", "from_modified_flow")
CENTRAL = "from_central_flow"


@record
class Sweep:
    """Distances of lanes from four descriptions of descent, at the snapshots.

    Attributes:
      edge: largest stable step size at the start, 2 / lambda_max; of an optimiser the smallest
        along its limit.
      of_edge: how far each lane is beyond it, see ``edge``, shape (lanes,).
      travelled: distance of the flow, or of the limit, from the initial point, shape (snapshots,).
      from_flow: distance from gradient flow or the limit, shape (snapshots, lanes).
      from_first_order: from the flow and its first-order deviation, likewise.
      from_modified_flow: from the modified flow of the lane's step size, likewise.
      from_central_flow: from its central flow, likewise, of the mean of two iterates; NaN where
        there is none, as past the edge at the start, with kinks, and of optimisers.
      errors: of these four distances, in this order, by what the descriptions may be off and by
        the rounding of snapshots, shape (4, snapshots, lanes).
    """

    edge: float
    of_edge: np.ndarray
    travelled: np.ndarray
    from_flow: np.ndarray
    from_first_order: np.ndarray
    from_modified_flow: np.ndarray
    from_central_flow: np.ndarray
    errors: np.ndarray

    @property
    def names(self) -> tuple[str, ...]:
        """Of the descriptions that there are."""
        known = np.isfinite(self.from_central_flow).any()
        return (*DESCRIPTIONS, CENTRAL) if known else DESCRIPTIONS

    def error_of(self, name: str) -> np.ndarray:
        """What the distances from a description may be off by, shape (snapshots, lanes)."""
        return self.errors[(*DESCRIPTIONS, CENTRAL).index(name)]

    def measured(self, name: str) -> np.ndarray:
        """Distances from a description that are above their error; NaN for the others."""
        distances = getattr(self, name)
        with np.errstate(invalid="ignore"):
            return np.where(distances > self.error_of(name), distances, np.nan)
