"""How much of a gap is rounding: the same trajectory in every arithmetic.

    python -m experiments.main --experiment=rounding --coordinates=pixels --ratios=2,5,10,20

runs descent in compensated float32, in plain float32 and in float64, with TF32
products too on a GPU, and sets their gaps beside the prediction, which knows no
rounding. On the linear network and MNIST it takes about six minutes on two CPU cores,
where float64 stops after a fifth of the iterations. At the end the gap to the run
with step size s/20 is 22 times larger in plain float32 than without rounding.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from rich.console import Console

import gf_jax
from experiments.cli.experiment import Experiment
from experiments.output import report
from experiments.output.figures import style
from experiments.process.mistakes import EXIT_DIVERGED
from experiments.runs import descending, harness, store, structures
from experiments.runs.harness import NetworkWorkplace
from experiments.studies import groups
from gf_jax.descent.schedule import Schedule
from gf_jax.study.record import Run

if TYPE_CHECKING:
    from experiments.output.figures import Figure

# The size of the rounding depends on the coordinates, so every output names them.
IN_COORDINATES = {"pixels": " in pixels", "row_space": " in its inputs' row space"}
SHORTER_ON_CPU = 5  # float64 is dear there, and a fifth of the run shows that it agrees
READING = (
    "The distance between two step sizes over time, once for each arithmetic. Curves that lie "
    "on top of each other are free of rounding; one that climbs away is not."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(groups.BesideFlow, groups.Segments, groups.Ratios):
    """What the experiment can be told."""

    @property
    def arithmetics(self) -> tuple[str, ...]:
        """Names of all in which it descends, one after another."""
        gpu = jax.default_backend() in ("gpu", "cuda")
        return ("compensated", "float32", *(("tf32",) if gpu else ()), "float64")


def run(options: Options) -> int:
    """Runs the experiment and writes its run directory.

    Returns:
      The exit status: 0, or 3 if a lane diverged, or 130 if it was interrupted.

    Raises:
      UsageError: on data, weights or an output directory that are not accepted.
    """
    workplace = harness.begin(EXPERIMENT, options)
    runs, interrupted = _runs(workplace)
    predicted = None
    wanted = options.flow and options.predicts
    if wanted and not interrupted and runs["compensated"].arrived:
        try:
            predicted = _predicted(workplace, runs["compensated"])
        except KeyboardInterrupt:
            interrupted = True
    if not runs:
        return harness.interrupt(workplace, "before the first segment was complete")
    label = runs[next(iter(runs))].network_label
    if "coordinates" not in options.unused():
        label += IN_COORDINATES[options.coordinates]
    summary = summarise(runs, predicted, label)
    summary["interrupted"] = interrupted
    figure = harness.draw(workplace, lambda: draw(runs, predicted, label))
    _print(summary, workplace.console)
    workplace.say(summary["verdict"])
    harness.end(workplace, summary, figure, interrupted=interrupted)
    if interrupted:
        return harness.interrupt(workplace, "this is less than was asked for")
    return EXIT_DIVERGED if any(report.divergences(r) for r in summary["runs"].values()) else 0


def _runs(workplace: NetworkWorkplace[Options]) -> tuple[dict[str, Run], bool]:
    """The run in every arithmetic, which is written; and whether it was interrupted."""
    whole = workplace.options.schedule
    runs: dict[str, Run] = {}
    for name in workplace.options.arithmetics:
        schedule = _shortened(whole) if name == "float64" else whole
        if schedule is not whole:
            workplace.say(f"float64 runs to iteration {schedule.iterations:,} only, for its cost")
        outcome = descending.descend(workplace, schedule, name)
        if outcome is not None:
            saved = descending.saved_form(workplace, schedule, name, outcome.trajectory)
            with harness.results(workplace):
                store.write_metrics(workplace.directory, saved, f"metrics_{name}")
            runs[name] = saved
        if outcome is None or outcome.interrupted:
            return runs, True
    return runs, False


def summarise(runs: dict[str, Run], predicted: np.ndarray | None, label: str) -> dict[str, Any]:
    """The gaps of every arithmetic where all of them have run, and at the end.

    Args:
      runs: a run by the name of its arithmetic; some may be shorter than others.
      predicted: gaps to the base run at the snapshots of the compensated run, shape
        (snapshots, lanes), or None.
      label: of the network and the coordinates it was computed in.
    """
    first = next(iter(runs.values()))
    ends = sorted({int(saved.iterations[-1]) for saved in runs.values()})
    rows = []
    for iteration in ends:
        gaps = {
            name: [report.finite(gap) for gap in saved.metrics.distance_to_base[iteration]]
            for name, saved in runs.items()
            if saved.iterations[-1] >= iteration
        }
        if predicted is not None and iteration in first.snapshot_iterations:
            (at,) = np.flatnonzero(first.snapshot_iterations == iteration)
            gaps["predicted"] = [report.finite(gap) for gap in predicted[at]]
        rows.append(
            {"iteration": iteration, "time": float(first.clock.times(iteration)), "gaps": gaps}
        )
    return {
        "network": label,
        "data": first.data_label,
        "step_size": first.step_size,
        "ratios": list(first.ratios),
        "table": rows,
        "verdict": _verdict(first, rows),
        "runs": {name: report.summarise(saved) for name, saved in runs.items()},
    }


def _verdict(first: Run, rows: list[dict[str, Any]]) -> str:
    """How much of the gap to the smallest step is rounding in plain float32, at the end."""
    gaps = rows[-1]["gaps"]
    plain, true = (gaps.get(name, [None])[-1] for name in ("float32", "compensated"))
    if not plain or not true:
        return "Verdict: none, since there is no gap in both arithmetics to compare."
    return (
        f"Verdict: after {rows[-1]['iteration']:,} iterations the gap to the run with step size "
        f"{first.step_sizes[-1]:g} is {true:.3g}. Plain float32 gives {plain:.3g}, "
        f"{plain / true:.3g} times that: the rest is rounding."
    )


def _shortened(schedule: Schedule) -> Schedule:
    """The schedule of float64: a fifth of the iterations on a CPU."""
    iterations = schedule.iterations // SHORTER_ON_CPU
    if jax.default_backend() != "cpu" or iterations < 1:
        return schedule
    return Schedule(schedule.step_size, schedule.ratios, iterations)


def _predicted(workplace: NetworkWorkplace[Options], saved: Run) -> np.ndarray:
    """Gaps to the base run at the snapshots' times, shape (snapshots, lanes)."""
    study = workplace.study
    prediction = harness.solve_once(
        workplace,
        "prediction",
        lambda tell: gf_jax.predict(
            study.objective.loss,
            study.initial_params,
            saved.snapshot_times,
            saved.step_sizes,
            optimizer=workplace.options.chosen_optimizer,
            progress=tell,
        ),
        structures.of(
            gf_jax.Prediction,
            study.initial_params,
            times=len(saved.snapshot_iterations),
            lanes=len(saved.ratios),
        ),
    )
    return prediction.to_base


def _print(summary: dict[str, Any], console: Console) -> None:
    """Prints the gaps to the base run in every arithmetic, side by side."""
    for row in summary["table"]:
        rows = [
            (name, *(report.text(gap, ".4e") for gap in gaps[1:]))
            for name, gaps in row["gaps"].items()
        ]
        if {"compensated", "float32"} <= set(row["gaps"]):
            pairs = zip(row["gaps"]["float32"], row["gaps"]["compensated"], strict=True)
            factors = [a / b if a and b else None for a, b in pairs]
            rows.append(("float32 over compensated", *(report.text(f, ".3f") for f in factors[1:])))
        title = (
            f"{summary['network']} on {summary['data']}\n"
            f"gaps to the run with step size {summary['step_size']:g} after "
            f"{row['iteration']:,} base iterations, time {row['time']:g}"
        )
        columns = ("arithmetic", *map(report.run_name, summary["ratios"][1:]))
        report.show_table(console, title, columns, rows, left=1)
    for name, run in summary["runs"].items():
        for line in report.divergences(run):
            console.print(f"[bold red]warning:[/] in {name}, {line}", soft_wrap=True)


def draw(runs: dict[str, Run], predicted: np.ndarray | None, label: str) -> "Figure":
    """Draws the gaps to the base run in every arithmetic, one panel per ratio.

    Args:
      runs: a run by the name of its arithmetic.
      predicted: gaps at the snapshots of the first run, shape (snapshots, lanes).
      label: of the network and the coordinates it was computed in.
    """
    first = next(iter(runs.values()))
    lanes = range(1, len(first.ratios)) if len(first.ratios) > 1 else range(1)
    figure = style.new(1 + 3.5 * len(lanes), 4.6)
    panels = figure.subplots(1, len(lanes), sharey=True, squeeze=False)[0]
    for axes, lane in zip(panels, lanes, strict=True):
        axes.set_yscale("log")
        for number, (name, run) in enumerate(runs.items()):
            gaps = run.metrics.distance_to_base[:, lane]
            axes.plot(
                run.times,
                np.where(np.isfinite(gaps) & (gaps > 0), gaps, np.nan),
                label=name,
                color=style.COLOURS[(1, 2, 3, 4)[number]],
                linestyle=style.DASHES[number],
                linewidth=2.2,
            )
        if predicted is not None:
            kept = slice(len(predicted) % 4, None, max(1, len(predicted) // 20))
            axes.plot(
                first.snapshot_times[kept],
                predicted[kept, lane],
                "o",
                color=style.COLOURS[0],
                markersize=4,
                markerfacecolor="none",
                label="predicted, without rounding",
            )
        title = rf"Distance between $\eta_0$ and $\eta_0/{first.ratios[lane]}$"
        style.describe(axes, title, "", READING)
    panels[0].set_ylabel("Euclidean distance, logarithmic")
    style.count_time(figure, first.method.momentum)
    title = rf"{label} on {first.data_label}, $\eta_0$ = {first.step_size:g}"
    return style.finish(figure, panels[0], title)


EXPERIMENT = Experiment(
    name="rounding",
    studies="the same run in every arithmetic",
    question=(
        "The same runs in several arithmetics. With small steps many updates are smaller than "
        "the last digit of the weight they are added to, and plain float32 drops them. Where "
        "the curve of float32 leaves those of float64 and of compensated float32, the "
        "distance between runs is rounding and says nothing about step sizes."
    ),
    options=Options,
    run=run,
)
