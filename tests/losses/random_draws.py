"""Draws by keys within the loss: the float64 form takes what was drawn in float32."""

import equinox as eqx
import jax
import jax.numpy as jnp
from flax import linen, nnx

from tests.losses.cases import KEY, START, Loss, case, drawn, mean_square, x, y

TWO_LAYERS = {
    "w": jax.random.normal(jax.random.key(3), (4, 3)) / 2,
    "v": jnp.array([1.0, -0.5, 0.3]),
}


@case()
def dropout_by_bernoulli():
    def inputs():
        return jnp.where(jax.random.bernoulli(KEY, 0.5, (16, 4)), 2 * jnp.tanh(x), 0.0)

    return drawn(lambda w, inputs: mean_square(inputs @ w - y), jnp.zeros(4) + 0.3, inputs=inputs)


def on_hidden(p, mask):
    return mean_square((jnp.tanh(x @ p["w"]) * mask) @ p["v"] - y)


def of_mask(dropout):
    """A hidden layer under a dropout, whose mask is what it makes of ones."""

    def f(p):
        return mean_square(dropout(jnp.tanh(x @ p["w"])) @ p["v"] - y)

    return Loss(f, TWO_LAYERS, on_hidden, dropout(jnp.ones((16, 3))))


@case()
def dropout_of_flax_linen():
    layer = linen.Dropout(0.4, deterministic=False)
    return of_mask(lambda h: layer.apply({}, h, rngs={"dropout": KEY}))


@case()
def dropout_of_flax_nnx():
    return of_mask(lambda h: nnx.Dropout(0.4)(h, rngs=nnx.Rngs(dropout=3)))


@case()
def dropout_of_equinox():
    return of_mask(lambda h: eqx.nn.Dropout(0.4)(h, key=KEY))


@case(accepted=("right", "told"))
def dropout_after_relu():
    def f(p):
        return mean_square(eqx.nn.Dropout(0.4)(jax.nn.relu(x @ p["w"]), key=KEY) @ p["v"] - y)

    def g(p, mask):
        return mean_square((jax.nn.relu(x @ p["w"]) * mask) @ p["v"] - y)

    return Loss(f, TWO_LAYERS, g, eqx.nn.Dropout(0.4)(jnp.ones((16, 3)), key=KEY))


@case()
def key_made_in_the_loss():
    def noise():
        return jax.random.normal(jax.random.PRNGKey(3), (16, 4)) / 4

    return drawn(lambda w, noise: mean_square((x + noise) @ w - y), START, noise=noise)


@case()
def other_generator():
    def noise():
        return jax.random.uniform(jax.random.key(5, impl="rbg"), (16, 4))

    return drawn(lambda w, noise: mean_square((x * noise) @ w - y), START, noise=noise)


@case()
def permuted_examples():
    def order():
        return jax.random.permutation(KEY, 16)

    def body(w, order):
        return mean_square(x[order] @ w - y)

    return drawn(body, START, order=order)


@case()
def permuted_targets():
    def targets():
        return jax.random.permutation(KEY, y)

    return drawn(lambda w, targets: mean_square(x @ w - targets), START, targets=targets)


@case()
def minibatch_by_randint():
    def rows():
        return jax.random.randint(KEY, (9,), 0, 16)

    return drawn(lambda w, rows: mean_square(x[rows] @ w - y[rows]), START, rows=rows)


@case()
def minibatch_by_choice():
    def rows():
        return jax.random.choice(KEY, 16, (7,), replace=False)

    return drawn(lambda w, rows: mean_square(x[rows] @ w - y[rows]), START, rows=rows)


@case()
def labels_by_categorical():
    def labels():
        return jax.random.categorical(KEY, jnp.stack([x[:, 0], -x[:, 1]], axis=1))

    def body(w, labels):
        scores = x @ w.reshape(4, 2)
        return -jnp.mean(jax.nn.log_softmax(scores)[jnp.arange(16), labels])

    return drawn(body, jnp.linspace(-1, 1, 8), labels=labels)


@case()
def truncated_normal_features():
    def features():
        return jax.random.truncated_normal(KEY, -1.0, 2.0, (4, 3))

    def body(w, features):
        return mean_square(jnp.cos(x @ features) @ w - y)

    return drawn(body, jnp.zeros(3), features=features)


@case()
def variational_autoencoder():
    def noise():
        return jax.random.normal(KEY, (16, 2))

    def body(p, noise):
        mean, log_scale = x @ p["mean"], x @ p["scale"] / 4
        rebuilt = (mean + jnp.exp(log_scale) * noise) @ p["out"]
        divergence = mean**2 + jnp.exp(2 * log_scale) - 1 - 2 * log_scale
        return mean_square(rebuilt - x) + 0.1 * jnp.mean(divergence)

    start = {
        "mean": jnp.ones((4, 2)) / 3,
        "scale": jnp.linspace(-1, 1, 8).reshape(4, 2),
        "out": jnp.eye(2, 4),
    }
    return drawn(body, start, noise=noise)


@case()
def gumbel_softmax():
    def noise():
        return jax.random.gumbel(KEY, (16, 4))

    def body(w, noise):
        shares = jax.nn.softmax((x * w + noise) / 0.7)
        return mean_square(jnp.sum(shares * jnp.arange(4.0), axis=1) - y)

    return drawn(body, START, noise=noise)


@case()
def noise_in_a_scan():
    keys = jax.random.split(KEY, 5)

    def f(w):
        def step(h, key):
            return jnp.tanh(h * w + jax.random.normal(key, (4,)) / 3), None

        return mean_square(jax.lax.scan(step, jnp.zeros(4), keys)[0] - 0.4)

    def g(w, noise):
        def step(h, noise):
            return jnp.tanh(h * w + noise), None

        return mean_square(jax.lax.scan(step, jnp.zeros(4), noise)[0] - 0.4)

    return Loss(f, START, g, jax.vmap(lambda key: jax.random.normal(key, (4,)) / 3)(keys))


@case()
def keys_folded_in_a_loop():
    def f(w):
        def body(i, total):
            mask = jax.random.bernoulli(jax.random.fold_in(KEY, i), 0.5, (16, 4))
            return total + mean_square((x * mask) @ w - y)

        return jax.lax.fori_loop(0, 3, body, 0.0)

    def g(w, masks):
        return sum(mean_square((x * mask) @ w - y) for mask in masks)

    draws = [jax.random.bernoulli(jax.random.fold_in(KEY, i), 0.5, (16, 4)) for i in range(3)]
    return Loss(f, START, g, jnp.stack(draws) * 1.0)


@case()
def reparametrised_exponential():
    def draws():
        return jax.random.exponential(KEY, (16,))

    def body(w, draws):
        return mean_square(draws * jnp.exp(x @ w / 4) - y)

    return drawn(body, START, draws=draws)


@case()
def score_function_gradient():
    def actions():
        return jax.random.categorical(KEY, jnp.zeros((16, 3))) * 1.0

    def body(w, actions):
        log_shares = jax.nn.log_softmax(jnp.outer(x[:, 0], w))
        taken = jnp.sum(log_shares * (actions[:, None] == jnp.arange(3.0)), axis=1)
        return -jnp.mean(jax.lax.stop_gradient(jnp.exp(taken) * y) * taken)

    return drawn(body, START[:3], actions=actions)


@case(accepted=("right", "told", "refused"))
def stochastic_depth_by_cond():
    def kept():
        return jax.random.bernoulli(KEY, 0.5, (3,))

    def body(p, kept, x, y):
        h = x
        for number in range(3):
            layer = p[number]
            h = jax.lax.cond(
                kept[number], lambda h, w: h + jnp.tanh(h * w), lambda h, w: h, h, layer
            )
        return mean_square(h.sum(axis=1) - y)

    return drawn(body, [START, START[::-1], -START], kept=kept, x=x, y=y)
