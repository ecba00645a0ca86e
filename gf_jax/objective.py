"""Training objectives: network, loss and data as functions of the parameters."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from gf_jax.networks import Network, Params


class Classification(NamedTuple):
    """A classification problem on a fixed training set.

    Attributes:
      loss: f(params), the mean cross-entropy over all examples in nats, without
        regularisation.
      accuracy: share of examples whose largest logit is that of their class; NaN
        where a logit is not finite, as those of a diverged run are not.
      output_gradients: gradient of every example's loss by its logits, shape (classes,
        examples); the loss is the mean over examples.
    """

    loss: Callable[[Params], Array]
    accuracy: Callable[[Params], Array]
    output_gradients: Callable[[Params], Array]


def classification(
    network: Network,
    inputs: Float[Array | np.ndarray, "examples ..."],
    labels: Int[Array | np.ndarray, " examples"],
) -> Classification:
    """Network and data as loss and accuracy; the data are prepared once for both.

    Args:
      network: the network.
      inputs: array of shape (examples, *network.input_shape).
      labels: class of every example, from 0.

    Raises:
      ValueError: if inputs and labels do not fit the network or each other.
    """
    if inputs.shape[1:] != network.input_shape or labels.shape != inputs.shape[:1]:
        raise ValueError(
            f"inputs, labels: shapes {inputs.shape} and {labels.shape}; accepted are "
            f"(examples, {', '.join(map(str, network.input_shape))}) and (examples,)"
        )
    prepared, classes = network.prepare(jnp.asarray(inputs)), jnp.asarray(labels)

    def losses(logits: Array) -> Array:
        return optax.softmax_cross_entropy_with_integer_labels(logits, classes, axis=0)

    def loss(params: Params) -> Array:
        return losses(network.forward(params, prepared)).mean()

    def output_gradients(params: Params) -> Array:
        return jax.grad(lambda logits: losses(logits).sum())(network.forward(params, prepared))

    def accuracy(params: Params) -> Array:
        logits = network.forward(params, prepared)
        right = jnp.mean(logits.argmax(axis=0) == classes)
        return jnp.where(jnp.isfinite(logits).all(), right, jnp.nan)

    return Classification(loss, accuracy, output_gradients)
