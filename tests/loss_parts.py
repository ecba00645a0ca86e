"""Parts that random losses are made of. KINKED names those at which a gradient may jump."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.losses.cases import x, y

stop = jax.lax.stop_gradient
MASK = np.random.default_rng(1).random((16, 4)) < 0.7
GROUPS = np.arange(16) % 5
COUNTS = np.arange(16) % 4  # int64 of NumPy


# Inputs: arrays that are closed over, or functions of a key that are called within the loss.
def normalised():
    return (x - x.mean(axis=0)) / (x.std(axis=0) + 1e-6)


def encoded():
    return jax.nn.one_hot(COUNTS, 4) + 0.1 * jnp.arange(4)


INPUTS = {
    "closed_over": lambda key: x,
    "numpy_float64": lambda key: np.random.default_rng(2).normal(size=(16, 4)),
    "numpy_ints": lambda key: np.random.default_rng(3).integers(-2, 3, (16, 4)),
    "computed": lambda key: lambda: jnp.tanh(2 * x) + 0.3,
    "normalised": lambda key: normalised,
    "one_hot": lambda key: encoded,
    "noisy": lambda key: lambda: x + jax.random.normal(key, (16, 4)) / 4,
    "dropped_out": lambda key: lambda: jnp.where(jax.random.bernoulli(key, 0.7, (16, 4)), x, 0.0),
    "permuted": lambda key: lambda: jax.random.permutation(key, x),
    "resampled": lambda key: lambda: x[jax.random.randint(key, (16,), 0, 16)],
    "key_within": lambda key: lambda: jax.random.uniform(jax.random.PRNGKey(4), (16, 4)) - 0.4,
    "with_zeros": lambda key: x.at[:4].set(0.0),
}
TARGETS = {
    "float32": lambda key: y,
    "numpy_float64": lambda key: np.sin(np.linspace(-2, 2, 16)),
    "ints": lambda key: COUNTS - 1,
    "drawn": lambda key: lambda: jax.random.truncated_normal(key, -1.0, 1.0, (16,)),
    "binary": lambda key: (y > 0.1) * 1.0,
}

ACTIVATIONS = {
    "identity": lambda h: h,
    "tanh": jnp.tanh,
    "gelu": jax.nn.gelu,
    "softplus": jax.nn.softplus,
    "silu": jax.nn.silu,
    "sine": jnp.sin,
    "square": lambda h: h**2 / 2,
    "relu": jax.nn.relu,
    "maximum": lambda h: jnp.maximum(h, 0),
    "abs": jnp.abs,
    "clip": lambda h: jnp.clip(h, -0.5, 0.8),
    "leaky_relu": jax.nn.leaky_relu,
    "relu6": lambda h: jax.nn.relu6(6 * h) / 6,
    "hard_tanh": jax.nn.hard_tanh,
    "where_from_zero": lambda h: jnp.where(h >= 0, h, 0.1 * h),
    "elu": jax.nn.elu,
}


def spread_kept(h):
    return (h - h.mean(axis=1, keepdims=True)) / jnp.sqrt(h.var(axis=1, keepdims=True) + 0.1)


def masked_softmax(h):
    return jax.nn.softmax(jnp.where(MASK[:, :3], h, -jnp.inf).at[:, 0].set(h[:, 0]), axis=1)


def recurrence(h):
    def step(state, column):
        state = jnp.tanh(0.7 * state + column)
        return state, state

    return jax.lax.scan(step, jnp.zeros(16, h.dtype), h.T)[1].T


def kinked_recurrence(h):
    def step(state, column):
        state = jax.nn.relu(0.7 * state + column)
        return state, state

    return jax.lax.scan(step, jnp.zeros(16, h.dtype), h.T)[1].T


def group_maximum(h):
    return h - 0.5 * jax.ops.segment_max(h, GROUPS, 5)[GROUPS]


# Of hidden units, (16, 3) to (16, 3).
MIXERS = {
    "none": lambda h: h,
    "layer_norm": spread_kept,
    "cumsum": lambda h: jnp.cumsum(h, axis=1) / 2,
    "masked_softmax": masked_softmax,
    "scan": recurrence,
    "gather": lambda h: h[GROUPS * 3],
    "segment_sum": lambda h: jax.ops.segment_sum(h, GROUPS, 5)[GROUPS] / 3,
    "mapped": lambda h: jax.lax.map(lambda row: row * row.mean(), h),
    "sort": lambda h: jnp.sort(h, axis=1),
    "top_k": lambda h: jnp.pad(jax.lax.top_k(h, 2)[0], ((0, 0), (0, 1))),
    "median": lambda h: h - jnp.median(h, axis=1, keepdims=True),
    "argmax": lambda h: h + jnp.take_along_axis(h, jnp.argmax(h, axis=1)[:, None], axis=1),
    "max": lambda h: h - 0.5 * jnp.max(h, axis=1, keepdims=True),
    "cummax": lambda h: jax.lax.cummax(h, axis=1),
    "segment_max": group_maximum,
    "relu_scan": kinked_recurrence,
}


# Of outputs, (16,) to (16,).
def branch_by_data(out):
    return jax.lax.cond(jnp.asarray(COUNTS).sum() > 3, jnp.tanh, lambda o: jnp.log(o - 99), out)


def branch_by_outputs(out):
    return jax.lax.cond(jnp.mean(out) > 0.2, lambda o: o, lambda o: 0.5 * o + 0.1, out)


def rows_branch(out):
    return jax.vmap(
        lambda o: jax.lax.cond(o > 0.5, lambda o: 0.5 + jnp.log(o + 0.5), lambda o: o, o)
    )(out)


def shares_of_counts(out):
    return jnp.where(COUNTS > 0, out / jnp.where(COUNTS > 0, COUNTS, 1), 0.1)


GUARDS = {
    "none": lambda out: out,
    "root": lambda out: jnp.where(MASK[:, 0], jnp.sqrt(jnp.where(MASK[:, 0], out**2 + 0.1, 1)), 0),
    "division": shares_of_counts,
    "cond_of_data": branch_by_data,
    "far_log": lambda out: jnp.where(out > -99, out, jnp.log(out)),
    "log": lambda out: jnp.where(out > 0.3, jnp.log(jnp.where(out > 0.3, out, 1)) + 1.5, out),
    "cond": branch_by_outputs,
    "cond_of_rows": rows_branch,
    "clipped": lambda out: jnp.clip(out, -0.7, 0.9),
}
STOPS = {
    "none": lambda out: out,
    "target": lambda out: out - stop(0.4 * out),
    "neighbour": lambda out: out - 0.8 * stop(jnp.roll(out, 1)),
    "normaliser": lambda out: out / stop(1 + jnp.std(out)),
    "weights": lambda out: out * stop(1 + jax.nn.softmax(out)),
    "rounding": lambda out: out + stop(jnp.round(2 * out) / 2 - out),
}


def custom_derivative(function):
    """Its derivative by a rule that says the same, and a little more."""

    @jax.custom_vjp
    def one(h):
        return function(h)

    def back(h, g):
        return (jax.vjp(function, h)[1](g)[0] + 0.1 * g,)

    one.defvjp(lambda h: (function(h), h), back)
    return one


def custom_tangent(function):
    @jax.custom_jvp
    def one(h):
        return function(h)

    one.defjvp(lambda primals, tangents: (one(*primals), jnp.cos(primals[0]) * tangents[0]))
    return one


WRAPPERS = {
    "none": lambda function: function,
    "jit": jax.jit,
    "checkpoint": jax.checkpoint,
    "vmap": jax.vmap,
    "custom_vjp": custom_derivative,
    "custom_jvp": custom_tangent,
}
LOSSES = {
    "squared": lambda out, t: jnp.mean((out - t) ** 2),
    "logistic": lambda out, t: jnp.mean(jax.nn.softplus(-(2.0 * (t > 0) - 1) * out)),
    "log_cosh": lambda out, t: jnp.mean(jnp.log(jnp.cosh(out - t))),
    "summed": lambda out, t: jnp.sum((out - t) ** 2) / 10,
    "huber": lambda out, t: jnp.mean(
        jnp.where(jnp.abs(out - t) < 0.5, (out - t) ** 2, jnp.abs(out - t) - 0.25)
    ),
    "absolute": lambda out, t: jnp.mean(jnp.abs(out - t)),
    "hinge": lambda out, t: jnp.mean(jnp.maximum(0, 1 - (2.0 * (t > 0) - 1) * out)),
    "quantile": lambda out, t: jnp.mean(jnp.maximum(0.8 * (t - out), 0.2 * (out - t))),
    "median": lambda out, t: jnp.median((out - t) ** 2),
}
PENALTIES = {
    "none": lambda p: 0.0,
    "squared": lambda p: 0.02 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(p)),
    "absolute": lambda p: 0.02 * sum(jnp.sum(jnp.abs(leaf)) for leaf in jax.tree.leaves(p)),
    "largest": lambda p: 0.1 * jnp.max(jnp.abs(p["v"])),
}
ALL = {
    "inputs": INPUTS,
    "targets": TARGETS,
    "activation": ACTIVATIONS,
    "mixer": MIXERS,
    "guard": GUARDS,
    "stop": STOPS,
    "wrapper": WRAPPERS,
    "loss": LOSSES,
    "penalty": PENALTIES,
}
KINKED = {
    "activation": [
        "relu",
        "maximum",
        "abs",
        "clip",
        "leaky_relu",
        "relu6",
        "hard_tanh",
        "where_from_zero",
        "elu",
    ],
    "mixer": ["sort", "top_k", "median", "argmax", "max", "cummax", "segment_max", "relu_scan"],
    "guard": ["log", "cond", "cond_of_rows", "clipped"],
    "stop": ["rounding"],
    "loss": ["huber", "absolute", "hinge", "quantile", "median"],
    "penalty": ["absolute", "largest"],
}
