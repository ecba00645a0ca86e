"""Networks by name: a new one is a file here, and a line in ``NETWORKS``."""

from collections.abc import Mapping

from experiments.problems.networks import conv_adapted, fully_connected, lenet5
from experiments.problems.networks.network_kind import NetworkKind as NetworkKind

FULLY_CONNECTED = "fully_connected"  # what is taken if none is asked for

NETWORKS: Mapping[str, NetworkKind] = {
    FULLY_CONNECTED: fully_connected.KIND,
    "conv_adapted": conv_adapted.KIND,
    "lenet5": lenet5.KIND,
}
# Flags that only some networks have.
OPTIONS = tuple(dict.fromkeys(name for kind in NETWORKS.values() for name in kind.options))
