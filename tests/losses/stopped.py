"""Losses whose gradient is not that of a function: its Jacobian is not symmetric."""

import jax
import jax.numpy as jnp

from tests.losses.cases import START, TOLD, case, drawn, mean_square, x, y

stop = jax.lax.stop_gradient


@case(step_size=0.05, iterations=100)
def half_stopped():
    return drawn(lambda w: 0.5 * jnp.sum((w - stop(0.9 * w) - 1) ** 2), jnp.zeros(1))


@case()
def simsiam():
    def body(p, x):
        def normal(z):
            return z / jnp.linalg.norm(z, axis=1, keepdims=True)

        one, other = jnp.tanh(x @ p["w"]), jnp.tanh((x + 0.2) @ p["w"])
        return -jnp.mean(jnp.sum(normal(one @ p["v"]) * normal(stop(other)), axis=1))

    start = {"w": jnp.sin(jnp.arange(12.0)).reshape(4, 3), "v": jnp.eye(3) + 0.3}
    return drawn(body, start, x=x)


@case()
def temporal_difference():
    def body(w, x, y):
        values = x @ w
        return mean_square(values[:-1] - (y[:-1] + 0.9 * stop(values[1:])))

    return drawn(body, START, x=x, y=y)


@case()
def rotating_td():
    """Off-policy learning: a rotation, whose Jacobian has complex eigenvalues."""

    def body(w):
        pull = jnp.array([[0.2, 1.0], [-1.0, 0.2]])
        return w @ stop(pull @ w)

    return drawn(body, jnp.array([1.0, 0.5]))


@case()
def minimax_by_reversal():
    def body(p):
        reversed_ = 2 * stop(p["y"]) - p["y"]
        return (
            0.5 * jnp.sum(p["x"] ** 2) + jnp.sum(p["x"] * reversed_) - 0.5 * jnp.sum(reversed_**2)
        )

    return drawn(body, {"x": jnp.array([1.0, 2.0]), "y": jnp.array([0.5, -1.0])})


@case()
def gradient_reversal():
    @jax.custom_vjp
    def reverse(h):
        return h

    reverse.defvjp(lambda h: (h, None), lambda _, g: (-g,))

    def body(p, x, y):
        features = x @ p["w"]
        domain = mean_square(reverse(features) @ p["v"])
        return mean_square(features.sum(axis=1) - y) + 0.3 * domain

    return drawn(body, {"w": jnp.ones((4, 2)) / 4, "v": jnp.array([1.0, -0.5])}, x=x, y=y)


@case(accepted=TOLD)
def straight_through_rounding():
    def body(w, x, y):
        rounded = w + stop(jnp.round(4 * w) / 4 - w)
        return mean_square(x @ rounded - y)

    return drawn(body, START, x=x, y=y)


@case(accepted=TOLD)
def straight_through_sign():
    def body(p, x, y):
        h = jnp.tanh(x @ p["w"])
        return mean_square((h + stop(jnp.sign(h) - h)) @ p["v"] - y)

    return drawn(body, {"w": jnp.ones((4, 2)) / 3, "v": jnp.array([0.4, -0.2])}, x=x, y=y)


@case(accepted=TOLD)
def vector_quantisation():
    def body(p, x):
        z = x @ p["in"]
        nearest = jnp.argmin(jnp.sum((z[:, None] - p["codes"]) ** 2, axis=2), axis=1)
        code = p["codes"][nearest]
        through = z + stop(code - z)
        rebuilt = through @ p["out"]
        return mean_square(rebuilt - x) + mean_square(stop(z) - code) + mean_square(z - stop(code))

    codes = jnp.array([[1.0, 0.0], [-1.0, 0.3], [0.0, -1.0]])
    return drawn(body, {"in": jnp.eye(4, 2), "out": jnp.eye(2, 4), "codes": codes}, x=x)


@case()
def advantage_weights():
    def body(w, x, y):
        scores = x @ w
        weights = stop(jax.nn.softmax(scores))
        return jnp.sum(weights * (scores - y) ** 2)

    return drawn(body, START, x=x, y=y)


@case()
def stopped_normaliser():
    def body(w, x, y):
        out = x @ w
        return mean_square(out / stop(1 + jnp.std(out)) - y)

    return drawn(body, START, x=x, y=y)


@case()
def focal_loss_with_stopped_weights():
    def body(w, x, y):
        share = jax.nn.sigmoid(x @ w)
        label = (y > 0) * 1.0
        hit = label * share + (1 - label) * (1 - share)
        return -jnp.mean(stop((1 - hit) ** 2) * jnp.log(hit))

    return drawn(body, START, x=x, y=y)


@case()
def wholly_stopped_part():
    def body(p, x, y):
        return mean_square(x @ p["w"] + stop(x @ p["frozen"]) - y)

    return drawn(body, {"w": START, "frozen": START[::-1]}, x=x, y=y)


@case()
def zero_by_its_own_value():
    """The value is constant, the gradient is not."""
    return drawn(lambda w: jnp.sum(w**2 - stop(w**2)) + 1, START)
