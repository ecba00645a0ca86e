"""Bounds by name: a new one is a file here, and a line in ``BOUNDS``.

Nothing is computed, drawn or printed of a bound for a network or a loss that it does not
cover: ``bound_for`` finds one that does.
"""

from collections.abc import Mapping

from gf_jax.problems.losses import OutputLoss
from gf_jax.problems.networks import Network
from gf_jax.theory.network_bounds import homogeneous, linear
from gf_jax.theory.network_bounds.network_bound import NetworkBound as NetworkBound
from gf_jax.theory.network_bounds.network_bound import Points as Points

# The sharper one first.
BOUNDS: Mapping[str, NetworkBound] = {
    "linear": linear.BOUND,
    "homogeneous": homogeneous.BOUND,
}


def bound_for(network: Network, loss: OutputLoss) -> NetworkBound | None:
    """The first bound that covers the network under the loss; None if none does."""
    return next((bound for bound in BOUNDS.values() if bound.covers(network, loss)), None)


def covered() -> str:
    """The networks that bounds cover, in words."""
    networks = " and of ".join(bound.networks for bound in BOUNDS.values())
    return f"{networks}, each under losses that are convex in the outputs"
