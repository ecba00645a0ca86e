"""Which equation do optimisers follow, and how far do they stand from it? One table.

    python -m experiments.optimizers.orders

Optimisers of optax are handed over as they are, on a small tanh network; runs at four step sizes,
each half of the one before, are compared with the limit z and with z + h e. The order of the
distance in the step size is to be near 1 for the former, and near 2 for the latter. Takes about two
minutes on two cores.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

import gf_jax
from gf_jax.flow.limit_flow import limit_in_words

TIME, RATIOS = 1.0, (1, 2, 4, 8)

# Each with the largest step size, in time per iteration, at which the expansion tells something.
OPTIMIZERS: dict[str, tuple[Callable[[Any], optax.GradientTransformation], float]] = {
    "sgd": (optax.sgd, 0.02),
    "heavy ball, fixed decay": (lambda h: optax.sgd(h / 5, momentum=0.8), 0.01),
    "heavy ball, decay 1 - 2h": (lambda h: optax.sgd(h**2, momentum=1 - 2 * h), 0.02),
    "Nesterov, fixed decay": (lambda h: optax.sgd(h / 5, momentum=0.8, nesterov=True), 0.01),
    "Nesterov, decay 1 - 2h": (
        lambda h: optax.sgd(h**2, momentum=1 - 2 * h, nesterov=True),
        0.02,
    ),
    "Adam, fixed decays": (lambda h: optax.adam(h, 0.8, 0.9, eps=0, eps_root=0.01), 0.0025),
    "Adam, decays 1 - 10h, 1 - h": (lambda h: optax.adam(h, 1 - 10 * h, 1 - h), 0.01),
    "AdamW, fixed decays": (
        functools.partial(optax.adamw, b1=0.8, b2=0.9, eps=0.1, weight_decay=0.1),
        0.0025,
    ),
    "AdamW, decays 1 - 10h, 1 - h": (
        lambda h: optax.adamw(h, 1 - 10 * h, 1 - h, weight_decay=0.1),
        0.01,
    ),
    "RMSProp, fixed decay": (lambda h: optax.rmsprop(h, 0.8, eps=0.1), 0.0025),
    "RMSProp, decay 1 - h": (lambda h: optax.rmsprop(h, 1 - h, eps=0.1), 0.01),
    "AdaGrad": (
        lambda h: optax.chain(
            optax.scale(jnp.sqrt(h)), optax.scale_by_rss(0.1), optax.scale(-jnp.sqrt(h))
        ),
        0.02,
    ),
    "sgd with decoupled decay": (
        lambda h: optax.chain(optax.add_decayed_weights(0.1), optax.sgd(h)),
        0.02,
    ),
    "sgd, clipped far above": (
        lambda h: optax.chain(optax.clip_by_global_norm(10.0), optax.sgd(h)),
        0.02,
    ),
    "sgd, accumulating 4 gradients": (
        lambda h: optax.MultiSteps(optax.sgd(h), 4).gradient_transformation(),
        0.01,
    ),
    "sgd, schedule of time": (
        lambda h: optax.sgd(lambda count: h * jnp.exp(-count * h)),
        0.02,
    ),
    "Adam and momentum, by layer": (
        lambda h: optax.partition(
            {"adam": optax.adam(h, 0.8, 0.9, eps=0.1), "momentum": optax.sgd(h, momentum=0.5)},
            {"first": "adam", "second": "momentum"},
        ),
        0.0025,
    ),
    "Muon": (
        lambda h: optax.contrib.muon(h, beta=0.8, adam_b1=0.8, adam_b2=0.9, adam_eps_root=0.01),
        0.0005,
    ),
}


def network() -> tuple[Callable[[Any], jax.Array], dict[str, jax.Array]]:
    """A tanh network with 15 weights on sixteen examples, and a start."""
    inputs = jax.random.normal(jax.random.key(0), (16, 4))
    targets = jnp.sin(inputs[:, 0])
    start = {
        "first": 0.5 * jax.random.normal(jax.random.key(1), (4, 3)),
        "second": jax.random.normal(jax.random.key(2), (3,)),
    }

    def f(params: Any) -> jax.Array:
        return jnp.mean((jnp.tanh(inputs @ params["first"]) @ params["second"] - targets) ** 2)

    return f, start


def orders(
    optimizer: Callable[[Any], optax.GradientTransformation], step_size: float, time: float = TIME
) -> tuple[np.ndarray, np.ndarray]:
    """Orders of the distances from z and from z + h e, between step sizes that follow each other.

    Args:
      optimizer: the function of the step size.
      step_size: the largest.
      time: at which the distances are taken.
    """
    f, start = network()
    iterations = round(time / step_size)
    run = gf_jax.gradient_descent(
        f,
        start,
        step_size=step_size,
        ratios=RATIOS,
        iterations=iterations,
        snapshots=1,
        arithmetic="float64",
        optimizer=optimizer,
    )
    sizes = run.step_sizes
    found = gf_jax.deviation(
        f, start, run.snapshot_times, optimizer=optimizer, step_size=sizes[-1], tolerance=1e-9
    )

    def apart(first_order: float) -> np.ndarray:
        expected = jax.tree.map(
            lambda z, e: np.stack([z[-1] + first_order * h * e[-1] for h in sizes]),
            *(found.flow.params, found.coherent),
        )
        ends = jax.tree.map(lambda leaf: leaf[-1], run.snapshots)
        return np.asarray(jax.vmap(gf_jax.distance)(ends, expected))

    with jax.enable_x64(True):
        plain, expanded = apart(0.0), apart(1.0)
    return np.log2(plain[:-1] / plain[1:]), np.log2(expanded[:-1] / expanded[1:])


def main() -> None:
    """Prints the table."""
    table = Table("optimiser", "h", "order of the distance", "less h e", "as h goes to zero")
    f, start = network()
    for name, (optimizer, step_size) in OPTIMIZERS.items():
        first, second = orders(optimizer, step_size)
        smallest = step_size / RATIOS[-1]
        words = limit_in_words(f, start, np.array([TIME]), smallest, optimizer)
        texts = (" ".join(f"{order:.2f}" for order in row) for row in (first, second))
        table.add_row(name, f"{step_size:g}", *texts, words or "gradient flow")
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
