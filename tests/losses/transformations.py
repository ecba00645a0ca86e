"""Programs within programs: jit, checkpoint, custom derivatives, derivatives in the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.losses.cases import START, TOLD, Loss, case, drawn, mean_square, x, y

NUMPY_X = np.random.default_rng(0).normal(size=(16, 4))
NUMPY_Y = np.linspace(-1, 1, 16)


@case(0.01, 10)
def jitted_with_numpy_arrays():
    def g(w, data):
        return mean_square(data[0] @ w - data[1])

    data = (np.float32(NUMPY_X), np.float32(NUMPY_Y))
    return Loss(jax.jit(lambda w: mean_square(NUMPY_X @ w - NUMPY_Y)), START, g, data)


@case(0.01, 10)
def jitted_with_numpy_indices():
    rows, counts = np.arange(0, 16, 2), np.arange(8)

    def body(w, x):
        return mean_square(x[::2] @ w - counts / 8)

    # A form each: JAX holds the arrays of a jitted function in the precision it first met.
    return Loss(jax.jit(lambda w: mean_square(x[rows] @ w - counts / 8)), START, body, x)


@case()
def jitted_within():
    inner = jax.jit(lambda w, x: jnp.tanh(x @ w))
    return drawn(lambda w, x, y: mean_square(inner(w, x) - y), START, x=x, y=y)


@case()
def rematerialised():
    inner = jax.checkpoint(lambda w, x: jnp.tanh(x @ w))
    return drawn(lambda w, x, y: mean_square(inner(w, x) - y), START, x=x, y=y)


@case(accepted=TOLD)
def rematerialised_relu():
    inner = jax.checkpoint(lambda w, x: jax.nn.relu(x @ w))
    return drawn(lambda w, x, y: mean_square(inner(w, x) + x @ w - y), START, x=x, y=y)


@case()
def custom_jvp_of_log1pexp():
    @jax.custom_jvp
    def soft(h):
        return jnp.log1p(jnp.exp(h))

    soft.defjvps(lambda t, _, h: jax.nn.sigmoid(h) * t)
    return drawn(lambda w, x, y: mean_square(soft(x @ w) - y), START, x=x, y=y)


@case()
def custom_vjp_that_clips_nothing():
    @jax.custom_vjp
    def scale(h):
        return h

    scale.defvjp(lambda h: (h, h), lambda h, g: (g * (1 + h**2),))
    return drawn(lambda w, x, y: mean_square(scale(x @ w) - y), START, x=x, y=y)


@case(accepted=TOLD)
def custom_vjp_that_clips_gradients():
    @jax.custom_vjp
    def clipped(h):
        return h

    clipped.defvjp(lambda h: (h, None), lambda _, g: (jnp.clip(g, -0.05, 0.05),))
    return drawn(lambda w, x, y: mean_square(clipped(x @ w) - y), START, x=x, y=y)


@case(accepted=TOLD)
def surrogate_derivative_of_spikes():
    @jax.custom_jvp
    def spike(h):
        return (h > 0) * 1.0

    spike.defjvps(lambda t, _, h: t / (1 + 10 * jnp.abs(h)) ** 2)
    return drawn(lambda w, x, y: mean_square(spike(x @ w) - y), START, x=x, y=y)


@case(accepted=TOLD)
def tangent_that_is_not_the_derivative():
    @jax.custom_jvp
    def bent(h):
        return jnp.clip(h, 0, 1)

    bent.defjvps(lambda t, _, h: jnp.cos(h) * t)

    def body(w, x, y):
        return jnp.mean(optax.huber_loss(bent(x @ w) + x @ w, y, delta=0.5))

    return drawn(body, START, x=x, y=y)


@case(accepted=TOLD)
def straight_through_in_a_window():
    @jax.custom_jvp
    def binary(h):
        return jnp.sign(h)

    binary.defjvps(lambda t, _, h: jnp.where(jnp.abs(h) < 1, t, 0.0))
    return drawn(lambda w, x, y: mean_square(binary(x @ w) / 2 + x @ w - y), START, x=x, y=y)


@case()
def gradient_penalty():
    def body(w, x, y):
        def out(row):
            return jnp.tanh(row @ w)

        slopes = jax.vmap(jax.grad(out))(x)
        return mean_square(jax.vmap(out)(x) - y) + 0.1 * mean_square(slopes)

    return drawn(body, START, x=x, y=y)


@case()
def equation_of_physics():
    def body(p, times):
        def u(t):
            return jnp.sum(p["v"] * jnp.tanh(p["w"] * t + p["b"]))

        residual = jax.vmap(lambda t: jax.grad(jax.grad(u))(t) + u(t))(times)
        return mean_square(residual) + (u(0.0) - 1) ** 2

    start = {"v": START, "w": jnp.array([1.0, -0.5, 0.7, 0.2]), "b": jnp.zeros(4)}
    return drawn(body, start, times=jnp.linspace(0, 1, 8))


@case()
def inner_step_of_learning():
    def body(w, x, y):
        inner = jax.grad(lambda w: mean_square(jnp.tanh(x[:8] @ w) - y[:8]))(w)
        return mean_square(jnp.tanh(x[8:] @ (w - 0.3 * inner)) - y[8:])

    return drawn(body, START, x=x, y=y)


@case()
def jacobian_by_jvp():
    def body(w, x, y):
        out, slope = jax.jvp(lambda x: jnp.sin(x @ w), (x,), (jnp.ones_like(x),))
        return mean_square(out - y) + 0.1 * mean_square(slope)

    return drawn(body, START, x=x, y=y)


@case()
def associative_scan():
    def body(w, x, y):
        decayed = jax.lax.associative_scan(
            lambda a, b: (a[0] * b[0], a[1] * b[0] + b[1]), (jax.nn.sigmoid(x * w), x)
        )[1]
        return mean_square(decayed.sum(axis=1) / 4 - y)

    return drawn(body, START, x=x, y=y)


@case()
def loop_of_fixed_length():
    def body(w, x, y):
        out = jax.lax.fori_loop(0, 4, lambda i, h: jnp.tanh(h * w + x), jnp.zeros_like(x))
        return mean_square(out.sum(axis=1) - y)

    return drawn(body, START, x=x, y=y)


@case(accepted=("right", "told", "refused"))
def callback_with_derivative():
    def host(v):
        return np.asarray(np.sin(v), v.dtype)

    @jax.custom_vjp
    def outside(h):
        return jax.pure_callback(host, jax.ShapeDtypeStruct(h.shape, h.dtype), h)

    outside.defvjp(lambda h: (outside(h), h), lambda h, g: (g * jnp.cos(h),))

    def f(w):
        return mean_square(outside(x @ w) - y)

    def g(w, data):
        return mean_square(jnp.sin(data[0] @ w) - data[1])

    return Loss(f, START, g, (x, y))


@case()
def donated_and_static_arguments():
    inner = jax.jit(lambda kind, w, x: getattr(jnp, kind)(x @ w), static_argnums=0)
    return drawn(lambda w, x, y: mean_square(inner("tanh", w, x) - y), START, x=x, y=y)


@case()
def weak_types():
    def body(w, x, y):
        total = 0.0
        for i in range(4):
            total += (w[i] * (i + 1) / 3) ** 2 * np.float64(0.5) + np.int32(2) * w[i]
        return total + mean_square(x @ w - y)

    return drawn(body, START, x=x, y=y)
