"""Losses whose flow slides along a kink, where descent chatters across it."""

import jax.numpy as jnp
import optax

from tests.losses.cases import START, TOLD, case, drawn, mean_square, x, y


@case(accepted=TOLD)
def lasso():
    return drawn(lambda w, x, y: mean_square(x @ w - y) + 0.3 * jnp.abs(w).sum(), START, x=x, y=y)


@case(accepted=TOLD)
def lasso_from_zero():
    return drawn(
        lambda w, x, y: mean_square(x @ w - y) + 0.3 * jnp.abs(w).sum(), jnp.zeros(4), x=x, y=y
    )


@case(accepted=TOLD)
def least_absolute_deviations():
    return drawn(lambda w, x, y: jnp.mean(jnp.abs(x @ w - y)), START, x=x, y=y)


@case(accepted=TOLD)
def quantile_regression():
    def body(w, x, y):
        errors = y - x @ w
        return jnp.mean(jnp.maximum(0.9 * errors, -0.1 * errors))

    return drawn(body, START, x=x, y=y)


@case(accepted=TOLD)
def quantile_of_a_sample():
    def body(w, y):
        errors = y - w
        return jnp.mean(jnp.where(errors > 0, 0.3 * errors, -0.7 * errors))

    return drawn(body, jnp.array(0.9), y=y)


@case(accepted=TOLD)
def support_vector_machine():
    def body(w, x, y):
        margins = jnp.sign(y) * (x @ w)
        return jnp.mean(jnp.maximum(0, 1 - margins)) + 0.05 * w @ w

    return drawn(body, START, x=x, y=y)


@case(accepted=TOLD)
def hinge_of_optax():
    def body(w, x, y):
        return jnp.mean(optax.losses.hinge_loss(x @ w, jnp.sign(y)))

    return drawn(body, jnp.zeros(4), x=x, y=y)


@case(accepted=TOLD)
def largest_error():
    return drawn(lambda w, x, y: jnp.max(jnp.abs(x @ w - y)), START, x=x, y=y)


@case(accepted=TOLD)
def largest_of_lines():
    lines = jnp.array([[1.0, 0.2], [-0.5, 1.0], [-0.3, -1.0]])
    return drawn(lambda w, lines: jnp.max(lines @ w), jnp.array([0.9, 0.3]), lines=lines)


@case(accepted=TOLD)
def total_variation():
    def body(w, y):
        return jnp.mean((w - y) ** 2) * 4 + 0.2 * jnp.abs(jnp.diff(w)).sum()

    return drawn(body, jnp.zeros(16), y=y)


@case(accepted=TOLD)
def absolute_value():
    return drawn(lambda w: jnp.abs(w[0]) + 0.5 * w[1] ** 2, jnp.array([0.31, 1.0]))


@case(accepted=TOLD)
def norm_itself():
    return drawn(lambda w: jnp.linalg.norm(w), jnp.array([0.4, 0.3]))


@case(accepted=TOLD)
def group_lasso():
    def body(w, x, y):
        return mean_square(x @ w - y) + 0.3 * (jnp.linalg.norm(w[:2]) + jnp.linalg.norm(w[2:]))

    return drawn(body, START, x=x, y=y)


@case(accepted=TOLD)
def huber_of_optax():
    return drawn(
        lambda w, x, y: jnp.mean(optax.losses.huber_loss(x @ w, y, delta=0.3)), START, x=x, y=y
    )


@case(accepted=TOLD)
def epsilon_insensitive():
    return drawn(
        lambda w, x, y: jnp.mean(jnp.maximum(jnp.abs(x @ w - y) - 0.2, 0)), START, x=x, y=y
    )


@case(accepted=TOLD)
def triplet_loss():
    def body(w, x):
        z = x * w
        near = jnp.sum((z[:5] - z[5:10]) ** 2, axis=1)
        far = jnp.sum((z[:5] - z[10:15]) ** 2, axis=1)
        return jnp.mean(jnp.maximum(near - far + 0.5, 0))

    return drawn(body, START, x=x)


@case(accepted=TOLD)
def sliding_with_a_drift():
    return drawn(lambda w: jnp.abs(w[0] - 0.3 * w[1]) + 0.2 * w[1], jnp.array([0.2, 0.1]))


@case(accepted=TOLD)
def where_that_jumps():
    """A step in the loss itself, of which the gradient knows nothing."""
    return drawn(lambda w: jnp.sum(w**2) + jnp.where(w[0] > 0.1, 0.3, 0.0), START)
