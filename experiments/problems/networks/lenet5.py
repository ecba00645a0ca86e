"""LeNet-5, with ReLU and max-pooling."""

import gf_jax
from experiments.problems.networks.network_kind import NetworkKind, channels_first
from gf_jax.problems.networks import Network


def build(shape: tuple[int, ...], classes: int) -> tuple[Network, str]:
    """The network for images of that shape, and its label."""
    return gf_jax.problems.lenet5(channels_first(shape), classes), "LeNet-5"


KIND = NetworkKind("LeNet-5: ReLU, max-pooling, biases", build, enlarges=True)
