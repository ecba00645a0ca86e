"""Norms of a network's layers, of which bounds on its Hessian are made."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from gf_jax.problems.networks import Network, Params, Windows


class LayerNorms(NamedTuple):
    """What bounds on a network's Hessian need of its layers, in the order of application.

    Attributes:
      norms: spectral norms of the weights as matrices (outputs, inputs or taps).
      biases: Euclidean norms of the biases; None if no layer has one.
      overlaps: most windows that one input of the layer lies in.
      positions: number of windows of the layer.

    Example:
      >>> network = gf_jax.problems.fully_connected((2, 3, 10))
      >>> params = gf_jax.problems.xavier_uniform(jax.random.key(0), network.shapes)
      >>> points = jax.tree.map(lambda leaf: leaf[None], params)
      >>> gf_jax.problems.layer_norms(network, points).overlaps
      array([1., 1.])
    """

    norms: Float[np.ndarray, "points layers"]
    biases: Float[np.ndarray, "points layers"] | None
    overlaps: Float[np.ndarray, " layers"]
    positions: Float[np.ndarray, " layers"]


def layer_norms(network: Network, params: Params) -> LayerNorms:
    """Norms of all layers at stacked points, leaves of shape (points, ...).

    Example:
      >>> network = gf_jax.problems.fully_connected((2, 3, 10))
      >>> params = gf_jax.problems.xavier_uniform(jax.random.key(0), network.shapes)
      >>> points = jax.tree.map(lambda leaf: leaf[None], params)
      >>> gf_jax.problems.layer_norms(network, points).norms.shape
      (1, 2)
    """
    layers = [params[name] for name in network.shapes]
    weights = [np.asarray(layer["weight"], np.float64) for layer in layers]
    matrices = [weight.reshape(*weight.shape[:2], -1) for weight in weights]
    biases = [np.asarray(layer["bias"], np.float64) for layer in layers if "bias" in layer]
    windows = (*network.windows, *[Windows()] * (len(layers) - len(network.windows)))
    return LayerNorms(
        norms=np.stack([np.linalg.norm(m, 2, axis=(1, 2)) for m in matrices], axis=1),
        biases=np.stack([np.linalg.norm(b, axis=1) for b in biases], axis=1) if biases else None,
        overlaps=np.array([layer.overlap for layer in windows], np.float64),
        positions=np.array([layer.positions for layer in windows], np.float64),
    )
