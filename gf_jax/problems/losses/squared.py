"""Squared distance between outputs and one-hot labels."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from gf_jax.problems.losses.output_loss import OutputLoss


def squared(outputs: Array, classes: Array) -> Array:
    """½ ‖outputs - one-hot label‖², summed over classes, not averaged over them.

    So the training loss is 1/(2N) Σ_i ‖z_i - y_i‖² for N examples; where all outputs are
    zero it is ½. Its Hessian by the outputs is the identity.

    Args:
      outputs: shape (classes, examples).
      classes: of every example, shape (examples,).
    """
    targets = jax.nn.one_hot(classes, len(outputs), axis=0, dtype=outputs.dtype)
    return 0.5 * jnp.square(outputs - targets).sum(axis=0)


LOSS = OutputLoss(
    squared,
    label="squared loss",
    unit="half a squared distance",
    meaning="half the squared distance from the one-hot label",
    convex=True,
    smoothness=1.0,
)
