"""Where each description of descent ends: step sizes up to the edge of stability.

    python -m experiments.main --experiment=large_steps --network=fully_connected

doubles the step size from 0.001 until it is past twice the edge, 2 / lambda_max of the
Hessian at the start, with all step sizes as lanes of one run over the time of 10,000
steps of size 0.001. Every lane is compared with gradient flow, with the flow and its
first-order deviation, with the modified flow of its step size, and with its central flow. About
four minutes on two CPU cores for the linear network on MNIST, where the distances fall with the
step size to the powers 1, 2 and 2.

    python -m experiments.main --experiment=large_steps --activation=tanh --loss=squared \
        --widths=20,20 --init_scale=0.3 --step_sizes=0.32,0.16,0.08,0.04,0.02 --iterations=700

tells in which order descriptions fail as steps grow, on a network whose runs meet their edge later.

    python -m experiments.main --experiment=large_steps --activation=tanh --optimizer=adam

does the same of an optimiser, with its continuous limit in the place of gradient flow. The edge is
then the smallest along that limit, where its averages are those of a run.
"""

from typing import Any

import jax
import numpy as np
from rich.console import Console

import gf_jax
from experiments.cli.experiment import Experiment
from experiments.output import report
from experiments.process.mistakes import EXIT_DIVERGED
from experiments.runs import descending, harness, store, structures
from experiments.runs.harness import NetworkWorkplace
from experiments.studies.large_steps import central, edge, figure
from experiments.studies.large_steps.options import Options
from experiments.studies.large_steps.records import CENTRAL, DESCRIPTIONS, Sweep
from gf_jax.comparison import precise_distance, precision_of
from gf_jax.descent.segments import Trajectory
from gf_jax.study.record import Run
from gf_jax.study.summary import NEAR

WORDS = {
    "from_first_order": "first-order prediction",
    "from_modified_flow": "modified flow",
    "from_central_flow": "central flow",
}
LEGEND = """\
of edge: step size over 2 / lambda_max of the Hessian at the start. flow,
first order, modified flow: Euclidean distance of descent from gradient flow,
from the flow and its first-order deviation, and from the modified flow of its
step size; < where the description is not known well enough to tell."""
LEGEND_OF_CENTRAL = """
central flow: of the mean of two iterates from the central flow of its step
size, which holds past the edge, too; nan where none is known, as of runs that
start past it."""


# Of an optimiser, of which runs and limit have names of their own.
LEGEND_OF_OPTIMIZER = """\
of edge: half the step size times the largest eigenvalue of the Hessian in the
metric of {runs}, at the time along its {limit} when that is
largest; above 1 oscillations grow then. {column}, first order, modified flow:
Euclidean distance of {runs} from its {limit}, from that
with its first-order deviation, and from the modified flow of its step size;
< where the description is not known well enough to tell."""


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
            found = edge.find(workplace)
            if options.step_sizes is None:
                before = options.values()
                workplace = harness.in_chunks(workplace._replace(options=found.options))
                options = workplace.options
                changed = {n: v for n, v in options.values().items() if v != before[n]}
                store.change_configuration(workplace.directory, changed)
    except KeyboardInterrupt:
        return harness.interrupt(workplace, "the edge of stability is not known yet")
    workplace.say(
        f"edge of stability {options.edge_where}: step size {found.edge:.4g}; step sizes "
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
        sweep = _compare(workplace, saved, trajectory, found)
    except KeyboardInterrupt:
        return harness.interrupt(workplace, f"the runs lie in {workplace.directory}, without flows")
    with harness.results(workplace):
        store.write_record(workplace.directory, "sweep", sweep)
    summary = summarise(saved, sweep, options)
    drawn = harness.draw(workplace, lambda: figure.draw(saved, sweep, options))
    _print(summary, options, workplace.console)
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


def summarise(run: Run, sweep: Sweep, options: Options) -> dict[str, Any]:
    """The numbers of the table: distances at the last time, one entry per lane."""
    summary = report.summarise(run)
    for lane, entry in enumerate(summary["runs"]):
        for name in (*DESCRIPTIONS, CENTRAL):
            entry[name] = report.finite(getattr(sweep, name)[-1, lane])
            entry[f"{name}_error"] = report.finite(sweep.error_of(name)[-1, lane])
        entry["of_edge"] = report.finite(sweep.of_edge[lane])
    summary |= {
        "has_central": CENTRAL in sweep.names,
        "edge": sweep.edge,
        "travelled": report.finite(sweep.travelled[-1]),
    }
    return summary | {"verdict": _verdict(run, sweep, options)}


def _verdict(run: Run, sweep: Sweep, options: Options) -> str:
    """How far the step size may go, and what corrections gain."""
    whole = np.isfinite(run.metrics.loss).all(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = sweep.from_flow[-1] / sweep.travelled[-1]
        error = sweep.error_of("from_first_order")[-1, -1]
        off = sweep.from_first_order[-1, -1]
        gain = sweep.from_flow[-1, -1] / np.maximum(off, error)
    limit, runs = options.limit_named, options.runs_named
    named = runs[0].upper() + runs[1:]
    near = run.step_sizes[whole & (shares < NEAR)]
    lines = [
        f"Verdict: the edge of stability {options.edge_where} is step size {sweep.edge:.3g}.",
        f"{named} stays near its {limit} up to step size {near.max():.3g}."
        if near.size
        else f"{named} stays near its {limit} at none of these step sizes.",
    ]
    lines += _order(run, sweep)
    if np.isfinite(gain):
        short, more = limit.split()[-1], "more than " if off <= error else ""
        lines.append(
            f"At the smallest, {run.step_sizes[-1]:.3g}, the {short} with its first-order "
            f"deviation is {more}{gain:.3g} times nearer to {runs} than the {short}."
        )
    if sweep.edge > run.step_sizes[0] and options.chosen_optimizer is not None:
        lines.append("None of the step sizes is past the edge; give more iterations.")
    if sweep.edge < run.step_sizes[0] and options.chosen_optimizer is None and options.smooth:
        lines.append("What runs past the edge follow instead is told by --experiment=edge.")
    if not whole.all():
        lines.append(f"{named} diverges from step size {run.step_sizes[~whole].min():.3g} on.")
    return " ".join(lines)


def _order(run: Run, sweep: Sweep) -> list[str]:
    """Up to which step size the other descriptions hold, of runs that have a central flow."""
    if CENTRAL not in sweep.names:
        return []
    told = []
    for name in sweep.names[1:]:
        with np.errstate(divide="ignore", invalid="ignore"):
            near = getattr(sweep, name)[-1] / sweep.travelled[-1] < NEAR
        up_to = f"up to {run.step_sizes[near].max():.3g}" if near.any() else "at none"
        told.append(f"the {WORDS[name]} {up_to}")
    return [f"So near to it are {', '.join(told[:-1])}, and {told[-1]}."]


def _compare(
    workplace: NetworkWorkplace[Options], run: Run, trajectory: Trajectory, found: edge.Found
) -> Sweep:
    """Distances of every lane from the descriptions, at the snapshots."""
    f, start = workplace.study.objective.loss, workplace.study.initial_params
    times, step_sizes = run.snapshot_times, run.step_sizes
    told = workplace.options
    optimizer = told.chosen_optimizer
    budget = 2 * run.iterations[-1] * sum(run.ratios)  # with kinks: twice what the runs took
    deviation = harness.solve_once(
        workplace,
        "flow and first-order deviation",
        lambda tell: gf_jax.deviation(
            *(f, start, times),
            difference=step_sizes[-1],
            optimizer=optimizer,
            step_size=None if optimizer is None else step_sizes[-1],
            budget=budget,
            progress=tell,
        ),
        structures.of(gf_jax.Deviation, start, times=len(times)),
    )
    whole = np.isfinite(run.metrics.loss).all(axis=0)  # of others a modified flow is no help
    modified = harness.solve_once(
        workplace,
        "modified flows",
        lambda tell: gf_jax.modified_flow(
            *(f, start, times, step_sizes[whole]),
            optimizer=optimizer,
            budget=budget,
            progress=tell,
        ),
        structures.of(
            gf_jax.Flow, start, ("times", "lanes"), times=len(times), lanes=int(whole.sum())
        ),
    )
    flow = jax.tree.map(lambda leaf: leaf[:, None], deviation.flow.params)

    per_iteration = told.method.time_scale * step_sizes

    def first_order(theta: np.ndarray, e: np.ndarray) -> np.ndarray:
        return theta + per_iteration.reshape(-1, *(1,) * (e.ndim - 1)) * e[:, None]

    def distances(reference: Any, lanes: np.ndarray) -> np.ndarray:
        """Of the lanes chosen; NaN for the others."""
        chosen = jax.tree.map(lambda leaf: leaf[:, lanes], trajectory.snapshots)
        gaps = np.full((len(times), len(step_sizes)), np.nan)
        gaps[:, lanes] = precise_distance(chosen, reference, 2)
        return gaps

    every = np.ones_like(whole)
    from_central_flow, central_error = central.distances(
        workplace, run, trajectory.snapshots, whole & (found.of_edge < 1)
    )
    of_modified = np.full_like(central_error, np.nan)
    of_modified[:, whole] = modified.error
    of_flow = np.broadcast_to(deviation.flow.error[:, None], of_modified.shape)
    of_first_order = of_flow + per_iteration * deviation.error[:, None]
    errors = np.stack([of_flow, of_first_order, of_modified, central_error])
    return Sweep(
        edge=found.edge,
        of_edge=found.of_edge,
        travelled=descending.distance_from_init(workplace.study, deviation.flow.params),
        from_flow=distances(flow, every),
        from_first_order=distances(jax.tree.map(first_order, flow, deviation.coherent), every),
        from_modified_flow=distances(modified.params, whole),
        from_central_flow=from_central_flow,
        errors=errors + precision_of(trajectory.snapshots),
    )


def _print(summary: dict[str, Any], options: Options, console: Console) -> None:
    """Prints distances from the descriptions, one row per step size."""
    column = options.limit_named.split()[-1]
    names = (*DESCRIPTIONS, CENTRAL) if summary["has_central"] else DESCRIPTIONS
    rows = [
        (
            f"{lane['step_size']:.4g}",
            report.text(lane["of_edge"], ".2f"),
            "diverged"
            if lane["diverged_at"] is not None
            else report.text(lane["final_loss"], ".6f"),
            *(_distance(lane[name], lane[f"{name}_error"]) for name in names),
        )
        for lane in summary["runs"]
    ]
    title = (
        f"{summary['network']} on {summary['data']}\n"
        f"at time {summary['time']:g}, where the {column} has travelled "
        f"{report.text(summary['travelled'], '.4g')}"
    )
    heads = (column, "first order", "modified flow", "central flow")
    columns = ("step size", "of edge", "loss", *heads[: len(names)])
    legend = LEGEND + (LEGEND_OF_CENTRAL if summary["has_central"] else "")
    if options.chosen_optimizer is not None:
        told = {"runs": options.runs_named, "limit": options.limit_named, "column": column}
        legend = LEGEND_OF_OPTIMIZER.format(**told)
    report.show_table(console, title, columns, rows, legend=legend)
    for line in report.divergences(summary):
        console.print(f"[bold red]warning:[/] {line}", soft_wrap=True)


def _distance(value: float | None, error: float | None) -> str:
    """A distance as it is printed; one within its error is below a bound."""
    if value is None or error is None or value > error:
        return report.text(value, ".2e")
    return f"< {value + error:.0e}"


EXPERIMENT = Experiment(
    name="large_steps",
    studies="step sizes up to the edge of stability",
    question=(
        "How large may a step be before descent no longer follows its flow? The step size is "
        "doubled until it is past the edge of stability, 2 divided by the largest eigenvalue "
        "of the Hessian, where descent overshoots. Every run is compared with "
        "descriptions of it: the flow, the flow with its first-order correction, a modified flow "
        "that knows the step size, and a central flow that knows the edge, too."
    ),
    options=Options,
    run=run,
)
