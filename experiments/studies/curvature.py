"""Curvature along gradient flow or descent: why the one follows the other.

    python -m experiments.main --experiment=curvature

finds the smallest and the largest eigenvalue of the Hessian at 40 times of gradient flow,
dense at first, with their residuals, and draws them beside the theorem's lower bound on
the smallest one, 2 / step_size, and the integral of max(-lambda_min, 0): a gap grows by at
most its exponential. `--along=descent` does so along descent. Half a
minute on two CPU cores for the linear network on MNIST: lambda_min rises from -9.9 to -0.04,
and the exponential is 6.7 up to time 10.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from rich.console import Console

from experiments.cli.experiment import Experiment
from experiments.cli.options import option
from experiments.output import report
from experiments.output.figures import style
from experiments.process.mistakes import EXIT_DIVERGED
from experiments.runs import descending, harness, store
from experiments.runs.harness import NetworkWorkplace
from experiments.studies import groups, spectra
from experiments.studies.spectra import Spectrum
from gf_jax.problems.networks import Params
from gf_jax.records import record

if TYPE_CHECKING:
    from experiments.output.figures import Figure

ROWS = 9  # of the table
LEGEND = """\
λ_min, λ_max: smallest and largest eigenvalue of the Hessian. ±: residual; some
eigenvalue lies within it of λ_min. sharpened, theorem: lower bounds on λ_min
from norms of weights and gradients alone. growth: the integral of max(-λ_min,
0); a gap between descent and flow grows by at most its exponential."""


LARGEST = (
    "Below the dotted line descent with step size η₀ is stable. The time axis is logarithmic, "
    "since most happens at first."
)
GROWTH = (
    "How much a small error can have grown so far: by the exponential of this at most. 0 is "
    "no growth, 1 is a factor of 2.7, 2 of 7.4."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(groups.Arithmetic, groups.Segments):
    """What the experiment can be told."""

    snapshots: int = 40  # the curvature is found at each
    along: str = option(
        "Whose curvature is told: that of gradient flow, or of descent with step_size.",
        "flow",
        "What to run",
        choices=dict.fromkeys(("flow", "descent"), ""),
    )

    @property
    def flow_runs(self) -> int:
        """As many trajectories as the flow amounts to; 0 is no flow."""
        return int(self.along == "flow")

    @property
    def arithmetics(self) -> tuple[str, ...]:
        """That of descent, if its curvature is told."""
        return () if self.along == "flow" else (self.arithmetic,)

    def unused(self) -> dict[str, str]:
        """Along the flow what says how descent is computed."""
        reason = "has no effect on --along=flow, but on descent; drop one of the two flags"
        of_descent = dict.fromkeys(("arithmetic", "segments"), reason)
        return super().unused() | (of_descent if self.along == "flow" else {})


@record
class CurvatureRun:
    """Curvature along gradient flow or descent.

    Attributes:
      network_label, data_label: what is trained on what.
      along: "flow" or "descent".
      step_size: of descent, in time per iteration.
      times: ascending from 0, shape (points,).
      loss: there.
      integral: of max(-lambda_min, 0) from 0 to there.
      spectrum: the curvature there.
    """

    network_label: str
    data_label: str
    along: str
    step_size: float
    times: np.ndarray
    loss: np.ndarray
    integral: np.ndarray
    spectrum: Spectrum


def run(options: Options) -> int:
    """Runs the experiment and writes its run directory.

    Returns:
      The exit status: 0, or 3 if descent diverged, or 130 if it was interrupted.

    Raises:
      UsageError: on data, weights or an output directory that are not accepted.
    """
    workplace = harness.begin(EXPERIMENT, options)
    try:
        times, losses, stack = _points(workplace)
        spectrum = spectra.measure(workplace, options.along, stack)
    except KeyboardInterrupt:
        return harness.interrupt(workplace, "the curvature is not known yet")
    saved = CurvatureRun(
        network_label=workplace.study.network_label,
        data_label=workplace.study.dataset.label,
        along=options.along,
        step_size=options.step_size,
        times=times,
        loss=losses,
        integral=spectra.growth_integral(times, spectrum.lambda_min),
        spectrum=spectrum,
    )
    summary = summarise(saved)
    with harness.results(workplace):
        store.write_record(workplace.directory, "curvature", saved)
    figure = harness.draw(workplace, lambda: draw(saved))
    _print(summary, workplace.console)
    if spectra.bound_of(workplace.study) is None:
        workplace.say(spectra.uncovered(summary["network"]))
    workplace.say(summary["verdict"])
    harness.end(workplace, summary, figure)
    if times[-1] < options.iterations * options.step_size * (1 - 1e-9):
        workplace.say(f"{options.along} diverged: the curvature is told up to time {times[-1]:g}")
        return EXIT_DIVERGED
    return 0


def _points(workplace: NetworkWorkplace[Options]) -> tuple[np.ndarray, np.ndarray, Params]:
    """Times, losses and parameters where the curvature is measured; finite ones only."""
    options, start = workplace.options, workplace.study.initial_params
    schedule = spectra.sampled(options.schedule)
    times = spectra.times_of(schedule)
    if options.along == "flow":
        flow = spectra.follow(workplace, times, budget=schedule.iterations)
        losses, stack = flow.loss, flow.params
    else:
        outcome = descending.descend(workplace, schedule, options.arithmetic)
        if outcome is None or outcome.interrupted:
            raise KeyboardInterrupt
        run = outcome.trajectory
        losses = run.metrics.loss[[0, *run.snapshot_iterations], 0]
        stack = spectra.with_start(start, run.snapshots)
    known = np.isfinite(losses)
    return times[: len(known)][known], losses[known], jax.tree.map(lambda leaf: leaf[known], stack)


def summarise(saved: CurvatureRun) -> dict[str, Any]:
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
            | {name: report.finite(values[at]) for name, values in vars(spectrum).items()}
            | {"integral": float(integral[at])}
            for at in range(len(saved.times))
        ],
    }


def _print(summary: dict[str, Any], console: Console) -> None:
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
        console,
        f"{summary['network']} on {summary['data']}\ncurvature along {summary['along']}",
        ("time", "loss", "λ_min", "±", "sharpened", "theorem", "λ_max", "growth"),
        rows,
        legend=LEGEND,
    )


def draw(run: CurvatureRun) -> "Figure":
    """Draws both ends of the Hessian's spectrum, and what the lower one lets grow."""
    figure = style.new(16.5, 4.9)
    largest, smallest, growth = figure.subplots(1, 3)
    times, spectrum = run.times, run.spectrum
    look = {"color": style.COLOURS[2], "markersize": 3, "label": r"_$\lambda_{max}$"}
    largest.plot(times, spectrum.lambda_max, "o-", **look)
    largest.axhline(
        2 / run.step_size, color="0.4", linestyle=":", label=r"$2/\eta_0$, the edge of stability"
    )
    largest.set_yscale("log")
    largest.legend(frameon=False)
    title, unit = r"Largest eigenvalue, $\lambda_{max}$", "1 / time, logarithmic"
    style.describe(largest, title, unit, LARGEST)
    spectra.draw_smallest(smallest, times, spectrum)
    look = {"color": style.COLOURS[1], "markersize": 3, "label": "_integral"}
    growth.plot(times, run.integral, "o-", **look)
    title, unit = r"$\int\max(-\lambda_{min}, 0)\,dt$", "no unit; a gap grows by exp of it"
    style.describe(growth, title, unit, GROWTH)
    for panel in (largest, smallest, growth):
        spectra.show_early(panel, times)
    title = f"Curvature along {run.along}: {run.network_label} on {run.data_label}"
    return style.finish(figure, smallest, title)


EXPERIMENT = Experiment(
    name="curvature",
    studies="both ends of the Hessian's spectrum along the flow",
    question=(
        "The eigenvalues of the Hessian say how the loss bends. Where the smallest one, "
        "λ_min, is negative, neighbouring paths are driven apart; the more it is, the faster. "
        "The largest one, λ_max, says how large a step may be: beyond 2/λ_max descent "
        "overshoots."
    ),
    options=Options,
    run=run,
)
