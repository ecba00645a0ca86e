"""Command line of the benchmark: flags, settings, measurement.

Exit status: 0 done; 1 implementations disagree; 2 a mistake in flags or files, nothing was
run, or too little memory for some network; 130 interrupted. What is complete is written.
"""

from collections.abc import Sequence

import jax
from absl import flags

from experiments.benchmark import program
from experiments.benchmark.program import EXIT_DISAGREEMENT, Settings
from experiments.cli import command_line, options
from experiments.cli.usage import Example, Page
from experiments.process import interruption
from experiments.process.mistakes import EXIT_INTERRUPTED, EXIT_USAGE

COMMAND = "python -m experiments.benchmark"
# Times are of two CPU cores.
EXAMPLES = (
    Example(COMMAND, "All four networks, five rounds; ten minutes."),
    Example(
        f"{COMMAND} --networks=linear,relu --rounds=2 --dataset=digits",
        "The two fully connected ones, on data that need no network.",
    ),
)
STATUSES = {
    0: "done",
    EXIT_DISAGREEMENT: "implementations do not make the same runs; the results are written",
    EXIT_USAGE: "a mistake in flags or files, nothing was run; or too little memory for some "
    "network, what is complete is written",
    EXIT_INTERRUPTED: "interrupted; what is complete is written",
}


def page() -> Page:
    """What help tells of the benchmark."""
    return Page(
        command=COMMAND,
        takes="[--FLAG=VALUE ...]",
        purpose="Measures what one base iteration of all runs costs in this engine, and in the "
        "forms that others would write. Defaults are in brackets.",
        groups=options.groups({"benchmark": Settings}),
        defaults=options.defaults({"benchmark": Settings}),
        examples=EXAMPLES,
        statuses=STATUSES,
        more="--helpfull lists absl's own flags too.",
    )


def main(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> int:
    """Runs the benchmark that the flags describe."""

    def measure() -> int:
        return program.run(Settings.of(**command_line.given(page().groups, values)))

    with interruption.handled():
        return interruption.exit_status(command_line.exit_status(argv, measure))


if __name__ == "__main__":
    # What compiling takes is measured, so nothing compiled earlier may be used.
    jax.config.update("jax_enable_compilation_cache", False)
    command_line.start(page(), lambda argv: interruption.leave(main(argv)))
