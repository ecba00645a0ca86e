"""The paper's convolutional network."""

import gf_jax
from experiments.problems.networks.network_kind import NetworkKind, channels_first
from gf_jax.problems.networks import Network


def build(shape: tuple[int, ...], classes: int) -> tuple[Network, str]:
    """The network for images of that shape, and its label."""
    network = gf_jax.problems.conv_adapted(channels_first(shape), classes)
    return network, "convolutional network (adapted)"


KIND = NetworkKind("the paper's: ReLU, strides of two, no biases", build, enlarges=True)
