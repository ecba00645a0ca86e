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

import gf_jax
from experiments.cli.configuration import EXIT_DIVERGED, EXIT_INTERRUPTED, Configuration, UsageError
from experiments.output import figures, report
from experiments.runs import harness, interruption, progress, store
from experiments.runs.harness import NetworkWorkplace
from experiments.studies import records
from gf_jax.comparison import precise_distance
from gf_jax.descent.segments import Trajectory
from gf_jax.study.summary import NEAR

MOST_DOUBLINGS = 30  # ratios are integers of 32 bits
BEYOND = 2.0  # the sweep ends at the first step size this many times the edge


def run(config: Configuration) -> int:
    """Runs the experiment and writes its run directory.

    Returns:
      The exit status: 0, or 3 if a lane diverged, or 130 if it was interrupted.

    Raises:
      UsageError: on data, weights or an output directory that are not accepted.
    """
    workplace = harness.begin(config)
    with harness.removed_if_refused(workplace):
        edge = _edge(workplace)
        config = config if config.step_sizes is not None else _doubling(config, edge)
    store.write_configuration(
        workplace.directory, config, workplace.study.dataset, workplace.study.network_label
    )
    workplace.say(
        f"edge of stability at the start: step size {edge:.4g}; step sizes "
        + ", ".join(f"{s:g}" for s in config.all_step_sizes)
    )
    assert config.arithmetic is not None
    outcome = harness.descend(workplace, config.schedule, config.arithmetic)
    if outcome is None:
        workplace.say("interrupted before the first segment was complete")
        return EXIT_INTERRUPTED
    saved = harness.saved_form(workplace, config.schedule, config.arithmetic, outcome.trajectory)
    snapshots = workplace.study.restore(outcome.trajectory.snapshots, lanes=True)
    with harness.results(workplace):
        store.write_metrics(workplace.directory, saved)
        store.write_snapshots(workplace.directory, saved, snapshots)
    if outcome.interrupted:
        workplace.say("interrupted: the flows were not solved")
        return EXIT_INTERRUPTED
    if not np.isfinite(saved.metrics.loss).all(axis=0).any():
        summary = report.summarise(saved)
        report.print_run(summary, workplace.console)
        workplace.say("every run diverged, so that there is nothing to compare with flows")
        figure = harness.draw(workplace, lambda: figures.draw_run(saved, workplace.directory))
        harness.end(workplace, summary, figure)
        return EXIT_DIVERGED
    try:
        sweep = _compare(workplace, saved, outcome.trajectory, edge)
    except KeyboardInterrupt:
        workplace.say(f"interrupted: the runs lie in {workplace.directory}, without flows")
        return EXIT_INTERRUPTED
    with harness.results(workplace):
        store.write_record(workplace.directory, "sweep", sweep)
    summary = summarise(saved, sweep)
    figure = harness.draw(workplace, lambda: figures.draw_sweep(saved, sweep, workplace.directory))
    report.print_sweep(summary, workplace.console)
    workplace.say(summary["verdict"])
    harness.end(workplace, summary, figure)
    return EXIT_DIVERGED if report.divergences(summary) else 0


def summarise(run: records.Run, sweep: records.Sweep) -> dict[str, Any]:
    """The numbers of the table: distances at the last time, one entry per lane."""
    summary = report.summarise(run)
    for lane, entry in enumerate(summary["runs"]):
        for name in records.DESCRIPTIONS:
            entry[name] = report.finite(getattr(sweep, name)[-1, lane])
    summary |= {"edge": sweep.edge, "travelled": report.finite(sweep.travelled[-1])}
    return summary | {"verdict": _verdict(run, sweep)}


def _verdict(run: records.Run, sweep: records.Sweep) -> str:
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


def _edge(workplace: NetworkWorkplace) -> float:
    """The edge of stability at the start."""
    f, start = workplace.study.objective.loss, workplace.study.initial_params
    here = jax.tree.map(lambda leaf: leaf[None], start)
    ends = interruption.call(lambda: gf_jax.curvature(f, here))
    curvature = float(ends.lambda_max.value[0])
    if not 0 < curvature < np.inf:
        raise UsageError(
            f"--experiment=large_steps: the largest curvature at the start is {curvature:g}, so "
            "there is no edge of stability; take another starting point"
        )
    return 2 / curvature


def _doubling(config: Configuration, edge: float) -> Configuration:
    """Step sizes from the conventional one, doubled until well past the edge."""
    assert config.step_size is not None
    doublings = max(1, int(np.ceil(np.log2(BEYOND * edge / config.step_size))))
    if doublings > MOST_DOUBLINGS:
        raise UsageError(
            f"--step_size={config.step_size:g}: the edge of stability at the start is {edge:.3g}, "
            f"and accepted is a step size that {MOST_DOUBLINGS} doublings take past it; give a "
            "larger one, or another start"
        )
    return dataclasses.replace(
        config,
        step_size=None,
        step_sizes=tuple(config.step_size * 2**n for n in range(doublings + 1)),
        iterations=max(1, config.schedule.iterations // 2**doublings),
    )


def _compare(
    workplace: NetworkWorkplace, run: records.Run, trajectory: Trajectory, edge: float
) -> records.Sweep:
    """Distances of every lane from the three descriptions, at the snapshots."""
    f, start = workplace.study.objective.loss, workplace.study.initial_params
    times, step_sizes = run.snapshot_times, run.step_sizes
    budget = 2 * run.iterations[-1] * sum(run.ratios)  # with kinks: twice what the runs took
    deviation = progress.solve(
        "flow and first-order deviation",
        lambda tell: gf_jax.deviation(
            f, start, times, difference=step_sizes[-1], budget=budget, progress=tell
        ),
    )
    whole = np.isfinite(run.metrics.loss).all(axis=0)  # of others a modified flow is no help
    modified = progress.solve(
        "modified flows",
        lambda tell: gf_jax.modified_flow(
            f, start, times, step_sizes[whole], budget=budget, progress=tell
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
    return records.Sweep(
        edge=edge,
        travelled=harness.distance_from_init(workplace, deviation.flow.params),
        from_flow=distances(flow, every),
        from_first_order=distances(jax.tree.map(first_order, flow, deviation.coherent), every),
        from_modified_flow=distances(modified.params, whole),
    )
