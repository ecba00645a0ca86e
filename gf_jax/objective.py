"""Training objectives: network, loss and data as one function of the parameters."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from gf_jax.networks import Network, Params


def cross_entropy(
    network: Network,
    inputs: Float[Array | np.ndarray, "examples ..."],
    labels: Int[Array | np.ndarray, " examples"],
) -> Callable[[Params], Array]:
    """Mean cross-entropy over all examples, without regularisation.

    Args:
      network: the network.
      inputs: array of shape (examples, *network.input_shape).
      labels: class of every example, from 0.

    Returns:
      f(params), a scalar in nats.

    Raises:
      ValueError: if inputs and labels do not fit the network or each other.
    """
    prepared, labels = _prepare(network, inputs, labels)

    def f(params: Params) -> Array:
        logits = network.forward(params, prepared)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels, axis=0)
        return losses.mean()

    return f


def accuracy(
    network: Network,
    inputs: Float[Array | np.ndarray, "examples ..."],
    labels: Int[Array | np.ndarray, " examples"],
) -> Callable[[Params], Array]:
    """Share of examples whose largest logit is that of their class, as f(params).

    It is NaN where a logit is not finite, as those of a diverged run are not.
    Args and errors as ``cross_entropy``.
    """
    prepared, labels = _prepare(network, inputs, labels)

    def share(params: Params) -> Array:
        logits = network.forward(params, prepared)
        right = jnp.mean(logits.argmax(axis=0) == labels)
        return jnp.where(jnp.isfinite(logits).all(), right, jnp.nan)

    return share


def _prepare(
    network: Network, inputs: Array | np.ndarray, labels: Array | np.ndarray
) -> tuple[Array, Array]:
    if inputs.shape[1:] != network.input_shape or labels.shape != inputs.shape[:1]:
        raise ValueError(
            f"inputs, labels: shapes {inputs.shape} and {labels.shape}; accepted are "
            f"(examples, {', '.join(map(str, network.input_shape))}) and (examples,)"
        )
    return network.prepare(jnp.asarray(inputs)), jnp.asarray(labels)
