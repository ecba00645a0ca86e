"""The paper's experiment: gradient descent at step size s against step sizes s/r.

    python -m experiments.main --ratios=2,5,10,20

takes about two minutes on MNIST and half a minute on digits for the default linear
network on two CPU cores. All losses fall on one curve; on MNIST the distance from
initialisation ends near 2.6, and the runs within one percent of that of each other.
"""

import operator
import time
from typing import NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.text import Text
from tqdm import tqdm

import gf_jax
from experiments import figures, problem, report, store
from experiments.configuration import EXIT_DIVERGED, EXIT_INTERRUPTED, Configuration
from gf_jax.descent import Trajectory


class Outcome(NamedTuple):
    """A trajectory, perhaps cut short, and how it came about."""

    trajectory: Trajectory
    seconds: float
    interrupted: bool


def run(config: Configuration) -> int:
    """Runs the experiment and writes its run directory.

    Returns:
      The exit status: 0, or 3 if a lane diverged, or 130 if it was interrupted.

    Raises:
      UsageError: on data, weights or an output directory that are not accepted.
    """
    console = Console()
    device = problem.device()
    study = problem.build(config)
    directory = store.create(config.output_dir, config.network)
    _announce(config, study, device, console)
    store.write_configuration(directory, config, study.dataset, study.network_label)
    store.write_params(directory / "initial_params.npz", study.initial_params)
    outcome = _descend(config, study)
    if outcome is None:
        console.print("interrupted before the first segment was complete")
        return EXIT_INTERRUPTED
    saved = _saved_form(config, study, outcome.trajectory)
    summary = report.summarise(saved)
    timing = {"seconds": outcome.seconds, "interrupted": outcome.interrupted}
    store.write_metrics(directory, saved)
    store.write_snapshots(directory, saved, outcome.trajectory.snapshots)
    store.write_summary(directory, summary | timing)
    figures.draw_run(saved, directory)
    report.print_table(summary, console)
    divergences = report.divergences(summary)
    for line in divergences:
        console.print(f"[bold red]warning:[/] {line}", soft_wrap=True)
    if study.dataset.warning:
        console.print(f"[bold yellow]data:[/] {study.dataset.label}, not MNIST", soft_wrap=True)
    console.print(f"everything lies in {escape(str(directory))}", soft_wrap=True, highlight=False)
    if outcome.interrupted:
        console.print("interrupted: the run is shorter than was asked for")
        return EXIT_INTERRUPTED
    return EXIT_DIVERGED if divergences else 0


def _announce(
    config: Configuration, study: problem.Problem, device: jax.Device, console: Console
) -> None:
    if study.dataset.warning:
        panel = Panel(Text(study.dataset.warning), title="NOT MNIST", border_style="bold yellow")
        Console(stderr=True).print(panel)
    schedule = config.schedule
    parameters = sum(leaf.size for leaf in jax.tree.leaves(study.initial_params))
    console.print(
        f"{study.network_label}, {parameters:,} parameters, on {study.dataset.label}\n"
        f"{len(schedule.lanes)} runs, {schedule.gradient_evaluations:,} gradient evaluations "
        f"on {device.device_kind}",
        soft_wrap=True,
        highlight=False,
    )


def _descend(config: Configuration, study: problem.Problem) -> Outcome | None:
    """Runs segment by segment; stops early if every lane has diverged."""
    parts: list[Trajectory] = []
    schedule = config.schedule
    started, interrupted = time.perf_counter(), False
    with tqdm(total=schedule.iterations, unit="it", dynamic_ncols=True) as progress:
        try:
            for part in gf_jax.descent_segments(
                study.objective.loss, study.initial_params, schedule
            ):
                parts.append(part)
                progress.update(int(part.iterations[-1]) - progress.n)
                if not np.isfinite(part.metrics.loss[-1]).any():
                    break
        except KeyboardInterrupt:
            interrupted = True
    if not parts:
        return None
    return Outcome(gf_jax.join(parts), time.perf_counter() - started, interrupted)


def _saved_form(config: Configuration, study: problem.Problem, trajectory: Trajectory) -> store.Run:
    """The run as it is stored, with the accuracy of every snapshot."""
    lanes = config.schedule.lanes
    accuracies = jax.jit(jax.vmap(study.objective.accuracy))
    # One snapshot at a time: a forward pass of all lanes is little memory.
    rows = [
        accuracies(jax.tree.map(operator.itemgetter(number), trajectory.snapshots))
        for number in range(len(trajectory.snapshot_iterations))
    ]
    return store.Run(
        network_label=study.network_label,
        data_label=study.dataset.label,
        step_size=config.step_size,
        ratios=lanes,
        iterations=trajectory.iterations,
        metrics=trajectory.metrics,
        snapshot_iterations=trajectory.snapshot_iterations,
        accuracy=np.array(rows).reshape(-1, len(lanes)),
    )
