"""Curvature along gradient flow or descent: why the one follows the other.

    python -m experiments.main --experiment=curvature

finds the smallest and the largest eigenvalue of the Hessian at 40 times of gradient flow,
dense at first, with their residuals, and draws them beside the theorem's lower bound on
the smallest one, 2 / step_size, and the integral of max(-lambda_min, 0): a gap grows by at
most its exponential. `--along=descent` does so along descent. Half a
minute on two CPU cores for the linear network on MNIST: lambda_min rises from -9.9 to -0.04,
and the exponential is 6.7 up to time 10.
"""

from typing import Any

import jax
import numpy as np

from experiments.cli.configuration import EXIT_DIVERGED, EXIT_INTERRUPTED, Configuration
from experiments.output import figures, report
from experiments.runs import harness, store
from experiments.runs.harness import NetworkWorkplace
from experiments.studies import records, spectra
from gf_jax.problems.networks import Params

ROWS = 9  # of the table
LEGEND = """\
λ_min, λ_max: smallest and largest eigenvalue of the Hessian. ±: residual; some
eigenvalue lies within it of λ_min. sharpened, theorem: lower bounds on λ_min
from norms of weights and gradients alone. growth: the integral of max(-λ_min,
0); a gap between descent and flow grows by at most its exponential."""


def run(config: Configuration) -> int:
    """Runs the experiment and writes its run directory.

    Returns:
      The exit status: 0, or 3 if descent diverged, or 130 if it was interrupted.

    Raises:
      UsageError: on data, weights or an output directory that are not accepted.
    """
    assert config.along is not None
    workplace = harness.begin(config)
    try:
        times, losses, stack = _points(workplace)
        spectrum = spectra.measure(workplace, config.along, stack)
    except KeyboardInterrupt:
        workplace.say("interrupted: the curvature is not known yet, nothing was written")
        return EXIT_INTERRUPTED
    saved = records.CurvatureRun(
        network_label=workplace.study.network_label,
        data_label=workplace.study.dataset.label,
        along=config.along,
        step_size=config.schedule.step_size,
        times=times,
        loss=losses,
        integral=spectra.growth_integral(times, spectrum.lambda_min),
        spectrum=spectrum,
    )
    summary = summarise(saved)
    with harness.results(workplace):
        store.write_record(workplace.directory, "curvature", saved)
    figure = harness.draw(workplace, lambda: figures.draw_curvature(saved, workplace.directory))
    _print(summary, workplace)
    harness.end(workplace, summary, figure)
    if times[-1] < config.schedule.iterations * config.schedule.step_size * (1 - 1e-9):
        workplace.say(f"{config.along} diverged: the curvature is told up to time {times[-1]:g}")
        return EXIT_DIVERGED
    return 0


def _points(workplace: NetworkWorkplace) -> tuple[np.ndarray, np.ndarray, Params]:
    """Times, losses and parameters where the curvature is measured; finite ones only."""
    config, start = workplace.config, workplace.study.initial_params
    schedule = spectra.sampled(config.schedule)
    times = spectra.times_of(schedule)
    if config.along == "flow":
        flow = spectra.follow(workplace, times, budget=schedule.iterations)
        losses, stack = flow.loss, flow.params
    else:
        assert config.arithmetic is not None
        outcome = harness.descend(workplace, schedule, config.arithmetic)
        if outcome is None or outcome.interrupted:
            raise KeyboardInterrupt
        run = outcome.trajectory
        losses = run.metrics.loss[[0, *run.snapshot_iterations], 0]
        stack = spectra.with_start(start, run.snapshots)
    known = np.isfinite(losses)
    return times[: len(known)][known], losses[known], jax.tree.map(lambda leaf: leaf[known], stack)


def summarise(saved: records.CurvatureRun) -> dict[str, Any]:
    """The numbers of the table, and a verdict."""
    spectrum, integral = saved.spectrum, saved.integral
    edge = 2 / saved.step_size
    sharpness = float(spectrum.lambda_max.max())
    verdict = (
        f"Verdict: λ_min lies between {spectrum.lambda_min.min():.3g} and "
        f"{spectrum.lambda_min.max():.3g}, so that between time 0 and {saved.times[-1]:g} a gap "
        f"grows by a factor of exp({integral[-1]:.3g}) = {np.exp(integral[-1]):.3g} at most. λ_max "
        f"is at most {sharpness:.4g}, {'below' if sharpness < edge else 'above'} 2 / step size = "
        f"{edge:g}: descent is {'stable' if sharpness < edge else 'not stable everywhere'}."
    )
    return {
        "network": saved.network_label,
        "data": saved.data_label,
        "along": saved.along,
        "step_size": saved.step_size,
        "time": float(saved.times[-1]),
        "lambda_min": [float(spectrum.lambda_min.min()), float(spectrum.lambda_min.max())],
        "lambda_max": [float(spectrum.lambda_max.min()), float(spectrum.lambda_max.max())],
        "integral": float(integral[-1]),
        "verdict": verdict,
        "points": [
            {"time": float(saved.times[at]), "loss": float(saved.loss[at])}
            | {name: report.finite(values[at]) for name, values in spectrum._asdict().items()}
            | {"integral": float(integral[at])}
            for at in range(len(saved.times))
        ],
    }


def _print(summary: dict[str, Any], workplace: NetworkWorkplace) -> None:
    points = summary["points"]
    shown = np.unique(np.linspace(0, len(points) - 1, ROWS).round().astype(int))
    rows = [
        (
            f"{point['time']:.4g}",
            f"{point['loss']:.4g}",
            f"{point['lambda_min']:.4g}",
            f"{point['lambda_min_residual']:.0e}",
            *(report.dash(point[name], ".4g") for name in ("sharpened", "theorem")),
            f"{point['lambda_max']:.4g}",
            f"{point['integral']:.4g}",
        )
        for point in (points[at] for at in shown)
    ]
    report.show_table(
        workplace.console,
        f"{summary['network']} on {summary['data']}\ncurvature along {summary['along']}",
        ("time", "loss", "λ_min", "±", "sharpened", "theorem", "λ_max", "growth"),
        rows,
        legend=LEGEND,
    )
    if spectra.bound_of(workplace.study) is None:
        workplace.say(spectra.uncovered(summary["network"]))
    workplace.say(summary["verdict"])
