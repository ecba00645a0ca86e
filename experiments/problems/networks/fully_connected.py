"""Fully connected networks without biases, of any widths and activation."""

import math

import gf_jax
from experiments.problems.networks.network_kind import NetworkKind
from gf_jax.problems.activations import ACTIVATIONS
from gf_jax.problems.networks import Network


def build(
    shape: tuple[int, ...], classes: int, *, widths: tuple[int, ...], activation: str
) -> tuple[Network, str]:
    """The network on images as vectors, and its label."""
    sizes = (math.prod(shape), *widths, classes)
    name = ACTIVATIONS[activation].label
    label = f"fully connected {name} network {'-'.join(map(str, sizes))}"
    return gf_jax.problems.fully_connected(sizes, activation), label


KIND = NetworkKind(
    "dense layers without biases; takes widths, activation and coordinates",
    build,
    options=("widths", "activation", "coordinates"),
)
