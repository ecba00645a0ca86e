"""Activations: what a network applies to every entry between two of its layers.

A new one is one entry here; the command line and the tests find it by its name.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

LEAKY_RELU_SLOPE = 0.01


class Activation(NamedTuple):
    """An activation, and what theorems ask of it.

    Attributes:
      function: maps an array to one of the same shape, entry by entry.
      label: what outputs call it, such as "ReLU".
      slopes: (a, b) if the activation is a z below zero and b z above it, which makes it
        homogeneous: σ(c z) = c σ(z) for every c > 0. None for all others.
      smooth: whether it has derivatives of every order everywhere.
    """

    function: Callable[[Array], Array]
    label: str
    slopes: tuple[float, float] | None = None
    smooth: bool = True


def _leaky_relu(x: Array) -> Array:
    return jax.nn.leaky_relu(x, LEAKY_RELU_SLOPE)


def _gelu(x: Array) -> Array:
    """Exact: x times the standard normal distribution function."""
    return jax.nn.gelu(x, approximate=False)


ACTIVATIONS: Mapping[str, Activation] = {
    "linear": Activation(lambda x: x, "linear", slopes=(1.0, 1.0)),
    "relu": Activation(jax.nn.relu, "ReLU", slopes=(0.0, 1.0), smooth=False),
    "leaky_relu": Activation(
        _leaky_relu, "leaky ReLU", slopes=(LEAKY_RELU_SLOPE, 1.0), smooth=False
    ),
    "tanh": Activation(jnp.tanh, "tanh"),
    "gelu": Activation(_gelu, "GELU"),
    "silu": Activation(jax.nn.silu, "SiLU"),
}
