"""Writes the page on flags, ``experiments/docs/flags.md``, from their descriptions.

    python -m experiments.docs

Exit status: 0 done; 2 a mistake, such as a folder that cannot be written; 130 interrupted.
"""

import sys
from pathlib import Path

from experiments.cli import command_line, usage
from experiments.docs import described, flag_page
from experiments.process import interruption
from experiments.process.mistakes import EXIT_INTERRUPTED, EXIT_USAGE, UsageError

COMMAND = "python -m experiments.docs"
FLAGS = Path(__file__).with_name("flags.md")
PAGE = usage.Page(
    command=COMMAND,
    takes="",
    purpose="Writes the page on flags, experiments/docs/flags.md, from their descriptions.",
    examples=(usage.Example(COMMAND, "After a flag, its default or its meaning has changed."),),
    statuses={
        0: "done",
        EXIT_USAGE: "a mistake, such as a folder that cannot be written",
        EXIT_INTERRUPTED: "interrupted",
    },
)


def main(arguments: list[str]) -> int:
    """Writes the page where it lies, if it is not the same already."""
    if any(argument in usage.HELP for argument in arguments):
        usage.show(PAGE)
        return 0
    with interruption.handled():
        return interruption.exit_status(command_line.exit_status([], lambda: _main(arguments)))


def _main(arguments: list[str]) -> int:
    if arguments:
        raise UsageError(f"{arguments[0]}: accepted is nothing, {COMMAND}")
    told = "is as it should be" if write(FLAGS) else "was written"
    print(f"{FLAGS} {told}")
    return 0


def write(path: Path) -> bool:
    """Writes the page into a file, and tells whether it was there already.

    Raises:
      UsageError: if it cannot be written.
    """
    text = flag_page.text(described.experiments())
    try:
        if path.is_file() and path.read_text() == text:
            return True
        path.write_text(text)
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be written ({error.strerror}); run it in a clone of your own"
        ) from None
    return False


if __name__ == "__main__":
    sys.exit(interruption.leave(main(sys.argv[1:])))
