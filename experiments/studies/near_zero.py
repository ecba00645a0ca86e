"""How the curvature of a network vanishes near zero, from depth three on.

    python -m experiments.main --experiment=near_zero

finds the smallest eigenvalue of the Hessian at random starts that are scaled ever nearer
to zero, for networks of two to five layers, and beside it the theorem's lower bound; and
around the nearest of these starts the smallest one among points of a tube, for tubes of
shrinking width, beside a lower bound that holds in all of the tube. For n layers -lambda_min
falls as the scale to the power n - 2: with two layers it stays, from three on it
vanishes. A minute on two CPU cores; on MNIST the powers found are 0.00, 1.00, 2.00 and
3.00.
"""

import dataclasses
import functools
import itertools
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Float
from rich.console import Console

import gf_jax
from experiments.cli.experiment import Experiment
from experiments.output import report
from experiments.output.figures import style
from experiments.problems import problem
from experiments.problems.data import Dataset
from experiments.problems.problem import Problem
from experiments.runs import harness, progress, store, structures
from experiments.studies import groups, spectra
from gf_jax.problems.activations import ACTIVATIONS
from gf_jax.problems.networks import Params
from gf_jax.records import record

if TYPE_CHECKING:
    from experiments.output.figures import Figure

HALVINGS = 8  # of the scale, and of the width of the tube
RANDOM = 2  # points on the boundary of a tube
LEGEND = """\
λ_min at starts scaled by the factor on top.
slope: of log -λ_min against log scale between the two smallest scales."""
OF_THEORY = """
bound: sharpened lower bound; with it goes a slope of the number of layers
less two."""

READINGS = (
    (
        "Marks: minus the smallest eigenvalue at the start. A line that falls to the left "
        "means that curvature vanishes near zero. Dashed, where one is known: the bound of "
        "theory, which lies above."
    ),
    (
        "The same for the worst point found within a tube around the nearest start, against "
        "the width of the tube."
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(
    groups.Activation,
    groups.Loss,
    groups.Depths,
    groups.RandomStart,
    groups.Data,
    groups.Storage,
):
    """What the experiment can be told."""

    depths: tuple[int, ...] = (2, 3, 4, 5)


@record
class NearZero:
    """The smallest eigenvalue of the Hessian near zero, for several depths.

    Attributes:
      network_label, data_label: what is trained on what.
      depths: numbers of layers.
      scales: factors on the start, descending; also the widths of the tubes.
      at_starts: the smallest eigenvalue, shape (depths, scales), as the next three.
      starts_bound: its lower bound.
      in_tubes: the smallest one found in the tube around the nearest start.
      tubes_bound: lower bound that holds in all of the tube.
    """

    network_label: str
    data_label: str
    depths: np.ndarray
    scales: np.ndarray
    at_starts: np.ndarray
    starts_bound: np.ndarray
    in_tubes: np.ndarray
    tubes_bound: np.ndarray


@record
class Depth:
    """The same of one depth."""

    at_starts: Float[np.ndarray, " scales"]
    starts_bound: Float[np.ndarray, " scales"]
    in_tubes: Float[np.ndarray, " scales"]
    tubes_bound: Float[np.ndarray, " scales"]


def run(options: Options) -> int:
    """Runs the experiment and writes its run directory.

    Returns:
      The exit status: 0, or 130 if it was interrupted.

    Raises:
      UsageError: on data or an output directory that are not accepted.
    """
    problem.device()
    dataset = problem.load_data(options)
    studies = [_study(options, depth, dataset) for depth in options.depths]
    depths = ", ".join(map(str, options.depths))
    activation = ACTIVATIONS[options.activation].label
    label = problem.named_loss(
        options.loss, f"fully connected {activation} networks of {depths} layers"
    )
    size = f"hidden layers of width {options.widths[0]}"
    workplace = harness.open_folder(
        EXPERIMENT, options, studies, dataset, label, size, harness.of_data(dataset)
    )
    scales = options.init_scale * 0.5 ** np.arange(HALVINGS)
    like = structures.of(Depth, scales=HALVINGS)
    try:
        measured = [
            workplace.journal.once(
                f"{depth} layers", functools.partial(_measure, study, scales), like
            )
            for depth, study in zip(options.depths, studies, strict=True)
        ]
    except KeyboardInterrupt:
        return harness.interrupt(workplace, "the sweep is not complete")
    together = vars(jax.tree.map(lambda *values: np.stack(values), *measured))
    saved = NearZero(label, dataset.label, np.array(options.depths), scales, **together)
    summary = summarise(saved)
    with harness.results(workplace):
        store.write_record(workplace.directory, "near_zero", saved)
    figure = harness.draw(workplace, lambda: draw(saved))
    _print(summary, workplace.console)
    if spectra.bound_of(studies[0]) is None:
        workplace.say(spectra.uncovered(summary["network"]))
    workplace.say(summary["verdict"])
    harness.end(workplace, summary, figure)
    return 0


def _study(options: Options, depth: int, dataset: Dataset) -> Problem:
    """The problem with that many layers, started at a scale of one."""
    network = groups.Network(
        activation=options.activation,
        loss=options.loss,
        widths=options.widths * (depth - 1),
        seed=options.seed,
        coordinates="pixels",  # in which a scaled start is what it says
    )
    return problem.build(network, dataset)


def _measure(study: Problem, scales: np.ndarray) -> Depth:
    """Smallest eigenvalue and its bound: at scaled starts, and in tubes around the nearest.

    The scales are also the widths of the tubes.
    """
    starts = jax.tree.map(lambda leaf: np.multiply.outer(scales, leaf), study.initial_params)
    nearest = jax.tree.map(lambda leaf: leaf[-1:], starts)
    directions = _directions(study, nearest)
    tubes = jax.tree.map(
        lambda middle, towards: np.concatenate([middle + width * towards for width in scales]),
        nearest,
        directions,
    )
    points = jax.tree.map(lambda *parts: np.concatenate(parts), starts, tubes)
    curvature = progress.solve(
        study.network_label,
        lambda tell: gf_jax.curvature(study.objective.loss, points, progress=tell),
    )
    values = curvature.lambda_min.value
    at_starts, in_tubes = values[: len(scales)], values[len(scales) :].reshape(len(scales), -1)
    return Depth(
        at_starts,
        spectra.lower_bound(study, starts).sharpened,
        np.minimum(in_tubes.min(axis=1), at_starts[-1]),
        np.concatenate([spectra.lower_bound(study, nearest, w).sharpened for w in scales]),
    )


def _directions(study: Problem, point: Params) -> Params:
    """Unit directions in weight space, leaves (directions, ...): random ones, and a chain.

    The chain stretches what the loss falls along fastest: its first layer sees the
    leading right singular vector of the gradient by the end-to-end matrix, its last
    gives the left one, and all units between are equal and positive, so that ReLU
    lets them pass.
    """
    generator, tree = np.random.default_rng(0), jax.tree.structure(point)
    random = [generator.normal(size=(RANDOM, *leaf.shape[1:])) for leaf in jax.tree.leaves(point)]
    norms = np.sqrt(sum(np.square(part).reshape(RANDOM, -1).sum(axis=1) for part in random))
    left, _, right = np.linalg.svd(spectra.product_gradients(study, point)[0], full_matrices=False)
    shapes = [study.network.shapes[layer]["weight"] for layer in study.network.shapes]
    ends = [right[0], *(np.ones(rows) / np.sqrt(rows) for rows, _ in shapes[:-1]), left[:, 0]]
    chain = [np.outer(b, a) for a, b in itertools.pairwise(ends)]
    return jax.tree.unflatten(
        tree,
        [
            np.concatenate([part / norms.reshape(-1, 1, 1), link[None] / np.sqrt(len(chain))])
            for part, link in zip(random, chain, strict=True)
        ],
    )


def summarise(saved: NearZero) -> dict[str, Any]:
    """The numbers of the table, and a verdict."""
    slopes = [_slope(saved.scales, values) for values in saved.at_starts]
    pairs = [
        f"{depth} layers {'unknown' if slope is None else format(slope, '.2f')}"
        for depth, slope in zip(saved.depths, slopes, strict=True)
    ]
    covered = np.isfinite(saved.starts_bound).all()
    theory = "theory says the number of layers less two" if covered else "no theorem covers these"
    verdict = (
        "Verdict: as the start is scaled to zero, -λ_min falls with these powers of the scale: "
        f"{', '.join(pairs)}; {theory}."
    )
    return {
        "network": saved.network_label,
        "data": saved.data_label,
        "scales": saved.scales.tolist(),
        "verdict": verdict,
        "depths": [
            {
                "depth": int(depth),
                "slope": slopes[row],
                "lambda_min": saved.at_starts[row].tolist(),
                "bound": [report.finite(value) for value in saved.starts_bound[row]],
                "tube_lambda_min": saved.in_tubes[row].tolist(),
                "tube_bound": [report.finite(value) for value in saved.tubes_bound[row]],
            }
            for row, depth in enumerate(saved.depths)
        ],
    }


def _slope(scales: np.ndarray, values: np.ndarray) -> float | None:
    """Slope of log -value against log scale between the two smallest; None if not negative."""
    if not (values[-2:] < 0).all():
        return None
    return float(np.log(values[-2] / values[-1]) / np.log(scales[-2] / scales[-1]))


def _print(summary: dict[str, Any], console: Console) -> None:
    shown = slice(None, None, 2)
    bounded = any(value is not None for entry in summary["depths"] for value in entry["bound"])
    rows = [
        (
            f"{entry['depth']}",
            name,
            *(report.dash(value, ".3g") for value in entry[key][shown]),
            slope,
        )
        for entry in summary["depths"]
        for name, key, slope in (
            ("λ_min", "lambda_min", report.text(entry["slope"], ".2f")),
            ("bound", "bound", ""),
        )
        if bounded or name != "bound"
    ]
    heads = (f"{scale:.3g}" for scale in summary["scales"][shown])
    report.show_table(
        console,
        f"{summary['network']} on {summary['data']}\nsmallest eigenvalue by scale of the start",
        ("layers", "", *heads, "slope"),
        rows,
        legend=LEGEND + (OF_THEORY if bounded else ""),
        left=2,
    )


def draw(sweep: NearZero) -> "Figure":
    """Draws the smallest eigenvalue against scale and width; solid measured, dashed bounds."""
    figure = style.new(13, 5.4)
    by_scale, by_width = figure.subplots(1, 2, sharey=True)
    bounded = not np.isnan(sweep.starts_bound).all()
    for panel, values, bounds, reading in (
        (by_scale, sweep.at_starts, sweep.starts_bound, READINGS[0]),
        (by_width, sweep.in_tubes, sweep.tubes_bound, READINGS[1]),
    ):
        style.explain(panel, reading)
        for row, depth in enumerate(sweep.depths):
            colour = style.colour(row)
            label = f"{depth} layers"
            negative = np.where(values[row] < 0, -values[row], np.nan)
            panel.plot(
                sweep.scales,
                negative,
                style.MARKS[row % len(style.MARKS)] + "-",
                color=colour,
                label=label,
            )
            if bounded:
                look = {"color": colour, "linewidth": 1, "label": f"_{label}; bound"}
                panel.plot(sweep.scales, -bounds[row], "--", **look)
        panel.set(xscale="log", yscale="log")
        panel.grid(visible=True, alpha=0.25)
    by_scale.set(
        title=r"$-\lambda_{min}$ at the start",
        xlabel="scale of the start, logarithmic",
        ylabel="1 / time, logarithmic" + ("; dashed: bound" if bounded else ""),
    )
    by_width.set(
        title=rf"Largest $-\lambda_{{min}}$ around the start scaled by {sweep.scales[-1]:.3g}",
        xlabel="width of the tube, Euclidean distance, logarithmic",
    )
    title = f"Curvature near zero: {sweep.network_label} on {sweep.data_label}"
    return style.finish(figure, by_scale, title)


EXPERIMENT = Experiment(
    name="near_zero",
    studies="the smallest eigenvalue against scale and depth of the start",
    question=(
        "Starts near zero are common, and with three layers or more they are harmless: "
        "curvature vanishes there. The start is scaled towards zero, and the smallest "
        "eigenvalue of the Hessian is measured, for several numbers of layers."
    ),
    options=Options,
    run=run,
)
