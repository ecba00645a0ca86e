"""Command line of the check of a device: flags, settings, rows.

Exit status: 0 every item has given its rows, whatever they say; 2 a mistake in flags or files,
nothing was run; 130 interrupted, what is known is written.
"""

import os
from collections.abc import Sequence

import jax
from absl import flags

from experiments.accelerator import program
from experiments.accelerator.program import Settings
from experiments.cli import command_line, options
from experiments.cli.usage import Example, Page
from experiments.process import interruption
from experiments.process.mistakes import EXIT_INTERRUPTED, EXIT_USAGE

COMMAND = "python -m experiments.accelerator"
EXAMPLES = (
    Example(COMMAND, "All that is checked and measured, within eight minutes."),
    Example(
        f"{COMMAND} --quick --networks=linear --ratios=2 --dataset=digits",
        "Whether it works here; less than a minute on two CPU cores.",
    ),
    Example(
        f"{COMMAND} --items=times,convolutions,share --minutes=3",
        "How fast the four networks are, and nothing else.",
    ),
)
STATUSES = {
    0: "every item has given its rows; whether they are fine, the table says",
    EXIT_USAGE: "a mistake in flags or files, nothing was run",
    EXIT_INTERRUPTED: "interrupted; what is known is written",
}


def page() -> Page:
    """What help tells of the check."""
    return Page(
        command=COMMAND,
        takes="[--FLAG=VALUE ...]",
        purpose="Checks numbers of the device against a CPU's, and measures how fast descent runs "
        "on it. Defaults are in brackets.",
        groups=options.groups({"accelerator": Settings}),
        defaults=options.defaults({"accelerator": Settings}),
        examples=EXAMPLES,
        statuses=STATUSES,
        more="--helpfull lists absl's own flags too.",
    )


def main(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> int:
    """Runs the check that the flags describe."""

    def check() -> int:
        return program.run(Settings.of(**command_line.given(page().groups, values)))

    with interruption.handled():
        return interruption.exit_status(command_line.exit_status(argv, check))


if __name__ == "__main__":
    # Processes with other settings of the compiler need room on the same device.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    # What compiling takes is told, so nothing compiled earlier may be used.
    jax.config.update("jax_enable_compilation_cache", False)
    command_line.start(page(), lambda argv: interruption.leave(main(argv)))
