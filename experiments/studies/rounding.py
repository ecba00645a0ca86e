"""How much of a gap is rounding: the same trajectory in every arithmetic.

    python -m experiments.main --experiment=rounding --coordinates=pixels --ratios=2,5,10,20

runs descent in compensated float32, in plain float32 and in float64, with TF32
products too on a GPU, and sets their gaps beside the prediction, which knows no
rounding. On the linear network and MNIST it takes about six minutes on two CPU cores,
where float64 stops after a fifth of the iterations. At the end the gap to the run
with step size s/20 is 22 times larger in plain float32 than without rounding.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

import gf_jax
from experiments.cli.configuration import EXIT_DIVERGED, Configuration
from experiments.output import figures, report
from experiments.runs import harness, store, structures
from experiments.runs.harness import NetworkWorkplace
from experiments.studies import records

# The size of the rounding depends on the coordinates, so every output names them.
IN_COORDINATES = {None: "", "pixels": " in pixels", "row_space": " in its inputs' row space"}
SHORTER_ON_CPU = 5  # float64 is dear there, and a fifth of the run shows that it agrees


def run(config: Configuration) -> int:
    """Runs the experiment and writes its run directory.

    Returns:
      The exit status: 0, or 3 if a lane diverged, or 130 if it was interrupted.

    Raises:
      UsageError: on data, weights or an output directory that are not accepted.
    """
    workplace = harness.begin(config)
    runs: dict[str, records.Run] = {}
    interrupted = False
    for name in _arithmetics():
        shorter = _shortened(config) if name == "float64" else config
        if shorter is not config:
            workplace.say(f"float64 runs to iteration {shorter.iterations:,} only, for its cost")
        outcome = harness.descend(workplace, shorter.schedule, name)
        if outcome is not None:
            saved = harness.saved_form(workplace, shorter.schedule, name, outcome.trajectory)
            with harness.results(workplace):
                store.write_metrics(workplace.directory, saved, f"metrics_{name}")
            runs[name] = saved
        if outcome is None or outcome.interrupted:
            interrupted = True
            break
    predicted = None
    wanted = config.flow and config.predicts
    if wanted and not interrupted and runs["compensated"].arrived:
        try:
            predicted = _predicted(workplace, runs["compensated"])
        except KeyboardInterrupt:
            interrupted = True
    if not runs:
        return harness.interrupt(workplace, "before the first segment was complete")
    label = f"{runs[next(iter(runs))].network_label}{IN_COORDINATES[config.coordinates]}"
    summary = summarise(runs, predicted, label)
    summary["interrupted"] = interrupted
    figure = harness.draw(
        workplace, lambda: figures.draw_rounding(runs, predicted, label, workplace.directory)
    )
    report.print_rounding(summary, workplace.console)
    workplace.say(summary["verdict"])
    harness.end(workplace, summary, figure, interrupted=interrupted)
    if interrupted:
        return harness.interrupt(workplace, "this is less than was asked for")
    return EXIT_DIVERGED if any(report.divergences(r) for r in summary["runs"].values()) else 0


def summarise(
    runs: dict[str, records.Run], predicted: np.ndarray | None, label: str
) -> dict[str, Any]:
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


def _verdict(first: records.Run, rows: list[dict[str, Any]]) -> str:
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


def _arithmetics() -> list[str]:
    gpu = jax.default_backend() in ("gpu", "cuda")
    return ["compensated", "float32", *(["tf32"] if gpu else []), "float64"]


def _shortened(config: Configuration) -> Configuration:
    """The configuration of float64: a fifth of the iterations on a CPU."""
    iterations = config.schedule.iterations // SHORTER_ON_CPU
    if jax.default_backend() != "cpu" or iterations < 1:
        return config
    return dataclasses.replace(config, iterations=iterations, segments=None, snapshots=None)


def _predicted(workplace: NetworkWorkplace, saved: records.Run) -> np.ndarray:
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
            momentum=saved.method.optimizer,
            progress=tell,
        ),
        structures.prediction(
            study.initial_params, len(saved.snapshot_iterations), len(saved.ratios)
        ),
    )
    return prediction.to_base
