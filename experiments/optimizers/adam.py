"""Which equation does Adam follow? Its figure, on a small tanh network.

    python -m experiments.optimizers.adam --figure=adam.png

Left: Adam at three step sizes h with decays 1 - 10h and 1 - h, its distance from its limit,
measured and predicted. Right: one run of Adam with decays 0.9 and 0.99 beside the limits of two
families that it belongs to: the one whose decays stay as they are as h goes to zero, and the one
whose memory lasts as long in time. Takes half a minute on two cores.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
import optax
from matplotlib.figure import Figure

import gf_jax
from experiments.optimizers.orders import network
from gf_jax.study import style

STEP_SIZE, ITERATIONS, EPS = 0.01, 300, 0.03


def remembering(step_size: float) -> optax.GradientTransformation:
    """Adam whose averages last as long in time at every step size; 0.9 and 0.99 at 0.01."""
    return optax.adam(step_size, 1 - 10 * step_size, 1 - step_size, eps=EPS)


def fixed(step_size: float) -> optax.GradientTransformation:
    """Adam whose averages last as many steps at every step size."""
    return optax.adam(step_size, 0.9, 0.99, eps=EPS)


def draw() -> Figure:
    """The figure."""
    f, start = network()
    found = gf_jax.compare(
        *(f, start),
        step_size=STEP_SIZE,
        ratios=(2, 4),
        iterations=ITERATIONS,
        optimizer=remembering,
        arithmetic="float64",
    )
    options: dict[str, Any] = {"optimizer": fixed, "step_size": STEP_SIZE}
    limit = gf_jax.limit_flow(f, start, found.times, **options)
    run = gf_jax.gradient_descent(
        *(f, start), ratios=(), iterations=ITERATIONS, arithmetic="float64", **options
    )
    away = gf_jax.compare_with_flow(run.snapshots, limit.params, limit.error, run.step_sizes)

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for lane, step_size in enumerate(found.step_sizes):
        colour = style.colour(lane)
        marks, name = slice(None, None, 8), f"h = {step_size:g}"
        left.plot(found.times[marks], found.distance[marks, lane], "o", color=colour, mfc="none")
        left.plot(found.times, found.predicted[:, lane], color=colour, label=name)
    left.set_yscale("log")
    style.describe(left, "Adam with decays 1 - 10h, 1 - h, from its limit")
    left.set_xlabel("time = iteration × h\nlines: predicted without running Adam; marks: measured")
    left.legend(frameon=False)
    right.plot(found.times, found.distance[:, 0], label="decays 1 - 10h, 1 - h")
    right.plot(found.times, away.distance[:, 0], "--", label="decays 0.9, 0.99")
    style.describe(right, "One run, h = 0.01, from the limits of two families")
    right.set_xlabel("time = iteration × h")
    right.legend(frameon=False)
    print(f"distance of the run from the limit with decays 1 - 10h, 1 - h: {_text(found.distance)}")
    print(f"and from the limit with decays 0.9, 0.99: {_text(away.distance)}")
    return figure


def _text(distance: np.ndarray) -> str:
    return f"{distance[-1, 0]:.3g} at the end, {distance[:, 0].max():.3g} at most"


def main(arguments: Sequence[str] | None = None) -> None:
    """Draws it into a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figure", default="adam.png", help="where it is written")
    path = parser.parse_args(arguments).figure
    draw().savefig(path, dpi=110)


if __name__ == "__main__":
    main()
