"""Draws and tabulates a saved run again, without computing it.

python -m experiments.show runs/fully_connected-20260101-120000

Exit status: 0 done; 2 a folder that holds no such run, or cannot be written; 130 interrupted.
"""

import sys
from pathlib import Path

from rich.markup import escape

from experiments import studies
from experiments.cli import command_line, usage
from experiments.cli.experiment import Experiment
from experiments.output import figures, report
from experiments.output.page import document
from experiments.output.page.transcript import Transcript
from experiments.process import interruption
from experiments.process.mistakes import EXIT_INTERRUPTED, EXIT_USAGE, UsageError
from experiments.runs import store
from experiments.studies import seeds

COMMAND = "python -m experiments.show"
PAGE = usage.Page(
    command=COMMAND,
    takes="RUN_DIR [RUN_DIR ...]",
    purpose="Draws and tabulates saved runs of the main experiment again, without computing them. "
    "Each folder's figure and report.html are written anew.",
    examples=(
        usage.Example(f"{COMMAND} runs/*", "All runs that lie here; a second or two for each."),
    ),
    statuses={
        0: "done",
        EXIT_USAGE: "a folder that holds no such run, or cannot be written; those before it are "
        "drawn",
        EXIT_INTERRUPTED: "interrupted, likewise",
    },
)


def main(arguments: list[str]) -> int:
    """Writes the figure of each run directory anew and prints its table."""
    if any(argument in usage.HELP for argument in arguments):
        usage.show(PAGE)
        return 0
    with interruption.handled():
        return interruption.exit_status(command_line.exit_status([], lambda: _show_all(arguments)))


def _show_all(arguments: list[str]) -> int:
    wrong = [argument for argument in arguments if argument.startswith("-")]
    if wrong or not arguments:
        raise UsageError(
            f"{wrong[0] if wrong else 'show'}: accepted are the folders of one or more runs, "
            "show RUN_DIR [RUN_DIR ...]"
        )
    for argument in arguments:
        interruption.check()
        _show(Path(argument))
    return 0


def _show(directory: Path) -> None:
    console = Transcript()
    run = store.read_run(directory)
    summary = seeds.summarise(run) if run.seeds else report.summarise(run)
    if run.seeds:
        seeds.print_seeds(summary, console)
    else:
        report.print_run(summary, console)
    try:
        figure = figures.attempt(lambda: report.draw_run(run), directory, console.print)
        path = document.write(directory, summary, figure, console.told, _experiment(directory))
    except OSError as error:
        raise UsageError(f"{directory}: cannot be written ({error.strerror})") from None
    console.print("drawn: " + escape(str(path)), soft_wrap=True, highlight=False)


def _experiment(directory: Path) -> Experiment | None:
    """Whose run it is; None of one that is not known here."""
    name = str(store.read_description(directory)["configuration"].get("experiment"))
    return studies.load(name) if name in studies.MODULES else None


if __name__ == "__main__":
    sys.exit(interruption.leave(main(sys.argv[1:])))
