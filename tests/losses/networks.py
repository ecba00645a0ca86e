"""Small networks with kinks, and with smooth layers beside them."""

import jax
import jax.numpy as jnp

from tests.losses.cases import KEY, START, TOLD, case, drawn, mean_square, x, y


def layers(seed, *widths):
    keys = jax.random.split(jax.random.key(seed), len(widths))
    pairs = zip(widths[:-1], widths[1:], keys[1:], strict=True)
    return [jax.random.normal(key, (n, m)) / n**0.5 for n, m, key in pairs]


def network(activation):
    def body(weights, x, y):
        h = x
        for w in weights[:-1]:
            h = activation(h @ w)
        return mean_square((h @ weights[-1])[:, 0] - y)

    return body


def small(activation, seed, *widths):
    return lambda: drawn(network(activation), layers(seed, 4, *widths, 1), x=x, y=y)


for number in range(4):
    case(0.1, 20, TOLD, name=f"relu_network_of_twenty_steps_{number}")(
        small(jax.nn.relu, number, 8)
    )
case(0.1, 60, TOLD, name="deep_relu_network")(small(jax.nn.relu, 5, 6, 6, 6))
case(0.1, 60, TOLD, name="hard_tanh_network")(small(jax.nn.hard_tanh, 6, 8))
case(0.1, 60, TOLD, name="leaky_relu_network")(small(jax.nn.leaky_relu, 7, 8, 5))
case(0.1, 60, TOLD, name="relu6_network")(small(jax.nn.relu6, 8, 8))
case(0.1, 60, TOLD, name="prelu_like_network")(small(lambda h: jnp.maximum(h, 0.25 * h), 9, 8))
for smooth in ("tanh", "gelu", "silu", "softplus", "sigmoid"):
    case(0.1, 60, TOLD, name=f"{smooth}_network")(small(getattr(jax.nn, smooth), 10, 8))
for smooth in ("elu", "celu", "selu"):
    case(0.1, 60, TOLD, name=f"{smooth}_network")(small(getattr(jax.nn, smooth), 10, 8))


def recurrent(activation):
    inputs = jax.random.normal(KEY, (6, 8, 2))

    def body(p, inputs):
        def step(h, row):
            return activation(h @ p["h"] + row @ p["x"]), None

        last = jax.lax.scan(step, jnp.zeros((8, 3), inputs.dtype), inputs)[0]
        return mean_square(last @ p["out"] - jnp.sin(inputs.sum(axis=(0, 2))))

    h, i, out = layers(11, 3, 3)[0], layers(12, 2, 3)[0], jnp.array([1.0, -0.5, 0.4])
    return drawn(body, {"h": h, "x": i, "out": out}, inputs=inputs)


case(0.05, 60, TOLD, name="recurrent_relu_network")(lambda: recurrent(jax.nn.relu))
case(0.05, 60, TOLD, name="recurrent_hard_tanh_network")(lambda: recurrent(jax.nn.hard_tanh))
case(0.05, 60, TOLD, name="recurrent_tanh_network")(lambda: recurrent(jnp.tanh))


@case(accepted=TOLD)
def maxout_network():
    def body(p, x, y):
        pieces = (x @ p["w"]).reshape(16, 3, 2).max(axis=2)
        return mean_square(pieces @ p["v"] - y)

    return drawn(body, {"w": layers(13, 4, 6)[0], "v": START[:3]}, x=x, y=y)


@case(accepted=TOLD)
def relu_network_with_max_pooling():
    def body(p, x, y):
        h = jax.nn.relu(x[:, :, None] * p["w"])  # (16, 4, 3)
        h = jax.lax.reduce_window(h, -jnp.inf, jax.lax.max, (1, 2, 1), (1, 2, 1), "VALID")
        return mean_square(h.reshape(16, -1) @ p["v"] - y)

    return drawn(body, {"w": START[:3], "v": layers(14, 6, 1)[0][:, 0]}, x=x, y=y)


@case(accepted=TOLD)
def relu_network_with_weight_decay_and_bias():
    def body(p, x, y):
        h = jax.nn.relu(x @ p["w"] + p["b"])
        penalty = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(p))
        return mean_square(h @ p["v"] - y) + 1e-2 * penalty

    start = {"w": layers(15, 4, 5)[0], "b": jnp.zeros(5), "v": layers(16, 5, 1)[0][:, 0]}
    return drawn(body, start, x=x, y=y)


@case(0.001, 170_000, TOLD, long=True, ratios=(2,), snapshots=5)
def many_steps_along_kinks():
    return drawn(lambda w, x, y: mean_square(jax.nn.relu(x @ w) - y), jnp.ones(4), x=x, y=y)
