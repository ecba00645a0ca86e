"""Masks and guards: branches that are not taken, infinities that are."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.losses.cases import START, TOLD, case, drawn, mean_square, x, y

POSITIVE = jnp.array([0.5, 1.5, 0.2, 0.9])
MASK = x > -0.3
POORLY = ("right", "told", "refused")


@case(step_size=0.01, accepted=TOLD)
def where_of_log_and_line():
    def body(w):
        values = jnp.where(w > 0, jnp.log(w), w - 1)
        return jnp.sum((values - jnp.array([1.0, -2.0])) ** 2)

    return drawn(body, jnp.array([0.5, -0.5]))


@case(step_size=0.01, accepted=TOLD)
def where_of_safe_log():
    def body(w):
        values = jnp.where(w > 0, jnp.log(jnp.where(w > 0, w, 1.0)), w - 1)
        return jnp.sum((values - jnp.array([1.0, -2.0])) ** 2)

    return drawn(body, jnp.array([0.5, -0.5]))


@case()
def masked_square_root():
    def body(w, x, y):
        h = x * w
        return mean_square(
            jnp.where(MASK, jnp.sqrt(jnp.where(MASK, h**2 + 0.1, 1.0)), 0).sum(1) - y
        )

    return drawn(body, START, x=x, y=y)


@case(accepted=TOLD)
def safe_square_root_of_relu():
    def body(w, x, y):
        h = x @ w
        root = jnp.sqrt(jnp.where(h > 0.1, h, 1.0))
        return mean_square(jnp.where(h > 0.1, root, h) - y)

    return drawn(body, START, x=x, y=y)


@case()
def masked_division():
    def body(w, x, y):
        count = jnp.array([0.0, 2.0] * 8)
        share = jnp.where(count > 0, (x @ w) / jnp.where(count > 0, count, 1), 0)
        return mean_square(share - y)

    return drawn(body, START, x=x, y=y)


@case()
def masked_nan_data():
    holes = jnp.where(x > 1, jnp.nan, x)

    def body(w, holes, y):
        return mean_square(jnp.where(jnp.isnan(holes), 0.0, holes) @ w - y)

    return drawn(body, START, holes=holes, y=y)


@case()
def nanmean_of_errors():
    targets = jnp.where(y > 0.8, jnp.nan, y)

    def body(w, x, targets):
        known = ~jnp.isnan(targets)
        return jnp.nanmean(jnp.where(known, (x @ w - jnp.where(known, targets, 0)) ** 2, jnp.nan))

    return drawn(body, START, x=x, targets=targets)


@case(accepted=TOLD)
def minus_infinity_before_max():
    def body(w, x, y):
        return mean_square(jnp.max(jnp.where(MASK | (jnp.arange(4) == 0), x * w, -jnp.inf), 1) - y)

    return drawn(body, START, x=x, y=y)


@case(accepted=TOLD)
def max_where_initial():
    def body(w, x, y):
        return mean_square(jnp.max(x * w, axis=1, where=MASK, initial=-jnp.inf).clip(-9) - y)

    return drawn(body, START, x=x, y=y)


@case()
def masked_attention():
    causal = jnp.tril(jnp.ones((16, 16), bool))

    def body(p, x, y):
        scores = jnp.where(causal, (x @ p["q"]) @ (x @ p["k"]).T, -jnp.inf)
        return mean_square(jax.nn.softmax(scores) @ (x @ p["v"]) - y)

    start = {"q": jnp.eye(4, 2), "k": jnp.eye(4, 2)[::-1], "v": START}
    return drawn(body, start, x=x, y=y)


@case(accepted=TOLD)
def softmax_by_hand():
    def body(w, x):
        scores = x @ w.reshape(4, 2)
        raised = jnp.exp(scores - scores.max(axis=1, keepdims=True))
        shares = raised / raised.sum(axis=1, keepdims=True)
        return -jnp.mean(jnp.log(shares[:, 0]) * 0.3 + jnp.log(shares[:, 1]) * 0.7)

    return drawn(body, jnp.linspace(-1, 1, 8), x=x)


@case(accepted=TOLD)
def softmax_by_hand_from_zeros():
    def body(w, x):
        scores = x @ w
        raised = jnp.exp(scores - scores.max(axis=1, keepdims=True))
        shares = raised / raised.sum(axis=1, keepdims=True)
        return -jnp.mean(jnp.log(shares[:, 0]) * 0.3 + jnp.log(shares[:, 1]) * 0.7)

    return drawn(body, jnp.zeros((4, 2)), x=x)


@case(accepted=TOLD)
def guard_by_cond():
    def body(w, x, y):
        norm = w @ w
        unit = jax.lax.cond(norm > 1e-12, lambda w: w / jnp.sqrt(w @ w), lambda w: w, w)
        return mean_square(x @ unit + x @ w - y)

    return drawn(body, START, x=x, y=y)


@case(accepted=TOLD)
def guard_by_cond_of_log():
    def body(w):
        logs = [jax.lax.cond(v > 0, lambda v: jnp.log(v), lambda v: 2 * v - 1, v) for v in w]
        return jnp.sum((jnp.stack(logs) - 0.5) ** 2)

    return drawn(
        body,
        jnp.array([0.5, -0.5]),
    )


@case(accepted=TOLD)
def guard_by_cond_under_vmap():
    def body(w, x, y):
        def one(row, target):
            out = row @ w
            return jax.lax.cond(out > 3.0, lambda o: 3 + jnp.log(o - 2), lambda o: o, out) - target

        return mean_square(jax.vmap(one)(x, y))

    return drawn(body, START, x=x, y=y)


@case(accepted=TOLD)
def branches_by_switch():
    def body(w, x, y):
        def one(row, target, kind):
            branches = [jnp.tanh, lambda o: o, lambda o: jnp.log(o - 99.0)]
            return jax.lax.switch(kind, branches, row @ w) - target

        return mean_square(jax.vmap(one)(x, y, jnp.arange(16) % 2))

    return drawn(body, START, x=x, y=y)


@case(accepted=TOLD)
def softplus_by_hand():
    def body(w, x, y):
        out = x @ w
        soft = jnp.where(out > 20, out, jnp.log1p(jnp.exp(jnp.minimum(out, 20))))
        return mean_square(soft - y)

    return drawn(body, START, x=x, y=y)


@case(accepted=TOLD)
def logistic_loss_by_abs():
    """max(z, 0) - z t + log(1 + exp(-|z|)): kinks that cancel."""

    def body(w, x, y):
        z, label = x @ w, (y > 0) * 1.0
        return jnp.mean(jnp.maximum(z, 0) - z * label + jnp.log1p(jnp.exp(-jnp.abs(z))))

    return drawn(body, START, x=x, y=y)


@case(accepted=TOLD)
def logistic_loss_by_abs_from_zeros():
    def body(w, x, y):
        z, label = x @ w, (y > 0) * 1.0
        return jnp.mean(jnp.maximum(z, 0) - z * label + jnp.log1p(jnp.exp(-jnp.abs(z))))

    return drawn(body, jnp.zeros(4), x=x, y=y)


@case(accepted=TOLD)
def logsumexp_with_masks():
    def body(w, x, y):
        keep = MASK.at[:, 0].set(True)
        return mean_square(jax.nn.logsumexp(jnp.where(keep, x * w, -jnp.inf), axis=1) - y)

    return drawn(body, START, x=x, y=y)


@case(accepted=TOLD)
def clipped_probabilities():
    def body(w, x, y):
        share = jnp.clip(jax.nn.sigmoid(x @ w), 1e-7, 1 - 1e-7)
        label = (y > 0) * 1.0
        return -jnp.mean(label * jnp.log(share) + (1 - label) * jnp.log(1 - share))

    return drawn(body, START, x=x, y=y)


@case(accepted=TOLD)
def norm_clipped_from_below():
    def body(w, x, y):
        return mean_square(x @ (w / jnp.maximum(jnp.linalg.norm(w), 1e-8)) + x @ w - y)

    return drawn(body, START, x=x, y=y)


@case(accepted=TOLD)
def gradient_clipping_in_the_loss():
    def body(w, x, y):
        inner = jax.grad(lambda w: mean_square(x @ w - y))(w)
        inner = inner * jnp.minimum(1.0, 0.5 / jnp.linalg.norm(inner))
        return mean_square(x @ (w - 0.1 * inner) - y)

    return drawn(body, START, x=x, y=y)


@case()
def select_by_data():
    def body(w, x, y):
        out = jax.lax.select(MASK, jnp.tanh(x * w), jnp.sin(x * w))
        return mean_square(out.sum(axis=1) - y)

    return drawn(body, START, x=x, y=y)


@case()
def entropy_of_shares():
    def body(w, x):
        shares = jax.nn.softmax(x @ w.reshape(4, 2))
        return jnp.mean(jax.scipy.special.xlogy(shares, shares)) + jnp.mean(shares[:, 0])

    return drawn(body, jnp.linspace(-1, 1, 8), x=x)


@case(accepted=TOLD)
def barrier_inside_a_where():
    def body(w):
        inside = jnp.where(w < 1, -jnp.log1p(-jnp.where(w < 1, w, 0)), jnp.inf)
        return jnp.sum((w - 1.5) ** 2 + 0.1 * inside)

    return drawn(body, START)


@case()
def where_promotes_dtypes():
    counts = np.arange(16) % 3  # int64 of NumPy

    def body(w, x, y):
        return mean_square(jnp.where(counts > 0, x @ w, counts) - y)

    return drawn(body, START, x=x, y=y)


@case(accepted=TOLD)
def zero_to_a_power():
    powers = np.array([0, 1, 2, 3])

    def body(w, y):
        return mean_square(jnp.float_power(1.0 * w, powers).sum() - y) + jnp.sum(w**2)

    return drawn(body, POSITIVE, y=y)
