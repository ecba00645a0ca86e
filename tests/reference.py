"""Independent plain implementations that the library is compared with.

The fully connected networks are NumPy float32, layer by layer, with gradients
written by hand. The convolutional networks use JAX's own convolution and window
reduction, which the library does not.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

PRECISE = lax.Precision.HIGHEST


def dense_loss_and_gradient(weights, inputs, labels, slope):
    """Cross-entropy of a fully connected network; slope 1 is linear, 0 is ReLU."""
    hidden, outputs = [inputs], inputs
    for weight in weights[:-1]:
        outputs = hidden[-1] @ weight.T
        hidden.append(np.where(outputs > 0, outputs, np.float32(slope) * outputs))
    logits = hidden[-1] @ weights[-1].T
    shifted = logits - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    totals = exponentials.sum(axis=1, keepdims=True)
    rows = np.arange(len(labels))
    loss = (np.log(totals[:, 0]) - shifted[rows, labels]).mean()
    delta = exponentials / totals
    delta[rows, labels] -= 1
    delta /= np.float32(len(labels))
    gradients = []
    for weight, below in zip(reversed(weights), reversed(hidden), strict=True):
        gradients.append(delta.T @ below)
        delta = delta @ weight
        delta = np.where(below > 0, delta, np.float32(slope) * delta)
    return loss, gradients[::-1]


def dense_descent(weights, inputs, labels, slope, step_size, iterations):
    """Plain descent; losses and distances from the start at every iterate."""
    start, losses, distances = weights, [], []
    for _ in range(iterations + 1):
        loss, gradients = dense_loss_and_gradient(weights, inputs, labels, slope)
        losses.append(loss)
        squares = [
            ((w.astype(np.float64) - s) ** 2).sum() for w, s in zip(weights, start, strict=True)
        ]
        distances.append(np.sqrt(sum(squares)))
        weights = [w - np.float32(step_size) * g for w, g in zip(weights, gradients, strict=True)]
    return np.array(losses), np.array(distances)


def convolutional_logits(params, inputs, *, stride, pool):
    """The textbook form of both convolutional networks."""
    hidden = jnp.pad(inputs, ((0, 0), (0, 0), (2, 2), (2, 2)))
    for layer in ("conv_1", "conv_2"):
        hidden = lax.conv(
            hidden, params[layer]["weight"], (stride, stride), "VALID", precision=PRECISE
        )
        if "bias" in params[layer]:
            hidden = hidden + params[layer]["bias"][None, :, None, None]
        hidden = jax.nn.relu(hidden)
        if pool:
            window = (1, 1, 2, 2)
            hidden = lax.reduce_window(hidden, -jnp.inf, lax.max, window, window, "VALID")
    hidden = hidden.reshape(len(inputs), -1)
    for layer in ("dense_1", "dense_2", "dense_3"):
        hidden = jnp.matmul(hidden, params[layer]["weight"].T, precision=PRECISE)
        hidden = hidden + params[layer].get("bias", 0.0)
        hidden = hidden if layer == "dense_3" else jax.nn.relu(hidden)
    return hidden


def convolutional_loss(params, inputs, labels, *, stride, pool):
    log_shares = jax.nn.log_softmax(convolutional_logits(params, inputs, stride=stride, pool=pool))
    return -log_shares[jnp.arange(len(labels)), labels].mean()
