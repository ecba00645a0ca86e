"""The bound for networks with a homogeneous activation.

It holds for a chain of layers with σ(z) = a min(z, 0) + b max(z, 0) between them, under every
loss that is convex in the outputs. The theorem is for dense layers without biases; biases,
convolutions and max-pooling over disjoint windows are this package's extension of it, see
``lower_bounds.homogeneous_network_bound``.
"""

import numpy as np

from gf_jax.problems.losses import OutputLoss
from gf_jax.problems.networks import Network, Structure
from gf_jax.theory.lower_bounds import LowerBound, homogeneous_network_bound
from gf_jax.theory.network_bounds.network_bound import NetworkBound, Points


def _covers(network: Network, loss: OutputLoss) -> bool:
    return network.structure in (Structure.LINEAR, Structure.HOMOGENEOUS) and loss.convex


def _lambda_min(points: Points, radius: float) -> LowerBound:
    return homogeneous_network_bound(
        input_norms=np.linalg.norm(points.inputs, axis=1),
        gradient_norms=np.linalg.norm(points.output_gradients, axis=1),
        slope=points.network.slope,
        radius=radius,
        smoothness=points.loss.smoothness,
        **points.norms._asdict(),
    )


BOUND = NetworkBound("networks with a homogeneous activation, such as ReLU", _covers, _lambda_min)
