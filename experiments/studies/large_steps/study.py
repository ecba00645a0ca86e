"""Where each description of descent ends: step sizes up to the edge of stability.

    python -m experiments.main --experiment=large_steps --network=fully_connected

doubles the step size from 0.001 until it is past twice the edge, 2 / lambda_max of the
Hessian at the start, with all step sizes as lanes of one run over the time of 10,000
steps of size 0.001. Every lane is compared with gradient flow, with the flow and its
first-order deviation, and with the modified flow of its step size. About two minutes
on two CPU cores for the linear network on MNIST, where the distances fall with the
step size to the powers 1, 2 and 2.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
from rich.console import Console

import gf_jax
from experiments.cli.experiment import Experiment
from experiments.cli.options import option
from experiments.output import report
from experiments.process.mistakes import EXIT_DIVERGED, UsageError
from experiments.runs import descending, harness, store, structures
from experiments.runs.harness import NetworkWorkplace
from experiments.studies import groups
from experiments.studies.large_steps import figure
from experiments.studies.large_steps.records import DESCRIPTIONS, Sweep
from gf_jax.comparison import precise_distance
from gf_jax.descent.segments import Trajectory
from gf_jax.study.record import Run
from gf_jax.study.summary import NEAR

MOST_DOUBLINGS = 30  # ratios are integers of 32 bits
BEYOND = 2.0  # the sweep ends at the first step size this many times the edge


LEGEND = """\
of edge: step size over 2 / lambda_max of the Hessian at the start. flow,
first order, modified flow: Euclidean distance of descent from gradient flow,
from the flow and its first-order deviation, and from the modified flow of its
step size."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(groups.Arithmetic, groups.Segments, groups.StepSizes):
    """What the experiment can be told."""

    step_size: float = option(
        "The smallest, from which on it is doubled.", 0.001, "Step sizes and time"
    )


def run(options: Options) -> int:
    """Runs the experiment and writes its run directory.

    Returns:
      The exit status: 0, or 3 if a lane diverged, or 130 if it was interrupted.

    Raises:
      UsageError: on data, weights or an output directory that are not accepted.
    """
    workplace = harness.begin(EXPERIMENT, options)
    try:
        with harness.removed_if_refused(workplace):
            edge = _edge(workplace)
            if options.step_sizes is None:
                before, options = options.values(), _doubling(options, edge)
                changed = {n: v for n, v in options.values().items() if v != before[n]}
                workplace = workplace._replace(options=options)
                store.change_configuration(workplace.directory, changed)
    except KeyboardInterrupt:
        return harness.interrupt(workplace, "the edge of stability is not known yet")
    workplace.say(
        f"edge of stability at the start: step size {edge:.4g}; step sizes "
        + ", ".join(f"{s:g}" for s in options.all_step_sizes)
    )
    outcome = descending.descend(workplace, options.schedule, options.arithmetic)
    if outcome is None:
        return harness.interrupt(workplace, "before the first segment was complete")
    trajectory = outcome.trajectory
    saved = descending.saved_form(workplace, options.schedule, options.arithmetic, trajectory)
    with harness.results(workplace):
        store.write_metrics(workplace.directory, saved)
        snapshots = workplace.study.restore(trajectory.snapshots, lanes=True)
        store.write_snapshots(workplace.directory, saved, snapshots)
    if outcome.interrupted:
        return harness.interrupt(workplace, "the flows were not solved")
    if not np.isfinite(saved.metrics.loss).all(axis=0).any():
        return _end_without_flows(workplace, saved)
    try:
        sweep = _compare(workplace, saved, trajectory, edge)
    except KeyboardInterrupt:
        return harness.interrupt(workplace, f"the runs lie in {workplace.directory}, without flows")
    with harness.results(workplace):
        store.write_record(workplace.directory, "sweep", sweep)
    summary = summarise(saved, sweep)
    drawn = harness.draw(workplace, lambda: figure.draw(saved, sweep))
    _print(summary, workplace.console)
    workplace.say(summary["verdict"])
    harness.end(workplace, summary, drawn)
    return EXIT_DIVERGED if report.divergences(summary) else 0


def _end_without_flows(workplace: NetworkWorkplace[Options], saved: Run) -> int:
    """What is told of runs that all diverged; the exit status."""
    summary = report.summarise(saved)
    report.print_run(summary, workplace.console)
    workplace.say("every run diverged, so that there is nothing to compare with flows")
    drawn = harness.draw(workplace, lambda: report.draw_run(saved))
    harness.end(workplace, summary, drawn)
    return EXIT_DIVERGED


def summarise(run: Run, sweep: Sweep) -> dict[str, Any]:
    """The numbers of the table: distances at the last time, one entry per lane."""
    summary = report.summarise(run)
    for lane, entry in enumerate(summary["runs"]):
        for name in DESCRIPTIONS:
            entry[name] = report.finite(getattr(sweep, name)[-1, lane])
    summary |= {"edge": sweep.edge, "travelled": report.finite(sweep.travelled[-1])}
    return summary | {"verdict": _verdict(run, sweep)}


def _verdict(run: Run, sweep: Sweep) -> str:
    """How far the step size may go, and what corrections gain."""
    whole = np.isfinite(run.metrics.loss).all(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = sweep.from_flow[-1] / sweep.travelled[-1]
        gain = sweep.from_flow[-1, -1] / sweep.from_first_order[-1, -1]
    near = run.step_sizes[whole & (shares < NEAR)]
    lines = [
        f"Verdict: the edge of stability at the start is step size {sweep.edge:.3g}.",
        f"Descent stays near its gradient flow up to step size {near.max():.3g}."
        if near.size
        else "Descent stays near its gradient flow at none of these step sizes.",
    ]
    if np.isfinite(gain):
        lines.append(
            f"At the smallest, {run.step_sizes[-1]:.3g}, the flow with its first-order deviation "
            f"is {gain:.3g} times nearer to descent than the flow."
        )
    if not whole.all():
        lines.append(f"Descent diverges from step size {run.step_sizes[~whole].min():.3g} on.")
    return " ".join(lines)


def _edge(workplace: NetworkWorkplace[Options]) -> float:
    """The edge of stability at the start."""
    f, start = workplace.study.objective.loss, workplace.study.initial_params
    here = jax.tree.map(lambda leaf: leaf[None], start)
    ends = harness.solve_once(
        workplace,
        "edge of stability",
        lambda tell: gf_jax.curvature(f, here, progress=tell),
        structures.of(gf_jax.Curvature, points=1),
    )
    curvature = float(ends.lambda_max.value[0])
    if not 0 < curvature < np.inf:
        raise UsageError(
            f"--experiment=large_steps: the largest curvature at the start is {curvature:g}, so "
            "there is no edge of stability; take another starting point"
        )
    return 2 / curvature


def _doubling(options: Options, edge: float) -> Options:
    """Step sizes from the conventional one, doubled until well past the edge."""
    smallest = options.step_size
    doublings = max(1, int(np.ceil(np.log2(BEYOND * edge / smallest))))
    if doublings > MOST_DOUBLINGS:
        raise UsageError(
            f"--step_size={smallest:g}: the edge of stability at the start is {edge:.3g}, "
            f"and accepted is a step size that {MOST_DOUBLINGS} doublings take past it; give a "
            "larger one, or another start"
        )
    usual = Options.of(iterations=options.iterations)
    # What was not asked for is as many as there then are.
    kept = ("snapshots", "segments")
    free = {name: None for name in kept if getattr(options, name) == getattr(usual, name)}
    changed = free | {
        "step_size": None,
        "step_sizes": tuple(smallest * 2**n for n in range(doublings + 1)),
        "iterations": max(1, options.iterations // 2**doublings),
    }
    return Options.of(**options.values() | changed)


def _compare(
    workplace: NetworkWorkplace[Options], run: Run, trajectory: Trajectory, edge: float
) -> Sweep:
    """Distances of every lane from the three descriptions, at the snapshots."""
    f, start = workplace.study.objective.loss, workplace.study.initial_params
    times, step_sizes = run.snapshot_times, run.step_sizes
    budget = 2 * run.iterations[-1] * sum(run.ratios)  # with kinks: twice what the runs took
    deviation = harness.solve_once(
        workplace,
        "flow and first-order deviation",
        lambda tell: gf_jax.deviation(
            f, start, times, difference=step_sizes[-1], budget=budget, progress=tell
        ),
        structures.of(gf_jax.Deviation, start, times=len(times)),
    )
    whole = np.isfinite(run.metrics.loss).all(axis=0)  # of others a modified flow is no help
    modified = harness.solve_once(
        workplace,
        "modified flows",
        lambda tell: gf_jax.modified_flow(
            f, start, times, step_sizes[whole], budget=budget, progress=tell
        ),
        structures.of(
            gf_jax.Flow, start, ("times", "lanes"), times=len(times), lanes=int(whole.sum())
        ),
    )
    flow = jax.tree.map(lambda leaf: leaf[:, None], deviation.flow.params)

    def first_order(theta: np.ndarray, e: np.ndarray) -> np.ndarray:
        return theta + step_sizes.reshape(-1, *(1,) * (e.ndim - 1)) * e[:, None]

    def distances(reference: Any, lanes: np.ndarray) -> np.ndarray:
        """Of the lanes chosen; NaN for the others."""
        chosen = jax.tree.map(lambda leaf: leaf[:, lanes], trajectory.snapshots)
        gaps = np.full((len(times), len(step_sizes)), np.nan)
        gaps[:, lanes] = precise_distance(chosen, reference, 2)
        return gaps

    every = np.ones_like(whole)
    return Sweep(
        edge=edge,
        travelled=descending.distance_from_init(workplace.study, deviation.flow.params),
        from_flow=distances(flow, every),
        from_first_order=distances(jax.tree.map(first_order, flow, deviation.coherent), every),
        from_modified_flow=distances(modified.params, whole),
    )


def _print(summary: dict[str, Any], console: Console) -> None:
    """Prints distances from the three descriptions, one row per step size."""
    rows = [
        (
            f"{lane['step_size']:.4g}",
            f"{lane['step_size'] / summary['edge']:.2f}",
            "diverged"
            if lane["diverged_at"] is not None
            else report.text(lane["final_loss"], ".6f"),
            *(report.text(lane[name], ".3e") for name in DESCRIPTIONS),
        )
        for lane in summary["runs"]
    ]
    title = (
        f"{summary['network']} on {summary['data']}\n"
        f"at time {summary['time']:g}, where the flow has travelled "
        f"{report.text(summary['travelled'], '.4g')}"
    )
    columns = ("step size", "of edge", "loss", "flow", "first order", "modified flow")
    report.show_table(console, title, columns, rows, legend=LEGEND)
    for line in report.divergences(summary):
        console.print(f"[bold red]warning:[/] {line}", soft_wrap=True)


EXPERIMENT = Experiment(
    name="large_steps",
    studies="step sizes up to the edge of stability",
    question=(
        "How large may a step be before descent no longer follows its flow? The step size is "
        "doubled until it is past the edge of stability, 2 divided by the largest eigenvalue "
        "of the Hessian, where descent overshoots. Every run is compared with three "
        "descriptions of it: the flow, the flow with its first-order correction, and a "
        "modified flow that knows the step size."
    ),
    options=Options,
    run=run,
)
