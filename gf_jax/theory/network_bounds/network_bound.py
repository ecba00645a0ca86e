"""What a bound is: the networks and losses that it covers, and how it is computed."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from gf_jax.problems.layer_norms import LayerNorms
from gf_jax.problems.losses import OutputLoss
from gf_jax.problems.networks import Network
from gf_jax.theory.lower_bounds import LowerBound


class Points(NamedTuple):
    """A network at stacked points of weight space: all that bounds are made of.

    Attributes:
      network: the network.
      loss: of an example, as a function of the outputs.
      norms: of the layers at the points.
      inputs: training inputs as vectors.
      output_gradients: gradient of every example's loss by the outputs at the points.
    """

    network: Network
    loss: OutputLoss
    norms: LayerNorms
    inputs: Float[np.ndarray, "examples features"]
    output_gradients: Float[np.ndarray, "points classes examples"]


class NetworkBound(NamedTuple):
    """A bound on the Hessian of a network's training loss, and where it holds.

    Attributes:
      networks: what it covers, in words.
      covers: whether it holds for a network and a loss.
      lambda_min: lower bound on the smallest eigenvalue, at all points where the loss is
        differentiable twice within a radius of every given point.
      norm: upper bound on the spectral norm, at all points within a radius of every given
        point, shape (points,); None where none is known.
    """

    networks: str
    covers: Callable[[Network, OutputLoss], bool]
    lambda_min: Callable[[Points, float], LowerBound]
    norm: Callable[[Points, float], np.ndarray] | None = None
