"""Scales far apart, and gradients that float32 rounds."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.losses.cases import START, TOLD, case, drawn, mean_square, x, y


@case(step_size=1.5e-5, iterations=5000, ratios=(2,))
def rates_over_eight_decades():
    rates = jnp.logspace(-3, 5, 9)
    return drawn(lambda w, rates: 0.5 * jnp.sum(rates * w**2), jnp.ones(9), rates=rates)


def collinear():
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(200, 4))
    inputs[:, 3] = inputs[:, 2] + 0.05 * inputs[:, 3]
    targets = 5000 + 300 * generator.normal(size=200)
    sources = {"inputs": jnp.float32(inputs), "targets": jnp.float32(targets)}
    return drawn(
        lambda w, inputs, targets: mean_square(inputs @ w - targets), jnp.zeros(4), **sources
    )


case(0.1, 40000, ("told",), True, "gradients_of_large_targets", ratios=(2,), snapshots=4)(collinear)
case(
    *(0.1, 40000, ("told",), True, "gradients_of_large_targets_in_float64"),
    **{"ratios": (2,), "snapshots": 4, "arithmetic": "float64"},
)(collinear)


@case(step_size=0.2, iterations=100)
def hilbert_matrix():
    hilbert = 1 / (1 + jnp.arange(6.0) + jnp.arange(6.0)[:, None])
    return drawn(lambda w, h: 0.5 * w @ h @ w - w.sum(), jnp.ones(6), h=hilbert)


@case(step_size=1e-9)
def large_rates():
    return drawn(lambda w, x: 1e8 * jnp.mean(jnp.cosh(x @ w)), START, x=x)


@case(step_size=1e6)
def tiny_rates():
    return drawn(lambda w, x, y: 1e-8 * mean_square(x @ w - y), START, x=x, y=y)


@case(step_size=0.05, accepted=TOLD)
def large_offset():
    return drawn(lambda w, x, y: mean_square(x @ (w - 1e4) - y), START + 1e4, x=x, y=y)


@case()
def tiny_params():
    return drawn(lambda w, x, y: mean_square(x @ (w * 1e3) * 1e-3 - y), START * 1e-6, x=x, y=y)


@case(step_size=1e-3, accepted=TOLD)
def layers_of_unequal_scale():
    def body(p, x, y):
        return mean_square(jnp.tanh(x @ p["w"]) @ p["v"] - y)

    return drawn(body, {"w": jnp.ones((4, 2)) * 0.01, "v": jnp.array([20.0, -15.0])}, x=x, y=y)


@case(accepted=TOLD)
def cancelling_sum():
    """A small loss as the difference of large numbers."""
    return drawn(
        lambda w, x, y: jnp.sum((x @ w + 3e4) - (3e4 - (x @ w - y) ** 2)) / 16, START, x=x, y=y
    )


@case(accepted=TOLD)
def loss_of_zero():
    """At the minimum from the start, where runs and flow stand still."""
    return drawn(lambda w: jnp.sum(w**2), jnp.zeros(4))


@case(accepted=TOLD)
def critical_point():
    """Two layers of zeros: nothing moves."""

    def body(p, x, y):
        return mean_square(x @ p["a"] @ p["b"] - y)

    return drawn(body, {"a": jnp.zeros((4, 2)), "b": jnp.zeros(2)}, x=x, y=y)


@case()
def zero_gradient_in_one_leaf():
    return drawn(lambda p: jnp.sum(p["a"] ** 2) + 0 * p["b"].sum(), {"a": START, "b": START})


@case(step_size=0.01)
def near_a_saddle():
    return drawn(lambda w: w[0] ** 2 - w[1] ** 2 + w[1] ** 4, jnp.array([1.0, 1e-3]))


@case(step_size=0.02, accepted=TOLD)  # that of the largest step is doubted
def rosenbrock():
    def body(w):
        return (1 - w[0]) ** 2 + 10 * (w[1] - w[0] ** 2) ** 2

    return drawn(body, jnp.array([-0.5, 0.5]))


@case(accepted=TOLD)
def constant_gradient():
    """Descent and flow are the same straight line."""
    return drawn(lambda w, x: jnp.mean(x @ w), START, x=x)


@case(step_size=0.1)
def probabilities_near_one():
    def body(w, x):
        return jnp.mean(jax.nn.softplus(-20 - x @ w)) * 1e8

    return drawn(body, START, x=x)


@case(step_size=0.3, accepted=TOLD)
def step_near_the_edge():
    return drawn(lambda w: jnp.sum(jnp.array([6.0, 1.0]) * w**2) / 2, jnp.ones(2))
