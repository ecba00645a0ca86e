"""Models as they are written with JAX's libraries."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen
from jax.experimental.ode import odeint

from tests.losses.cases import KEY, START, TOLD, Loss, case, drawn, mean_square, x, y

IMAGES = jax.random.normal(KEY, (6, 1, 5, 5))


def doubled(tree):
    """Floating-point arrays within a model, in the dtype of the computation."""
    return jax.tree.map(lambda a: a * 1.0 if eqx.is_inexact_array(a) else a, tree)


@case()
def convolution_of_lax():
    def body(w, images):
        out = jnp.tanh(jax.lax.conv(images, w, (1, 1), "SAME"))
        return mean_square(out.sum(axis=(1, 2, 3)) / 9 - 0.3)

    return drawn(body, jnp.ones((2, 1, 3, 3)) / 5, images=IMAGES)


@case(accepted=TOLD)
def convolution_of_equinox():
    model = eqx.nn.Conv2d(1, 2, 3, key=KEY)
    start, static = eqx.partition(model, eqx.is_inexact_array)

    def body(params, images):
        out = jax.vmap(eqx.combine(params, static))(images)
        return mean_square(jnp.tanh(out).sum(axis=(1, 2, 3)) - 0.3)

    return drawn(body, start, images=IMAGES)


@case(accepted=TOLD)
def perceptron_of_equinox():
    model = eqx.nn.MLP(4, "scalar", 5, 2, key=KEY)
    start, static = eqx.partition(model, eqx.is_inexact_array)

    def body(params, x, y):
        return mean_square(jax.vmap(eqx.combine(params, static))(x) - y)

    return drawn(body, start, x=x, y=y)


@case()
def lstm_of_equinox():
    cell = eqx.nn.LSTMCell(2, 3, key=KEY)
    start, static = eqx.partition(cell, eqx.is_inexact_array)
    inputs = jax.random.normal(KEY, (5, 2))

    def body(params, inputs, state):
        model = eqx.combine(params, static)
        last, _ = jax.lax.scan(lambda s, row: (model(row, s), None), (state, state), inputs)
        return mean_square(last[0] - 0.3)

    return drawn(body, start, inputs=inputs, state=jnp.zeros(3))


@case()
def lstm_with_float32_state():
    """The state at the start is of float32 by name, as models write it."""
    inputs = jax.random.normal(KEY, (5, 3))

    def of_dtype(dtype):
        def body(p, inputs):
            def step(carry, row):
                h, c = carry
                i, f, o, g = jnp.split(row @ p["x"] + h @ p["h"], 4)
                c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
                return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

            zeros = jnp.zeros(3, dtype)
            return mean_square(jax.lax.scan(step, (zeros, zeros), inputs)[0][0] - 0.3)

        return body

    start = {"x": jax.random.normal(KEY, (3, 12)) / 2, "h": jnp.ones((3, 12)) / 5}
    plain = of_dtype(jnp.float64)
    return Loss(lambda p: of_dtype(jnp.float32)(p, inputs), start, lambda p, d: plain(p, d), inputs)


@case()
def gru_of_flax():
    cell = linen.GRUCell(3)
    inputs = jax.random.normal(KEY, (5, 2))
    start = cell.init(KEY, jnp.zeros(3), inputs[0])

    def body(params, inputs, state):
        def step(h, row):
            return cell.apply(params, h, row)[0], None

        return mean_square(jax.lax.scan(step, state, inputs)[0] - 0.3)

    return drawn(body, start, inputs=inputs, state=jnp.zeros(3))


@case()
def batch_normalisation_of_flax():
    class Model(linen.Module):
        @linen.compact
        def __call__(self, x):
            h = linen.BatchNorm(use_running_average=False)(linen.Dense(3)(x))
            return linen.Dense(1)(jnp.tanh(h))[:, 0]

    variables = Model().init(KEY, x)

    def body(params, x, y, rest):
        out, _ = Model().apply({"params": params, **rest}, x, mutable=["batch_stats"])
        return mean_square(out - y)

    rest = {"batch_stats": variables["batch_stats"]}
    return drawn(body, variables["params"], x=x, y=y, rest=rest)


@case()
def batch_normalisation_with_a_counter():
    def body(p, x, y, counter):
        mean, spread = x.mean(axis=0), x.std(axis=0)
        share = 1 / (counter + 1)
        h = (x - share * mean) / (spread + 1e-5) * p["scale"]
        return mean_square(jnp.tanh(h).sum(axis=1) - y + p["shift"])

    start = {"scale": START, "shift": jnp.array(0.1)}
    return drawn(body, start, x=x, y=y, counter=jnp.array(3))


@case(accepted=TOLD)
def layer_normalisation_of_flax():
    class Model(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Dense(1)(linen.LayerNorm()(linen.Dense(3)(x)))[:, 0]

    start = Model().init(KEY, x)["params"]

    def body(params, x, y):
        return mean_square(Model().apply({"params": params}, x) - y)

    return drawn(body, start, x=x, y=y)


@case(accepted=TOLD)
def attention_of_flax():
    layer = linen.MultiHeadDotProductAttention(num_heads=2, qkv_features=4)
    tokens = x.reshape(2, 8, 4)
    start = layer.init(KEY, tokens)["params"]

    def body(params, tokens, y):
        return mean_square(layer.apply({"params": params}, tokens).sum(axis=2).ravel() - y)

    return drawn(body, start, tokens=tokens, y=y)


@case()
def embedding_by_words():
    words = np.arange(16) % 5

    def body(p, y):
        return mean_square(p["table"][words] @ p["v"] - y)

    return drawn(body, {"table": jnp.ones((5, 2)) / 2, "v": jnp.array([1.0, -0.4])}, y=y)


@case(accepted=("right", "told"))
def equation_by_odeint():
    times = jnp.linspace(0, 1, 4)

    def form(w, times):
        def right(state, t):
            return jnp.array([state[1], -w[0] * state[0] - w[1] * state[1]])

        return mean_square(odeint(right, jnp.array([1.0, 0.0]), times, rtol=1e-6)[:, 0] - 0.2)

    def g(w, times):
        def right(state, t):
            return jnp.array([state[1], -w[0] * state[0] - w[1] * state[1]])

        start = jnp.array([1.0, 0.0])
        return mean_square(odeint(right, start, times, rtol=1e-11, atol=1e-11)[:, 0] - 0.2)

    return Loss(lambda w: form(w, times), jnp.array([1.0, 0.3]), g, times)


@case(accepted=("right", "told"))
def equation_by_diffrax():
    def body(w, times):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, s, w: jnp.tanh(w @ s)),
            *(diffrax.Tsit5(), 0.0, 1.0, 0.1, jnp.array([1.0, 0.0])),
            args=w,
            saveat=diffrax.SaveAt(ts=times),
        )
        return mean_square(solution.ys - 0.2)

    return drawn(body, jnp.array([[1.0, 0.3], [-0.5, 0.2]]), times=jnp.linspace(0.1, 0.9, 3))


@case(accepted=("right", "told"))
def equation_by_adaptive_steps():
    def form(tolerance):
        def body(w, times):
            solution = diffrax.diffeqsolve(
                diffrax.ODETerm(lambda t, s, w: jnp.tanh(w @ s)),
                *(diffrax.Tsit5(), 0.0, 1.0, None, jnp.array([1.0, 0.0])),
                args=w,
                saveat=diffrax.SaveAt(ts=times),
                stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
            )
            return mean_square(solution.ys - 0.2)

        return body

    start, times = jnp.array([[1.0, 0.3], [-0.5, 0.2]]), jnp.linspace(0.1, 0.9, 3)
    return Loss(lambda w: form(1e-5)(w, times), start, form(1e-10), times)


@case()
def equation_by_euler_in_a_scan():
    def body(w, dt):
        def step(state, _):
            return state + dt * jnp.tanh(w @ state), state

        return mean_square(
            jax.lax.scan(step, jnp.array([1.0, 0.0], w.dtype), None, length=8)[1] - 0.2
        )

    return drawn(body, jnp.array([[1.0, 0.3], [-0.5, 0.2]]), dt=jnp.array(0.125))


def spread(w):
    return w.reshape(2, 2) @ w.reshape(2, 2).T + 0.5 * jnp.eye(2, dtype=w.dtype)


FACTORISATIONS = {
    "solve": lambda m: jnp.linalg.solve(m, jnp.ones(2, m.dtype)).sum(),
    "cholesky": lambda m: jnp.linalg.cholesky(m).sum(),
    "log_determinant": lambda m: jnp.linalg.slogdet(m)[1],
    "eigenvalues": lambda m: jnp.linalg.eigvalsh(m)[0],
    "eigenvectors": lambda m: jnp.abs(jnp.linalg.eigh(m)[1]).sum(),
    "singular_values": lambda m: jnp.linalg.svd(m, compute_uv=False).sum(),
    "inverse": lambda m: jnp.linalg.inv(m)[0, 0],
    "exponential": lambda m: jax.scipy.linalg.expm(m)[0, 1],
    "qr": lambda m: jnp.abs(jnp.linalg.qr(m)[1]).sum(),
    "nuclear_norm": lambda m: jnp.linalg.norm(m, "nuc"),
    "power": lambda m: jnp.linalg.matrix_power(m, 3).trace() / 5,
}


def of_factorisation(function):
    def body(w, x):
        return (function(spread(w)) - 0.7) ** 2 + 0.1 * jnp.sum(w**2)

    return lambda: drawn(body, START, x=x)


for factorisation, function in FACTORISATIONS.items():
    case(name=f"matrix_{factorisation}", accepted=TOLD)(of_factorisation(function))


@case()
def spectrum_of_a_signal():
    def body(w, x):
        return mean_square(jnp.abs(jnp.fft.rfft(x @ w)) ** 2 / 16 - 0.5)

    return drawn(body, START, x=x)


@case()
def special_functions():
    def body(w):
        positive = jnp.exp(w)
        values = jax.scipy.special.gammaln(positive) + jax.scipy.special.erf(w)
        return jnp.sum((values + jax.scipy.special.i0e(w) - 0.4) ** 2)

    return drawn(body, START)


@case()
def gaussian_process():
    def body(p, x, y):
        away = jnp.sum((x[:8, None] - x[None, :8]) ** 2, axis=2)
        cover = jnp.exp(-away * jnp.exp(p["length"])) + (0.1 + p["noise"] ** 2) * jnp.eye(8)
        factor = jnp.linalg.cholesky(cover)
        white = jax.scipy.linalg.solve_triangular(factor, y[:8], lower=True)
        return (white @ white / 2 + jnp.log(jnp.diagonal(factor)).sum()) / 8

    return drawn(body, {"length": jnp.array(-0.5), "noise": jnp.array(0.5)}, x=x, y=y)


@case()
def scattered_updates():
    def body(w, x, y):
        table = jnp.zeros(16, w.dtype).at[::4].add(w).at[3].set(w[0] * w[1])
        return mean_square(jnp.roll(table, 2) + x @ w - y)

    return drawn(body, START, x=x, y=y)


@case()
def sliced_by_data():
    begin = jnp.array(3)

    def f(w):
        rows = jax.lax.dynamic_slice(x, (begin, 0), (8, 4))
        return mean_square(rows @ w - jax.lax.dynamic_slice(y, (begin,), (8,)))

    return Loss(f, START, lambda w, data: mean_square(data[0] @ w - data[1]), (x[3:11], y[3:11]))


@case()
def cosine_similarity():
    def body(w, x, y):
        out = x @ w
        return 1 - out @ y / (jnp.linalg.norm(out) * jnp.linalg.norm(y)) + 0.1 * jnp.sum(w**2)

    return drawn(body, START, x=x, y=y)


@case()
def contrastive_learning():
    def body(w, x):
        z = x[:8] @ w
        z = z / jnp.sqrt(jnp.sum(z**2, axis=1, keepdims=True) + 1e-6)
        other = (x[:8] + 0.1) @ w
        return -jnp.mean(jnp.diagonal(jax.nn.log_softmax(z @ other.T)))

    return drawn(body, jnp.sin(jnp.arange(8.0)).reshape(4, 2), x=x)
