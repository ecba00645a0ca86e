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
    """

    edge: float
    of_edge: np.ndarray
    travelled: np.ndarray
    from_flow: np.ndarray
    from_first_order: np.ndarray
    from_modified_flow: np.ndarray
    from_central_flow: np.ndarray

    @property
    def names(self) -> tuple[str, ...]:
        """Of the descriptions that there are."""
        known = np.isfinite(self.from_central_flow).any()
        return (*DESCRIPTIONS, CENTRAL) if known else DESCRIPTIONS
