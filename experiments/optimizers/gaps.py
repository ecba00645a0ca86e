"""How good are predictions of optimisers on real images? One table.

    python -m experiments.optimizers.gaps --data_dir=FOLDER [--network=linear|tanh]

Networks 784-50-50-10 on 1,000 images of MNIST, 200 iterations of the base run. Of each optimiser
the gaps to runs with a half and a quarter of the step size at the last time: the gap as a share of
the distance travelled, by how much predictions are off, by how much they were told to be, the share
of all of them, at twenty times, that are off by no more than they were told to be, and what the
prediction cost, in evaluations of the gradient. Ten to twenty minutes for each network on two
cores.
"""

import argparse
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

import gf_jax
from experiments.problems import data

EXAMPLES, ITERATIONS, RATIOS, WIDTHS = 1000, 200, (2, 4), (784, 50, 50, 10)
NETWORKS = ("linear", "tanh")


class Case(NamedTuple):
    """An optimiser as a function of the step size, that of the base run, and batches."""

    optimizer: Callable[[Any], Any]
    step_size: float
    batch_size: int = 0


def kept(decay: float, step_size: Any, base: float) -> Any:
    """A decay that lasts as long in time as it does at the base step size."""
    return 1 - (1 - decay) * step_size / base


def adam_in_time(step_size: Any, base: float = 1e-4, **options: Any) -> Any:
    """Adam, or AdamW with its weight decay, with the usual decays at the base step size."""
    decays = kept(0.9, step_size, base), kept(0.999, step_size, base)
    return (optax.adamw if options else optax.adam)(step_size, *decays, **options)


def cases(first_layer: str, layers: Sequence[str]) -> dict[str, Case]:
    """The optimisers by name; one of them treats the first layer by itself."""
    labels = {layer: "adam" if layer == first_layer else "momentum" for layer in layers}
    return {
        "sgd": Case(optax.sgd, 2e-3),
        "heavy ball, decay 0.9": Case(gf_jax.heavy_ball(0.9), 1e-5),
        "heavy ball, decay 1 - 2h": Case(lambda h: optax.sgd(h**2, momentum=1 - 2 * h), 0.01),
        "Nesterov, decay 0.9": Case(gf_jax.nesterov(0.9), 1e-5),
        "Nesterov, decay 1 - 2h": Case(
            lambda h: optax.sgd(h**2, momentum=1 - 2 * h, nesterov=True), 0.01
        ),
        "Adam, 0.9 and 0.999 in time": Case(adam_in_time, 1e-4),
        "AdamW, likewise": Case(functools.partial(adam_in_time, weight_decay=0.1), 1e-4),
        "Adam, fixed 0.8, 0.9, eps 0.01": Case(
            functools.partial(optax.adam, b1=0.8, b2=0.9, eps=0.01), 1e-4
        ),
        "RMSProp, 0.9 in time, eps 0.01": Case(
            lambda h: optax.rmsprop(h, kept(0.9, h, 1e-4), eps=0.01, eps_in_sqrt=False), 1e-4
        ),
        "AdaGrad": Case(
            lambda h: optax.chain(
                optax.scale(jnp.sqrt(h)), optax.scale_by_rss(0.1), optax.scale(-jnp.sqrt(h))
            ),
            1e-5,
        ),
        "sgd, decoupled decay 0.1": Case(
            lambda h: optax.chain(optax.add_decayed_weights(0.1), optax.sgd(h)), 2e-3
        ),
        "sgd, clipped far above": Case(
            lambda h: optax.chain(optax.clip_by_global_norm(1e3), optax.sgd(h)), 2e-3
        ),
        "sgd, accumulating 4 gradients": Case(
            lambda h: optax.MultiSteps(optax.sgd(h), 4).gradient_transformation(), 5e-4
        ),
        "Adam and momentum, by layer": Case(
            lambda h: optax.partition(
                {"adam": optax.adam(h, 0.8, 0.9, eps=0.1), "momentum": optax.sgd(h, momentum=0.5)},
                labels,
            ),
            1e-4,
        ),
        "Muon, decay 0.8": Case(
            lambda h: optax.contrib.muon(h, beta=0.8, adam_b1=0.8, adam_b2=0.9, adam_eps_root=0.01),
            2e-5,
        ),
        "sgd, batches of 500": Case(optax.sgd, 5e-4, 500),
        "sgd, batches of 250": Case(optax.sgd, 5e-4, 250),
        "sgd, batches of 100": Case(optax.sgd, 5e-4, 100),
    }


class Found(NamedTuple):
    """Of the gaps at the last time, and over all times from the end of the transient on."""

    share: float  # of the way travelled, of the gap to the smallest step size
    off: float  # relative error of the predicted gaps, the larger
    told: float  # that was told, likewise
    within: float  # share of all predicted gaps that are off by no more than was told
    cost: int  # of the prediction with its check, in evaluations of the gradient


def measure(objective: Any, start: Any, case: Case) -> Found:
    """Runs it, and predicts it."""
    steps: dict[str, Any] = {"optimizer": case.optimizer}
    if case.batch_size:
        steps["batches"] = objective.batches(case.batch_size)
    run = gf_jax.gradient_descent(
        *(objective.loss, start),
        step_size=case.step_size,
        ratios=RATIOS,
        iterations=ITERATIONS,
        snapshots=20,
        arithmetic="float64",
        **steps,
    )
    found = gf_jax.predict(objective.loss, start, run.snapshot_times, run.step_sizes, **steps)
    gaps = run.metrics.distance_to_base[run.snapshot_iterations][:, 1:]
    travelled = run.metrics.distance_from_init[-1, -1]
    wrong, told = np.abs(found.to_base[:, 1:] - gaps), found.to_base_error[:, 1:]
    took = found.flow.statistics
    return Found(
        float(gaps[-1, -1] / travelled),
        float((wrong / gaps)[-1].max()),
        float((told / gaps)[-1].max()),
        float((wrong <= told).mean()),
        took.gradient_evaluations + took.checking_evaluations,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", required=True, help="folder with the four files of MNIST")
    parser.add_argument("--network", choices=NETWORKS, default="linear", help="the activation")
    parser.add_argument("--only", default="", help="a part of the names of optimisers")
    options = parser.parse_args(arguments)
    images = data.load("mnist", options.data_dir, EXAMPLES)
    network = gf_jax.problems.fully_connected(WIDTHS, options.network)
    inputs = images.images.reshape(EXAMPLES, -1)
    objective = gf_jax.problems.classification(network, inputs, images.labels)
    start = gf_jax.problems.xavier_uniform(jax.random.key(0), network.shapes)
    table = Table("optimiser", "h", "gap", "off", "told", "within what was told", "gradients")
    layers = list(network.shapes)
    for name, case in cases(layers[0], layers).items():
        if options.only not in name:
            continue
        found = measure(objective, start, case)
        row = *(f"{value:.2%}" for value in found[:3]), f"{found.within:.0%}", f"{found.cost:,}"
        table.add_row(name, f"{case.step_size:g}", *row)
        print(name, *row, flush=True)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
