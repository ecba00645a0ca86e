"""Layers that stand at a kink: descent takes JAX's derivative there, and so must the flow."""

import jax
import jax.numpy as jnp

from tests.losses.cases import START, TOLD, case, drawn, mean_square, x, y

ZEROS = {"w": jnp.zeros((4, 3)), "v": jnp.array([1.0, -0.5, 0.3])}
ACTIVATIONS = {
    "relu": jax.nn.relu,
    "maximum": lambda h: jnp.maximum(h, 0),
    "maximum_of_zero": lambda h: jnp.maximum(0.0, h),
    "minimum": lambda h: jnp.minimum(h, 0.0) - h,
    "abs": jnp.abs,
    "where_from_zero": lambda h: jnp.where(h >= 0, h, 0.0),
    "where_above_zero": lambda h: jnp.where(h > 0, h, 0.0),
    "clip": lambda h: jnp.clip(h, 0, 1),
    "leaky_relu": jax.nn.leaky_relu,
    "relu6": jax.nn.relu6,
    "hard_tanh": lambda h: jax.nn.hard_tanh(h + 1),
    "hard_sigmoid": lambda h: 3 * jax.nn.hard_sigmoid(h + 3),
    "hard_swish": lambda h: jax.nn.hard_swish(h - 3),
    "elu": jax.nn.elu,
    "selu": jax.nn.selu,
    "times_positive": lambda h: h * (h > 0),
    "times_sign": lambda h: h * jnp.sign(h),
    "relu_squared": lambda h: jax.nn.relu(h) ** 2,
    "half_of_abs": lambda h: (h + jnp.abs(h)) / 2,
    "lax_max": lambda h: jax.lax.max(h, jnp.zeros_like(h)),
    "maximum_of_halves": lambda h: jnp.maximum(h, 0.5 * h),
}


def of_activation(activation):
    def body(p, x, y):
        return mean_square(activation(x @ p["w"]) @ p["v"] + x[:, 0] * p["v"][0] - y)

    return lambda: drawn(body, ZEROS, x=x, y=y)


for activation_name, function in ACTIVATIONS.items():
    case(name=f"zeros_before_{activation_name}", accepted=TOLD)(of_activation(function))


@case(accepted=TOLD)
def largest_of_equal_outputs():
    def body(w, x, y):
        return mean_square(jnp.max(x[:, :, None] * w[:, None] * jnp.ones(2), axis=2).sum(1) - y)

    return drawn(body, START, x=x, y=y)


@case(accepted=TOLD)
def maxout_of_zeros():
    def body(w, x, y):
        return mean_square(jnp.max(x @ w, axis=1) + x @ w[:, 0] - y)

    return drawn(body, jnp.zeros((4, 3)), x=x, y=y)


@case(accepted=TOLD)
def zero_bias_and_zero_inputs():
    def body(p, x, y):
        return mean_square(jax.nn.relu(x @ p["w"] + p["b"]) @ p["v"] - y)

    start = {"w": jnp.ones((4, 3)) / 3, "b": jnp.zeros(3), "v": jnp.array([1.0, -0.5, 0.3])}
    return drawn(body, start, x=x.at[:5].set(0.0), y=y)


@case(accepted=TOLD)
def maximum_of_a_parameter_with_itself():
    return drawn(lambda w: jnp.sum(jnp.maximum(w, w) ** 2 + jnp.maximum(w, 2 * w)), START)


@case()
def relu_of_what_stays_zero():
    """Derivative 0 at 0, so that nothing moves but the other leaf."""

    def body(p, x, y):
        return mean_square(jax.nn.relu(p["dead"]).sum() + x @ p["w"] - y)

    return drawn(body, {"dead": jnp.zeros(3), "w": START}, x=x, y=y)


@case(accepted=TOLD)
def sorted_ties():
    def body(w, x, y):
        return mean_square(jnp.sort(x * w, axis=1) @ jnp.array([1.0, 2.0, -1.0, 0.5]) - y + w.sum())

    return drawn(body, jnp.zeros(4), x=x, y=y)


@case(name="where_with_other_constants", accepted=TOLD)
def where_of_data():
    low, high, shift = jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0]), jnp.array([0.1, 0.2])

    def body(w, low, high, shift):
        return jnp.sum((w - (jnp.where(w > 0, low, high) + shift)) ** 2)

    return drawn(body, jnp.array([0.5, -0.5]), low=low, high=high, shift=shift)
