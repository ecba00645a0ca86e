"""What every experiment does: open its folder, say what it does, show progress, close."""

import contextlib
import functools
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

import gf_jax
from experiments.cli import streams
from experiments.cli.configuration import (
    EXIT_INTERRUPTED,
    Configuration,
    UnwrittenError,
    UsageError,
)
from experiments.output import figures, page
from experiments.output.figures import Figure
from experiments.problems import problem
from experiments.problems.data import Dataset
from experiments.runs import (
    checkpoints,
    devices,
    effort,
    folders,
    interruption,
    memory,
    progress,
    resumption,
    store,
    structures,
)
from experiments.runs.journal import Journal
from experiments.studies import records
from gf_jax.comparison import precise_distance
from gf_jax.descent.placement import Memory
from gf_jax.descent.schedule import Schedule
from gf_jax.descent.segments import Trajectory
from gf_jax.flow.problem import Progress
from gf_jax.problems.networks import Params
from gf_jax.program.arithmetic import arithmetic as get_arithmetic
from gf_jax.study import files

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
      journal: what is kept of what it computes.
    """

    config: Configuration
    study: Study
    dataset: Dataset | None
    directory: Path
    console: page.Transcript
    journal: Journal

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
    digests = {
        "data": files.digest([study.dataset.images, study.dataset.labels]),
        "initial_params": files.digest(map(np.asarray, jax.tree.leaves(study.start))),
    }
    workplace = open_folder(config, study, study.dataset, study.network_label, size, digests)
    if devices.leads():
        with _first_files(workplace.directory):
            store.write_params(workplace.directory / "initial_params.npz", study.start)
    return workplace


@contextlib.contextmanager
def _first_files(directory: Path) -> Iterator[None]:
    """While they are written: a place that takes none is told before anything is computed.

    Raises:
      UnwrittenError: if they cannot be written; the directory is then removed.
    """
    try:
        yield
    except OSError as error:
        with contextlib.suppress(OSError):
            folders.discard(directory)
        raise UnwrittenError(
            f"{directory}: cannot be written ({error.strerror}); give a folder that can by "
            "--output_dir"
        ) from None


def _study(config: Configuration) -> problem.Problem:
    """The problem, once it is known that its runs can be made here."""
    try:
        get_arithmetic(config.arithmetic or "compensated")
    except (FloatingPointError, ValueError) as error:
        raise UsageError(f"--{error}") from None
    dataset = problem.load_data(config)  # not left behind: it ends its own process
    study = interruption.call(lambda: problem.build(config, dataset))
    devices.spread(config, len(study.dataset.labels))
    memory.check_flow(config, study)
    return study


def open_folder(
    config: Configuration,
    study: Study,
    dataset: Dataset | None,
    label: str,
    size: str,
    digests: dict[str, str] | None = None,
) -> Workplace[Study]:
    """Makes the run directory, or opens that of a run to be resumed, and says what is studied.

    Args:
      config: the configuration.
      study: what is studied.
      dataset: the training set, if there is one.
      label: what every output calls the network or function.
      size: of it, in words.
      digests: of data and starting point, which a resumed run must have again.

    Raises:
      UsageError: on an output directory that is not accepted.
    """
    name = config.network if config.experiment == "paper" else None
    nothing = _nothing()
    if not devices.leads():
        devices.agreed(lambda: None)
        console = page.Transcript(quiet=True)
        return Workplace(config, study, dataset, Path(os.devnull), console, nothing)
    warnings: list[str] = []

    def open_directory() -> Path:
        nonlocal warnings
        if config.resume is None:
            return folders.create(config.output_dir, name or config.experiment)
        directory, warnings = resumption.reopen(config, digests or {})
        return directory

    directory = devices.agreed(open_directory)
    streams.keep(directory)
    workplace = Workplace(config, study, dataset, directory, page.Transcript(), nothing)
    if dataset is not None:
        warn(dataset)
    on = "" if dataset is None else f", on {dataset.label}"
    for line in (f"{label}, {size}{on}", *warnings):
        workplace.say(line)
    if config.resume is None:
        with _first_files(directory):
            store.write_configuration(directory, config, dataset, label, digests)
    workplace = workplace._replace(journal=_journal(workplace, digests or {}))
    if config.resume is not None:
        resumption.note(config)
    return workplace


def _journal(workplace: Workplace, digests: dict[str, str]) -> Journal:
    """The journal of a run that can be resumed, read if it is; that of another keeps nothing.

    Raises:
      UsageError: on a folder of checkpoints that is not accepted.
    """
    config = workplace.config
    if config.checkpoint_every is None or jax.process_count() > 1:
        return workplace.journal
    run = files.digest([np.frombuffer("".join(digests.values()).encode(), np.uint8)])
    folder = config.checkpoint_dir or str(workplace.directory / checkpoints.FOLDER)
    journal = Journal(folder, config.checkpoint_every, run, workplace.say)
    if config.resume is not None:
        journal.read(expected=config.checkpoint_dir is not None)
    elif config.checkpoint_dir is not None:
        journal.begin()
    return journal


def warn(dataset: Dataset) -> None:
    """Shows what the user must be told about the choice of data, if there is anything."""
    if dataset.warning:
        panel = Panel(Text(dataset.warning), title="NOT MNIST", border_style="bold yellow")
        Console(stderr=True).print(panel)


def end(
    workplace: Workplace,
    summary: dict[str, Any],
    figure: Figure | None,
    *,
    interrupted: bool = False,
) -> None:
    """Writes page and summary, and says once more which data were used and where results lie.

    The summary is the last to be written: it says that the run is complete.
    """
    dataset, console = workplace.dataset, workplace.console
    with results(workplace):
        page.write(workplace.directory, summary, figure, console.told)
        store.write_summary(workplace.directory, summary)
    if dataset is not None and dataset.warning:
        console.print(f"[bold yellow]data:[/] {dataset.label}, not MNIST", soft_wrap=True)
    workplace.say(f"everything lies in {workplace.directory}")
    if not interrupted:
        workplace.journal.remove()


def interrupt(workplace: Workplace, text: str) -> int:
    """Says that a run was cut short, and how it goes on; the exit status."""
    workplace.journal.close()
    workplace.say(f"interrupted: {text}")
    if workplace.journal.keeps:
        workplace.say(f"resume it: {resumption.command(workplace.directory)}")
    return EXIT_INTERRUPTED


def draw(workplace: Workplace, drawing: Callable[[], Figure]) -> Figure | None:
    """The figure of a run, which is written; None, said in a line, if it cannot be drawn.

    Raises:
      UnwrittenError: if it cannot be written.
    """
    with results(workplace):
        return figures.attempt(drawing, workplace.say)


@contextlib.contextmanager
def results(workplace: Workplace) -> Iterator[None]:
    """While results are written: a signal waits, and a full disk ends the run in one line.

    Raises:
      UnwrittenError: if they cannot be written.
    """
    with interruption.shielded():
        try:
            yield
        except OSError as error:
            workplace.journal.close()
            again = resumption.command(workplace.directory)
            fix = (
                f"when they can, resume the run: {again}"
                if workplace.journal.keeps
                else ("give a folder with room for them by --output_dir")
            )
            raise UnwrittenError(
                f"{workplace.directory}: results cannot be written ({error.strerror}); {fix}"
            ) from None


def descend(workplace: NetworkWorkplace, schedule: Schedule, arithmetic: str) -> Outcome | None:
    """Runs descent segment by segment; stops early if every lane has diverged.

    What an earlier process has kept of it is not run again.

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
    config, study, journal = workplace.config, workplace.study, workplace.journal
    starts, label = len(config.starts_of_seeds), f"descent, {arithmetic}"
    chosen = devices.spread(config, len(study.dataset.labels))
    try:
        _announce(workplace, schedule, arithmetic, chosen)
    except KeyboardInterrupt:
        return None
    kept = journal.records(label)
    leaves = [each.leaves for each in kept]
    parts = structures.trajectories(label, leaves, study.initial_params, schedule, starts)
    started, interrupted = time.perf_counter(), False
    options: dict[str, Any] = {"starts": starts > 0, "sharding": chosen.sharding}
    if parts:
        recorded = int(parts[-1].iterations[-1])
        workplace.say(f"resumed at iteration {recorded:,} of {schedule.iterations:,}")
        options["resume_from"] = (recorded, journal.state(label) or ())
    options["check_memory"] = functools.partial(_check_memory, workplace)
    options |= steps(workplace)
    f, start = devices.objective(study, chosen), study.initial_params
    try:
        if not kept or not kept[-1].done:
            for part, state in progress.segments(f, start, schedule, arithmetic, **options):
                parts.append(part)
                diverged = not bool(np.isfinite(part.metrics.loss[-1]).any())
                done = diverged or int(part.iterations[-1]) == schedule.iterations
                journal.add(label, part, state, done=done)
                if diverged:
                    break
    except KeyboardInterrupt:
        interrupted = True
        journal.flush(wait=True)
    except ValueError as error:
        if not kept:
            raise
        raise structures.other(label, error) from None
    if not parts:
        return None
    seconds = time.perf_counter() - started + sum(each.seconds for each in kept)
    return Outcome(gf_jax.join(parts), seconds, interrupted)


def steps(workplace: NetworkWorkplace) -> dict[str, Any]:
    """Options of descent that say what its steps are made of."""
    config = workplace.config
    options: dict[str, Any] = {}
    if config.method.optimizer is not None:
        options["transformation"] = config.method.optimizer
    if config.batch_size:
        options["batches"] = workplace.study.objective.batches(config.batch_size)
    return options


def _announce(
    workplace: NetworkWorkplace, schedule: Schedule, arithmetic: str, chosen: devices.Spread
) -> None:
    """Says what descent will take; refuses what cannot fit, before it is compiled."""
    config, study = workplace.config, workplace.study
    least = effort.least_memory(study, schedule, len(config.starts_of_seeds) or 1, chosen)
    _check_memory(workplace, least)
    for line in effort.announcement(config, study, schedule, arithmetic, least):
        workplace.say(line)
    if chosen.text:
        workplace.say(chosen.text)


def _check_memory(workplace: Workplace, needed: Memory) -> None:
    """Refuses a run that does not fit."""
    with removed_if_refused(workplace):
        devices.agreed(lambda: memory.check(workplace.config, needed))


@contextlib.contextmanager
def removed_if_refused(workplace: Workplace) -> Iterator[None]:
    """Removes the run directory, if it is new, where a mistake shows after it was made."""
    try:
        yield
    except UsageError:
        if devices.leads() and workplace.config.resume is None:
            folders.discard(workplace.directory)
        raise


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
        loss_unit=study.objective.of_outputs.unit,
        method=workplace.config.method,
    )


def distance_from_init(workplace: NetworkWorkplace, flow_params: Params) -> np.ndarray:
    """Distance of a flow, leaves (times, ...), from the initial point, in the flow's float64."""
    return precise_distance(flow_params, workplace.study.initial_params, 1)


def solve_once(
    workplace: NetworkWorkplace, label: str, solver: Callable[[Progress], Solution], like: Solution
) -> Solution:
    """``progress.solve``, unless an earlier process has; like: a solution of that structure."""
    return workplace.journal.once(label, lambda: progress.solve(label, solver), like)


def _nothing() -> Journal:
    """The journal of what is not resumed."""
    return Journal(None, 0.0, "", print)
