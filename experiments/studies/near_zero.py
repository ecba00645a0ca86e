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
import itertools
from typing import Any

import jax
import numpy as np

import gf_jax
from experiments.cli.configuration import EXIT_INTERRUPTED, Configuration
from experiments.output import figures, report
from experiments.problems import problem
from experiments.problems.data import Dataset
from experiments.problems.problem import Problem
from experiments.runs import harness, progress, store
from experiments.runs.harness import Workplace
from experiments.studies import records, spectra
from gf_jax.problems.networks import Params

HALVINGS = 8  # of the scale, and of the width of the tube
RANDOM = 2  # points on the boundary of a tube
LEGEND = """\
λ_min at starts scaled by the factor on top, and its sharpened lower bound.
slope: of log -λ_min against log scale between the two smallest scales; the
number of layers less two in theory."""


def run(config: Configuration) -> int:
    """Runs the experiment and writes its run directory.

    Returns:
      The exit status: 0, or 130 if it was interrupted.

    Raises:
      UsageError: on data or an output directory that are not accepted.
    """
    assert config.depths is not None
    assert config.widths is not None
    assert config.init_scale is not None
    problem.device()
    dataset = problem.load_data(config)
    studies = [_study(config, depth, dataset) for depth in config.depths]
    depths = ", ".join(map(str, config.depths))
    label = problem.named_loss(
        config, f"fully connected {config.activation} networks of {depths} layers"
    )
    workplace = harness.open_folder(
        config, studies, dataset, label, f"hidden layers of width {config.widths[0]}"
    )
    scales = config.init_scale * 0.5 ** np.arange(HALVINGS)
    try:
        measured = [_measure(workplace, study, scales) for study in studies]
    except KeyboardInterrupt:
        workplace.say("interrupted: the sweep is not complete, nothing was written")
        return EXIT_INTERRUPTED
    saved = records.NearZero(
        label,
        dataset.label,
        np.array(config.depths),
        scales,
        *map(np.stack, zip(*measured, strict=True)),
    )
    summary = summarise(saved)
    with harness.results(workplace):
        store.write_record(workplace.directory, "near_zero", saved)
    figure = harness.draw(workplace, lambda: figures.draw_near_zero(saved, workplace.directory))
    _print(summary, workplace, studies)
    harness.end(workplace, summary, figure)
    return 0


def _study(config: Configuration, depth: int, dataset: Dataset) -> Problem:
    """The problem with that many layers, started at a scale of one."""
    assert config.widths is not None
    one = dataclasses.replace(
        config,
        experiment="paper",
        init_scale=1.0,
        widths=config.widths * (depth - 1),
        depths=None,
        coordinates="pixels",  # in which a scaled start is what it says
    )
    return problem.build(one, dataset)


def _measure(
    workplace: Workplace, study: Problem, scales: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Smallest eigenvalue and its bound: at scaled starts, and in tubes around the nearest.

    Returns:
      Four arrays of the shape of the scales, which are also the widths of the tubes.
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
    return (
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


def summarise(saved: records.NearZero) -> dict[str, Any]:
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


def _print(summary: dict[str, Any], workplace: Workplace, studies: list[Problem]) -> None:
    shown = slice(None, None, 2)
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
    ]
    heads = (f"{scale:.3g}" for scale in summary["scales"][shown])
    report.show_table(
        workplace.console,
        f"{summary['network']} on {summary['data']}\nsmallest eigenvalue by scale of the start",
        ("layers", "", *heads, "slope"),
        rows,
        legend=LEGEND,
        left=2,
    )
    if spectra.bound_of(studies[0]) is None:
        workplace.say(spectra.uncovered(summary["network"]))
    workplace.say(summary["verdict"])
