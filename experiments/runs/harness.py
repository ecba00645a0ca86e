"""What every experiment does: open its folder, say what it does, show progress, close."""

import contextlib
import importlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import jax
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.text import Text

from experiments.cli.experiment import Experiment
from experiments.output import figures
from experiments.output.page.transcript import Transcript
from experiments.problems import problem, weights
from experiments.problems.data import Dataset
from experiments.process import folders, interruption, peers, streams
from experiments.process.mistakes import EXIT_INTERRUPTED, UnwrittenError, UsageError
from experiments.runs import chunking, devices, effort, progress, resumption, sharing, store
from experiments.runs.journal import CHECKPOINTS, Journal
from experiments.runs.options.descent import NetworkRun
from experiments.runs.options.storage import Storage
from gf_jax.flow.problem import Progress
from gf_jax.program.arithmetic import arithmetic as get_arithmetic
from gf_jax.study import files

if TYPE_CHECKING:
    from experiments.output.figures import Figure

Solution = TypeVar("Solution")
Told = TypeVar("Told", bound=Storage)
Study = TypeVar("Study")
RunTold = TypeVar("RunTold", bound=NetworkRun)


class Workplace(NamedTuple, Generic[Told, Study]):
    """What an experiment works with and writes into.

    Attributes:
      experiment: which it is.
      options: what it was told.
      study: what is studied.
      dataset: the training set, None where there is none.
      directory: the run directory.
      console: for standard output.
      journal: what is kept of what it computes.
    """

    experiment: Experiment
    options: Told
    study: Study
    dataset: Dataset | None
    directory: Path
    console: Transcript
    journal: Journal

    def say(self, text: str) -> None:
        """Prints a line that terminals may wrap and that is not markup."""
        self.console.print(escape(text), soft_wrap=True, highlight=False)


NetworkWorkplace = Workplace[RunTold, problem.Problem]


def begin(experiment: Experiment, options: RunTold) -> NetworkWorkplace[RunTold]:
    """Builds the problem, then makes its run directory and says what is studied.

    Raises:
      UsageError: on data, weights, an arithmetic or an output directory that are not
        accepted, and if flow or prediction cannot fit into memory.
    """
    problem.device()
    study = peers.agreed(lambda: _study(options))
    chosen = chunking.choose(options, study)
    options, study = chosen.applied(options, study)
    seeds = len(options.starts_of_seeds) or 1
    parameters = sum(leaf.size for leaf in jax.tree.leaves(study.start)) // seeds
    size = f"{parameters:,} parameters" + (f", {seeds:,} starting points" if seeds > 1 else "")
    if study.row_space is not None:
        rank, features = study.row_space.basis.shape
        size += f", inputs in {rank} of {features} dimensions"
    digests = of_data(study.dataset) | {
        "initial_params": files.digest(map(np.asarray, jax.tree.leaves(study.start))),
    }
    workplace = open_folder(
        experiment, options, study, study.dataset, study.network_label, size, digests
    )
    if chosen.line:
        workplace.say(chosen.line)
    if peers.leads():
        with _first_files(workplace.directory):
            weights.write_params(workplace.directory / "initial_params.npz", study.start)
    return workplace


def in_chunks(workplace: NetworkWorkplace[RunTold]) -> NetworkWorkplace[RunTold]:
    """The same with a chunk of examples, if options that were found since ask for it.

    Raises:
      UsageError: if they fit in none.
    """
    chosen = chunking.choose(workplace.options, workplace.study)
    if chosen.line:
        workplace.say(chosen.line)
    options, study = chosen.applied(workplace.options, workplace.study)
    return workplace._replace(options=options, study=study)


def of_data(dataset: Dataset) -> dict[str, str]:
    """The digest of a training set, which a resumed run must have again."""
    return {"data": files.digest([dataset.images, dataset.labels])}


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


def _study(options: NetworkRun) -> problem.Problem:
    """The problem, once it is known that its runs can be made here."""
    try:
        get_arithmetic(options.arithmetic)
    except (FloatingPointError, ValueError) as error:
        raise UsageError(f"--{error}") from None
    dataset = problem.load_data(options)  # not left behind: it ends its own process
    study = interruption.call(
        lambda: problem.build(options, dataset, lambda size: effort.check_starts(options, size))
    )
    devices.spread(options, len(study.dataset.labels))
    effort.check_flow(options, study)
    return study


def open_folder(
    experiment: Experiment,
    options: Told,
    study: Study,
    dataset: Dataset | None,
    label: str,
    size: str,
    digests: dict[str, str] | None = None,
) -> Workplace[Told, Study]:
    """Makes the run directory, or opens that of a run to be resumed, and says what is studied.

    Args:
      experiment: which it is.
      options: what it was told.
      study: what is studied.
      dataset: the training set, if there is one.
      label: what every output calls the network or function.
      size: of it, in words.
      digests: of data and starting point, which a resumed run must have again.

    Raises:
      UsageError: on an output directory that is not accepted.
    """
    peers.agreed(lambda: sharing.check_alike(options.values(), digests or {}))
    nothing = Journal(None, 0.0, "", print)
    if not peers.leads():
        peers.agreed(lambda: None)
        console = Transcript(quiet=True)
        place = Workplace(experiment, options, study, dataset, Path(os.devnull), console, nothing)
        return place._replace(journal=_journal(place, digests or {}))
    warnings: list[str] = []

    def open_directory() -> Path:
        nonlocal warnings
        if options.resume is None:
            return folders.create(options.output_dir, experiment.folder(options))
        directory, warnings = resumption.reopen(options, digests or {})
        return directory

    directory = peers.agreed(open_directory)
    streams.keep(directory)
    workplace = Workplace(experiment, options, study, dataset, directory, Transcript(), nothing)
    if dataset is not None:
        warn(dataset)
    on = "" if dataset is None else f", on {dataset.label}"
    for line in (f"{label}, {size}{on}", *warnings):
        workplace.say(line)
    if options.resume is None:
        values = {"experiment": experiment.name} | options.values()
        with _first_files(directory):
            store.write_configuration(directory, values, dataset, label, digests)
    with removed_if_refused(workplace):
        workplace = workplace._replace(journal=_journal(workplace, digests or {}))
    if options.resume is not None:
        resumption.note(options)
    return workplace


def _journal(workplace: Workplace[Told, Study], digests: dict[str, str]) -> Journal:
    """The journal of a run, read if it is resumed: by the first process, then by the others.

    Raises:
      UsageError: on a folder of checkpoints that is not accepted.
    """
    options = workplace.options
    run = files.digest([np.frombuffer("".join(digests.values()).encode(), np.uint8)])
    peers.resumed_by(f"resume it: {resumption.command(workplace.directory)}")
    folder = options.checkpoint_dir or str(workplace.directory / CHECKPOINTS)
    folder = peers.agreed(lambda: sharing.common_folder(folder))
    journal = Journal(folder, options.checkpoint_every, run, workplace.say)

    def read() -> None:
        if options.resume is not None:
            journal.read(expected=options.checkpoint_dir is not None)
        elif options.checkpoint_dir is not None:
            journal.begin()

    peers.agreed(lambda: read() if peers.leads() else None)
    number = int(peers.from_first(str(journal.number)))
    peers.agreed(lambda: None if peers.leads() else journal.read_first(number))
    return journal


def warn(dataset: Dataset) -> None:
    """Shows what the user must be told about the choice of data, if there is anything."""
    if dataset.warning:
        panel = Panel(Text(dataset.warning), title="NOT MNIST", border_style="bold yellow")
        Console(stderr=True).print(panel)


def end(
    workplace: Workplace,
    summary: dict[str, Any],
    figure: "Figure | None",
    *,
    interrupted: bool = False,
) -> None:
    """Writes page and summary, and says once more which data were used and where results lie.

    The summary is the last to be written: it says that the run is complete.
    """
    dataset, console = workplace.dataset, workplace.console
    page = importlib.import_module("experiments.output.page.document")  # slow to load
    with results(workplace):
        page.write(workplace.directory, summary, figure, console.told, workplace.experiment)
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


def draw(workplace: Workplace, drawing: "Callable[[], Figure]") -> "Figure | None":
    """The figure of a run, which is written; None, said in a line, if it cannot be drawn.

    Raises:
      UnwrittenError: if it cannot be written.
    """
    with results(workplace):
        return figures.attempt(drawing, workplace.directory, workplace.say)


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


@contextlib.contextmanager
def removed_if_refused(workplace: Workplace) -> Iterator[None]:
    """Removes the run directory, if it is new, where a mistake shows after it was made."""
    try:
        yield
    except UsageError:
        if peers.leads() and workplace.options.resume is None:
            workplace.journal.remove()
            folders.discard(workplace.directory)
        raise


def solve_once(
    workplace: Workplace, label: str, solver: Callable[[Progress], Solution], like: Solution
) -> Solution:
    """``progress.solve``, unless an earlier process has; like: a solution of that structure."""
    return workplace.journal.once(label, lambda: progress.solve(label, solver), like)
