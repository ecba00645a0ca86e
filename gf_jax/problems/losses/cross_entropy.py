"""Cross-entropy, of outputs that are logits."""

import optax
from jaxtyping import Array

from gf_jax.problems.losses.output_loss import OutputLoss


def cross_entropy(outputs: Array, classes: Array) -> Array:
    """Minus the logarithm of the probability that softmax of the outputs gives to the class.

    In nats. Its Hessian by the outputs is diag(p) - p pᵀ with p the probabilities, which is
    not negative and at most one half.

    Args:
      outputs: logits, shape (classes, examples).
      classes: of every example, shape (examples,).
    """
    return optax.softmax_cross_entropy_with_integer_labels(outputs, classes, axis=0)


LOSS = OutputLoss(
    cross_entropy,
    label="cross-entropy",
    unit="nats",
    meaning="minus the log-probability of the class, in nats",
    convex=True,
    smoothness=0.5,
)
