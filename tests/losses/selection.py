"""Kinks that no maximum shows: sorting, selecting, rounding."""

import jax
import jax.numpy as jnp

from tests.losses.cases import START, TOLD, case, drawn, mean_square, x, y

GROUPS = jnp.arange(16) % 5
MATRIX = jnp.sin(jnp.arange(12.0)).reshape(4, 3)


def of_scores(combine, start=MATRIX):
    """A loss of how some function combines the scores of every example."""

    def body(w, x, y):
        return mean_square(combine(x @ w) - y)

    return lambda: drawn(body, start, x=x, y=y)


COMBINATIONS = {
    "median": lambda s: jnp.median(s, axis=1),
    "sort": lambda s: jnp.sort(s, axis=1) @ jnp.array([1.0, -0.5, 0.3]),
    "top_k": lambda s: jax.lax.top_k(s, 2)[0] @ jnp.array([1.0, -0.4]),
    "argmax": lambda s: jnp.take_along_axis(s, jnp.argmax(s, axis=1)[:, None], axis=1)[:, 0],
    "indexed_by_argmin": lambda s: s[jnp.arange(16), jnp.argmin(s, axis=1)],
    "argsort": lambda s: jnp.take_along_axis(s, jnp.argsort(s, axis=1), 1)[:, 1],
    "quantile": lambda s: jnp.quantile(s, 0.3, axis=1),
    "percentile": lambda s: jnp.percentile(s, 80, axis=1),
    "one_hot_of_argmax": lambda s: jnp.sum(jax.nn.one_hot(s.argmax(1), 3) * s * 2, axis=1),
    "ptp": lambda s: jnp.ptp(s, axis=1),
    "cummax": lambda s: jax.lax.cummax(s, axis=1).sum(axis=1),
    "min": lambda s: jnp.min(s, axis=1),
    "mod": lambda s: jnp.mod(s, 1.0).sum(axis=1),
    "floor": lambda s: (s - jnp.floor(s)).sum(axis=1),
    "where_of_largest": lambda s: jnp.where(s == s.max(1, keepdims=True), s, 0.1 * s).sum(1),
    "trimmed_mean": lambda s: jnp.sort(s, axis=1)[:, 1:2].mean(axis=1),
    "sign_times_root": lambda s: (jnp.sign(s) * jnp.sqrt(jnp.abs(s) + 0.1)).sum(axis=1),
    "loop_of_maxima": lambda s: jax.lax.fori_loop(
        0, 3, lambda i, best: jnp.maximum(best, s[:, i]), jnp.full(16, -1.0, s.dtype)
    ),
    "map_of_medians": lambda s: jax.lax.map(jnp.median, s),
    "associative_max": lambda s: jax.lax.associative_scan(jnp.maximum, s, axis=1)[:, -1],
    "reduce_window": lambda s: jax.lax.reduce_window(
        s, -jnp.inf, jax.lax.max, (1, 2), (1, 1), "VALID"
    ).sum(axis=1),
}

for combination, function in COMBINATIONS.items():
    case(name=f"scores_by_{combination}", accepted=TOLD)(of_scores(function))


@case(accepted=TOLD)
def segment_max():
    def body(w, x):
        return mean_square(jax.ops.segment_max(x @ w, GROUPS, 5) - 0.5)

    return drawn(body, START, x=x)


@case()
def segment_sum():
    def body(w, x):
        return mean_square(jax.ops.segment_sum(x @ w, GROUPS, 5) / 3 - 0.5)

    return drawn(body, START, x=x)


@case(accepted=TOLD)
def median_of_losses():
    return drawn(lambda w, x, y: jnp.median((x @ w - y) ** 2), START, x=x, y=y)


@case(accepted=TOLD)
def hardest_examples():
    def body(w, x, y):
        return jnp.mean(jax.lax.top_k((x @ w - y) ** 2, 4)[0])

    return drawn(body, START, x=x, y=y)


@case(accepted=TOLD)
def nearest_centre():
    def body(w, x):
        away = jnp.sum((x[:, None, :2] - w) ** 2, axis=2)
        return jnp.mean(jnp.min(away, axis=1))

    return drawn(body, MATRIX[:3, :2], x=x)


@case(accepted=TOLD)
def interpolated_table():
    def body(w, x, y):
        table = jnp.array([0.0, 1.0, 0.5, -0.5])
        return mean_square(jnp.interp(x @ w, jnp.linspace(-2, 2, 4), table) - y)

    return drawn(body, START, x=x, y=y)


@case(accepted=TOLD)
def looked_up_by_searchsorted():
    def body(w, x, y):
        edges = jnp.array([-1.0, 0.0, 1.0])
        slopes = jnp.array([0.1, 1.0, 0.5, 0.2])
        out = x @ w
        return mean_square(slopes[jnp.searchsorted(edges, out)] * out - y)

    return drawn(body, START, x=x, y=y)


@case(accepted=TOLD)
def wasserstein_distance():
    def body(w, x, y):
        return mean_square(jnp.sort(x @ w) - jnp.sort(y))

    return drawn(body, START, x=x, y=y)


@case(accepted=TOLD)
def ranking_by_unrelated_scores():
    def body(w, x, y):
        order = jnp.argsort(y)
        return mean_square(jnp.diff((x @ w)[order]) - 0.1)

    return drawn(body, START, x=x, y=y)


@case(accepted=TOLD)
def mixture_of_experts():
    def body(p, x, y):
        gates = jax.nn.softmax(x @ p["gate"])
        value, chosen = jax.lax.top_k(gates, 1)
        outputs = jnp.einsum("ni,ide->nde", x, p["experts"][:, None])[:, 0]
        return mean_square(value[:, 0] * outputs[jnp.arange(16), chosen[:, 0]] - y)

    return drawn(body, {"gate": MATRIX, "experts": MATRIX[::-1]}, x=x, y=y)


@case()
def sorted_data():
    def body(w, x, y):
        return mean_square(jnp.sort(x, axis=0) @ w - jnp.sort(y))

    return drawn(body, START, x=x, y=y)
