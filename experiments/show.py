"""Draws and tabulates a saved run again, without computing it.

python -m experiments.show runs/fully_connected-20260101-120000
"""

import sys
from pathlib import Path

from rich.markup import escape

from experiments import figures, page, report, seeds, store
from experiments.configuration import EXIT_USAGE, UsageError


def main(arguments: list[str]) -> int:
    """Writes the figure of each run directory anew and prints its table."""
    try:
        wrong = [argument for argument in arguments if argument.startswith("-")]
        if wrong or not arguments:
            raise UsageError(
                f"{wrong[0] if wrong else 'show'}: accepted are the folders of one or more runs, "
                "show RUN_DIR [RUN_DIR ...]"
            )
        for argument in arguments:
            _show(Path(argument))
    except UsageError as error:
        print("error:", " ".join(str(error).splitlines()), file=sys.stderr)
        return EXIT_USAGE
    return 0


def _show(directory: Path) -> None:
    console = page.Transcript()
    run = store.read_run(directory)
    summary = seeds.summarise(run) if run.seeds else report.summarise(run)
    if run.seeds:
        seeds.print_seeds(summary, console)
    else:
        report.print_run(summary, console)
    try:
        path = page.write(directory, summary, figures.draw_run(run, directory), console.told)
    except OSError as error:
        raise UsageError(f"{directory}: cannot be written ({error.strerror})") from None
    console.print("drawn: " + escape(str(path)), soft_wrap=True, highlight=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
