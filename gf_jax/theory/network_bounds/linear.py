"""Bounds for linear networks.

They hold for W_n ... W_1 x with dense layers, without biases, under every loss that is convex
in the outputs: the training loss is then φ(W_n ... W_1) with φ convex.
"""

import numpy as np

from gf_jax.problems.losses import OutputLoss
from gf_jax.problems.networks import Network, Structure
from gf_jax.theory.lower_bounds import (
    LowerBound,
    linear_network_bound,
    linear_network_smoothness,
)
from gf_jax.theory.network_bounds.network_bound import NetworkBound, Points


def _covers(network: Network, loss: OutputLoss) -> bool:
    return network.structure is Structure.LINEAR and loss.convex


def _lambda_min(points: Points, radius: float) -> LowerBound:
    slopes, smoothness = _slopes(points), _smoothness(points)
    options = {"radius": radius, "smoothness": smoothness}
    return linear_network_bound(points.norms.norms, slopes, **options)


def _norm(points: Points, radius: float) -> np.ndarray:
    slopes, smoothness = _slopes(points), _smoothness(points)
    options = {"radius": radius, "smoothness": smoothness}
    return linear_network_smoothness(points.norms.norms, slopes, **options)


def _slopes(points: Points) -> np.ndarray:
    """Norm of the gradient of φ, at every point."""
    gradients = points.output_gradients @ points.inputs / len(points.inputs)
    return np.linalg.norm(gradients, axis=(1, 2))


def _smoothness(points: Points) -> float:
    """Lipschitz constant of the gradient of φ."""
    inputs = points.inputs
    return float(points.loss.smoothness * np.linalg.norm(inputs, 2) ** 2 / len(inputs))


BOUND = NetworkBound("linear networks without biases", _covers, _lambda_min, _norm)
