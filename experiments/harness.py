"""What every experiment does: open its folder, say what it does, show progress, close."""

import operator
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import numpy as np
from jax import lax
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.text import Text
from tqdm import tqdm

import gf_jax
from experiments import devices, memory, problem, records, store
from experiments.configuration import Configuration, UsageError
from experiments.data import Dataset
from gf_jax.arithmetic import arithmetic as get_arithmetic
from gf_jax.descent import Trajectory
from gf_jax.flow_problem import Progress
from gf_jax.networks import Params
from gf_jax.placement import Memory
from gf_jax.schedule import Schedule
from gf_jax.tracing import Loss

Solution = TypeVar("Solution")
Study = TypeVar("Study")


class Workplace(NamedTuple, Generic[Study]):
    """What an experiment works with and writes into.

    Attributes:
      config: the configuration.
      study: what is studied.
      dataset: the training set, None where there is none.
      directory: the run directory.
      console: for standard output.
    """

    config: Configuration
    study: Study
    dataset: Dataset | None
    directory: Path
    console: Console

    def say(self, text: str) -> None:
        """Prints a line that terminals may wrap and that is not markup."""
        self.console.print(escape(text), soft_wrap=True, highlight=False)


NetworkWorkplace = Workplace[problem.Problem]


class Outcome(NamedTuple):
    """A trajectory, perhaps cut short, and how it came about."""

    trajectory: Trajectory
    seconds: float
    interrupted: bool


def begin(config: Configuration) -> NetworkWorkplace:
    """Builds the problem, then makes its run directory and says what is studied.

    Raises:
      UsageError: on data, weights, an arithmetic or an output directory that are not
        accepted, and if flow or prediction cannot fit into memory.
    """
    problem.device()
    study = devices.agreed(lambda: _study(config))
    seeds = len(config.starts_of_seeds) or 1
    parameters = sum(leaf.size for leaf in jax.tree.leaves(study.start)) // seeds
    size = f"{parameters:,} parameters" + (f", {seeds:,} starting points" if seeds > 1 else "")
    if study.row_space is not None:
        rank, features = study.row_space.basis.shape
        size += f", inputs in {rank} of {features} dimensions"
    workplace = open_folder(config, study, study.dataset, study.network_label, size)
    if devices.leads():
        store.write_params(workplace.directory / "initial_params.npz", study.start)
    return workplace


def _study(config: Configuration) -> problem.Problem:
    """The problem, once it is known that its runs can be made here."""
    try:
        get_arithmetic(config.arithmetic or "compensated")
    except (FloatingPointError, ValueError) as error:
        raise UsageError(f"--{error}") from None
    study = problem.build(config)
    devices.spread(config, len(study.dataset.labels))
    memory.check_flow(config, study)
    return study


def open_folder(
    config: Configuration, study: Study, dataset: Dataset | None, label: str, size: str
) -> Workplace[Study]:
    """Makes the run directory and says what is studied.

    Args:
      config: the configuration.
      study: what is studied.
      dataset: the training set, if there is one.
      label: what every output calls the network or function.
      size: of it, in words.

    Raises:
      UsageError: on an output directory that is not accepted.
    """
    name = config.network if config.experiment == "paper" else None
    if not devices.leads():
        devices.agreed(lambda: None)
        return Workplace(config, study, dataset, Path(os.devnull), Console(quiet=True))
    directory = devices.agreed(lambda: store.create(config.output_dir, name or config.experiment))
    workplace = Workplace(config, study, dataset, directory, Console())
    if dataset is not None:
        warn(dataset)
    on = "" if dataset is None else f", on {dataset.label}"
    workplace.say(f"{label}, {size}{on}")
    store.write_configuration(directory, config, dataset, label)
    return workplace


def warn(dataset: Dataset) -> None:
    """Shows what the user must be told about the choice of data, if there is anything."""
    if dataset.warning:
        panel = Panel(Text(dataset.warning), title="NOT MNIST", border_style="bold yellow")
        Console(stderr=True).print(panel)


def end(workplace: Workplace) -> None:
    """Says once more which data were used, and where the results lie."""
    dataset, console = workplace.dataset, workplace.console
    if dataset is not None and dataset.warning:
        console.print(f"[bold yellow]data:[/] {dataset.label}, not MNIST", soft_wrap=True)
    workplace.say(f"everything lies in {workplace.directory}")


def descend(workplace: NetworkWorkplace, schedule: Schedule, arithmetic: str) -> Outcome | None:
    """Runs descent segment by segment; stops early if every lane has diverged.

    Args:
      workplace: the workplace.
      schedule: the steps, which may differ from those of the configuration.
      arithmetic: name of the arithmetic.

    Returns:
      The run so far if it is interrupted; None if nothing of it is complete.

    Raises:
      UsageError: if it does not fit into memory; a run directory without results is then
        removed.
    """
    parts: list[Trajectory] = []
    config, study = workplace.config, workplace.study
    starts = len(config.starts_of_seeds)
    chosen = devices.spread(config, len(study.dataset.labels))
    workplace.say(
        f"{len(schedule.lanes) * (starts or 1)} runs in {arithmetic} arithmetic, "
        f"{_work(config, schedule, starts or 1)} on {problem.device().device_kind}"
    )
    if chosen.text:
        workplace.say(chosen.text)
    started, interrupted = time.perf_counter(), False
    f, start = devices.objective(study, chosen), study.initial_params

    def check_memory(needed: Memory) -> None:
        try:
            devices.agreed(lambda: memory.check(config, needed))
        except UsageError:
            if devices.leads():
                store.discard(workplace.directory)
            raise

    options: dict[str, Any] = {"starts": starts > 0, "sharding": chosen.sharding}
    options["check_memory"] = check_memory
    if config.method.record is not None:
        options["transformation"] = config.method.record.transformation
    if config.batch_size:
        options["batches"] = study.objective.batches(config.batch_size)
    try:
        for part in segments(f, start, schedule, arithmetic, **options):
            parts.append(part)
            if not np.isfinite(part.metrics.loss[-1]).any():
                break
    except KeyboardInterrupt:
        interrupted = True
    if not parts:
        return None
    return Outcome(gf_jax.join(parts), time.perf_counter() - started, interrupted)


def _work(config: Configuration, schedule: Schedule, starts: int) -> str:
    """How many gradients the runs take, in words."""
    evaluations = schedule.gradient_evaluations * starts
    if not config.batch_size:
        return f"{evaluations:,} gradient evaluations"
    recorded = (schedule.iterations * len(schedule.lanes) + 1) * starts
    return (
        f"{evaluations - starts:,} gradient evaluations of batches and {recorded:,} of all examples"
    )


def segments(
    f: Loss,
    params: Any,
    schedule: Schedule,
    arithmetic: str,
    label: str | None = None,
    **options: Any,
) -> Iterator[Trajectory]:
    """The segments of descent, see ``gf_jax.descent_segments``, with a progress bar."""
    options["arithmetic"] = arithmetic
    with tqdm(total=schedule.iterations, unit="it", desc=label, **_bar()) as bar:
        for part in gf_jax.descent_segments(f, params, schedule, **options):
            bar.update(int(part.iterations[-1]) - bar.n)
            yield part


def saved_form(
    workplace: NetworkWorkplace, schedule: Schedule, arithmetic: str, trajectory: Trajectory
) -> records.Run:
    """The run as it is stored, with the accuracy of every snapshot."""
    study, seeds = workplace.study, workplace.config.starts_of_seeds
    with get_arithmetic(arithmetic).context():
        of_lanes = jax.vmap(study.objective.accuracy)
        accuracies = jax.jit((lambda stack: lax.map(of_lanes, stack)) if seeds else of_lanes)
        # One snapshot and start at a time: a forward pass of all lanes is little memory.
        rows = [
            np.asarray(accuracies(jax.tree.map(operator.itemgetter(at), trajectory.snapshots)))
            for at in range(len(trajectory.snapshot_iterations))
        ]
    return records.Run(
        network_label=study.network_label,
        data_label=study.dataset.label,
        step_size=schedule.step_size,
        ratios=schedule.lanes,
        iterations=trajectory.iterations,
        metrics=trajectory.metrics,
        snapshot_iterations=trajectory.snapshot_iterations,
        accuracy=np.array(rows).reshape(-1, *trajectory.metrics.loss.shape[1:]),
        seeds=seeds,
        method=workplace.config.method,
    )


def distance_from_init(workplace: NetworkWorkplace, flow_params: Params) -> np.ndarray:
    """Distance of a flow, leaves (times, ...), from the initial point, in the flow's float64."""
    return distances(flow_params, workplace.study.initial_params)


def distances(stack: Params, reference: Params) -> np.ndarray:
    """Distance of every point of a stack, leaves (times, ...), from a reference, in float64."""
    with jax.enable_x64(True):
        return np.asarray(gf_jax.distance(stack, reference, stack_axes=1))


def _bar() -> dict[str, Any]:
    """Of every progress bar: as wide as the terminal, and shown by one process."""
    return {"dynamic_ncols": True, "disable": not devices.leads()}


def solve(label: str, solver: Callable[[Progress], Solution]) -> Solution:
    """Calls a solver of a flow with a progress bar."""
    shape = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
    with tqdm(total=1.0, desc=label, bar_format=shape, **_bar()) as bar:
        solution = solver(lambda share: bar.update(max(0.0, float(share) - bar.n)))
        bar.update(1.0 - bar.n)
    return solution
