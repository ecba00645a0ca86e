"""Where small steps are necessary: a saddle on which they must be exponentially small.

    python -m experiments.main --experiment=necessity

runs descent at step sizes 0.1, 0.05, ..., 0.1/4096 on f(x, y) = ½ a x² − ½ m y² with
a = m = 1 from (1, 0.001) to time 10, beside its gradient flow. The coordinates do not
meet. Along y, where f is concave, the flow is y_0 e^(mt) and descent with step size η is
y_0 (1 + ηm)^(t/η), so that the gap is about ½ η m² t y_0 e^(mt), and accuracy ε at time t
needs steps of 2 ε / (m² t y_0 e^(mt)): exponentially small. Along x, where f is convex,
one step size serves for all times. Five seconds on two CPU cores. All gaps agree with their
closed form to 2e-6 of it; accuracy 0.01 needs step size 0.0084 up to time 6 and 0.000091
up to time 10 along y, and 0.053 up to any time along x.

Source: Elkabetz & Cohen, NeurIPS 2021, section 3 (necessity of the bound's exponential).
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Array
from rich.console import Console

import gf_jax
from experiments.cli.experiment import Experiment
from experiments.output import report
from experiments.problems import problem
from experiments.runs import harness, progress, store, structures
from experiments.runs.harness import Workplace
from experiments.studies import groups
from experiments.studies.necessity import figure
from experiments.studies.necessity.records import Saddle
from gf_jax.comparison import WELL_BELOW
from gf_jax.descent.schedule import Schedule

CURVATURES = {"x": 1.0, "y": -1.0}  # a and -m
START = {"x": 1.0, "y": 1e-3}
SCHEDULE = Schedule(0.1, tuple(2**n for n in range(13)), iterations=100, segments=100)
FINE = np.geomspace(1e-9, SCHEDULE.step_size, 4_001)  # for the closed form
TOLERANCE = 1e-13  # of the flow: gaps are small here
LABEL = "saddle ½ x² − ½ y²"

LEGEND = """\
along y, along x: largest step size at which the gap along that coordinate
stays below the accuracy up to that time, interpolated between the runs.
approximation: along y, 2 ε / (m² t y₀ e^(mt)). Blank: none among those run,
since the gap is below the accuracy at every step size, or at none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(groups.Storage):
    """What the experiment can be told."""

    epsilon: float = groups.accuracy("Accuracy: the distance between descent and flow.", 1e-2)


def run(options: Options) -> int:
    """Runs the experiment and writes its run directory.

    Returns:
      The exit status: 0, or 130 if it was interrupted.

    Raises:
      UsageError: on an output directory that is not accepted.
    """
    problem.device()
    workplace = harness.open_folder(
        EXPERIMENT, options, None, None, LABEL, f"from {tuple(START.values())}"
    )
    try:
        saddle = measure(workplace)
    except KeyboardInterrupt:
        return harness.interrupt(workplace, "the runs are not complete")
    summary = summarise(saddle)
    with harness.results(workplace):
        store.write_record(workplace.directory, "saddle", saddle)
    drawn = harness.draw(workplace, lambda: figure.draw(saddle))
    _print(summary, workplace.console)
    workplace.say(summary["verdict"])
    harness.end(workplace, summary, drawn)
    return 0


def f(params: dict[str, Array]) -> Array:
    """The saddle."""
    return 0.5 * (CURVATURES["x"] * params["x"] ** 2 + CURVATURES["y"] * params["y"] ** 2)


def measure(workplace: Workplace[Options, None]) -> Saddle:
    """Runs descent and flow, and finds the largest step sizes of accuracy epsilon."""
    epsilon = workplace.options.epsilon
    start = {name: np.array(value) for name, value in START.items()}
    times = SCHEDULE.clock().times(SCHEDULE.snapshot_iterations)

    def descend() -> gf_jax.Trajectory:
        return gf_jax.join([part for part, _ in progress.segments(f, start, SCHEDULE, "float64")])

    like = structures.trajectory(start, len(times))
    descent = workplace.journal.once("descent", descend, like).snapshots
    flow = harness.solve_once(
        workplace,
        "flow",
        lambda tell: gf_jax.gradient_flow(f, start, times, tolerance=TOLERANCE, progress=tell),
        structures.of(gf_jax.Flow, start, times=len(times)),
    )
    step_sizes = np.array(SCHEDULE.step_sizes)
    gaps = [np.abs(descent[name] - flow.params[name][:, None]) for name in START]
    exact = [closed_form(name, times[:, None], step_sizes) for name in START]
    fine = [closed_form(name, times[:, None], FINE) for name in START]
    return Saddle(
        epsilon=epsilon,
        step_sizes=step_sizes,
        times=times,
        gap=np.stack(gaps),
        exact=np.stack(exact),
        flow_error=flow.error,
        largest=np.stack([largest_step(step_sizes, gap, epsilon) for gap in gaps]),
        largest_exact=np.stack([largest_step(FINE, gap, epsilon) for gap in fine]),
        approximation=2 * epsilon / (times * START["y"] * np.exp(-CURVATURES["y"] * times)),
    )


def closed_form(name: str, times: np.ndarray, step_sizes: np.ndarray) -> np.ndarray:
    """The gap between descent and flow along a coordinate.

    The power (1 − ηλ)^(t/η) is taken by its logarithm, which loses no digits of a small ηλ.
    """
    curvature, start = CURVATURES[name], START[name]
    logarithm = np.log1p(-step_sizes * curvature) * times / step_sizes
    flow = np.exp(-curvature * times)
    return np.abs(start * flow * np.expm1(logarithm + curvature * times))


def largest_step(step_sizes: np.ndarray, gaps: np.ndarray, epsilon: float) -> np.ndarray:
    """The largest step size whose gap is at most epsilon up to each time.

    Args:
      step_sizes: those at which the gap is known, in any order.
      gaps: it, shape (times, step sizes), growing with the step size.
      epsilon: the accuracy.

    Returns:
      Shape (times,): interpolated on logarithmic axes, on which the gap has slope one for
      small steps; NaN where all gaps are below epsilon, or all above.
    """
    order = np.argsort(step_sizes)
    logs = np.log(step_sizes[order])
    with np.errstate(divide="ignore"):
        rows = np.log(np.maximum.accumulate(gaps, axis=0)[:, order])
    found = [
        np.interp(np.log(epsilon), row, logs) if row[0] <= np.log(epsilon) < row[-1] else np.nan
        for row in rows
    ]
    return np.exp(found)


def summarise(saddle: Saddle) -> dict[str, Any]:
    """The numbers of the table, at ten times, and how well the closed form holds."""
    known = saddle.gap >= WELL_BELOW * saddle.flow_error[:, None]
    errors = np.abs(saddle.gap / saddle.exact - 1)
    table = [
        {
            "time": float(saddle.times[at]),
            "gaps": dict(zip(START, saddle.gap[:, at].tolist(), strict=True)),
            "largest_step": {
                name: report.finite(saddle.largest[number, at]) for number, name in enumerate(START)
            },
            "closed_form": {
                name: report.finite(saddle.largest_exact[number, at])
                for number, name in enumerate(START)
            },
            "approximation": float(saddle.approximation[at]),
        }
        for at in range(9, len(saddle.times), 10)
    ]
    summary = {
        "function": LABEL,
        "start": START,
        "epsilon": saddle.epsilon,
        "step_sizes": saddle.step_sizes.tolist(),
        "known_gaps": float(known.mean()),
        "largest_error": float(errors[known].max(initial=0)),
        "table": table,
    }
    return summary | {"verdict": _verdict(summary)}


def _verdict(summary: dict[str, Any]) -> str:
    """What accuracy epsilon takes at the last time, along either coordinate."""
    last = summary["table"][-1]
    words = [
        f"{'less than' if gaps[-1] > summary['epsilon'] else 'more than'} any that was run"
        if step is None
        else f"{step:.3g} or less"
        for gaps, step in ((last["gaps"][name], last["largest_step"][name]) for name in START)
    ]
    return (
        f"Verdict: to stay within {summary['epsilon']:g} of the flow up to time {last['time']:g}, "
        f"descent needs a step size of {words[1]} along y, where the function is concave, and of "
        f"{words[0]} along x, where it is convex. Measured gaps agree with the closed form within "
        f"{summary['largest_error']:.1g} of it."
    )


def _print(summary: dict[str, Any], console: Console) -> None:
    def cell(value: float | None) -> str:
        return "" if value is None else f"{value:.4g}"

    rows = [
        (
            f"{row['time']:g}",
            cell(row["largest_step"]["y"]),
            cell(row["closed_form"]["y"]),
            cell(row["approximation"]),
            cell(row["largest_step"]["x"]),
            cell(row["closed_form"]["x"]),
        )
        for row in summary["table"]
    ]
    title = f"{LABEL}: largest step size for accuracy {summary['epsilon']:g}"
    columns = ("time", "along y", "closed form", "approximation", "along x", "closed form")
    report.show_table(console, title, columns, rows, legend=LEGEND)


EXPERIMENT = Experiment(
    name="necessity",
    studies="a saddle that needs exponentially small steps",
    question=(
        "A function on which small steps are needed: a saddle. Along x it is convex and "
        "errors die out; along y it is concave and errors grow exponentially, so that the "
        "step size must be exponentially small. Marks are measured, lines are the exact "
        "formula."
    ),
    options=Options,
    run=run,
)
