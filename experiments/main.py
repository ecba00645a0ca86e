"""Command line of gf_jax: flags, one configuration, one experiment.

    python -m experiments.main --ratios=2,5,10,20

Exit status: 0 done; 2 a mistake in flags or files, or too little memory, nothing was run; 3 a run
diverged, results are written; 4 results could not be written; 130 interrupted, 143 terminated,
129 the terminal was closed, what was computed is written.
"""

import importlib
from collections.abc import Sequence

from experiments.cli import command_line, flags
from experiments.cli.configuration import Configuration
from experiments.runs import interruption


def main(argv: Sequence[str]) -> int:
    """Runs the experiment that the flags describe."""

    def program() -> int:
        config = _configuration()
        if config is None:
            return 0
        # Slow to load, so after the flags are known to be right.
        devices = importlib.import_module("experiments.runs.devices")
        interruption.call(lambda: devices.start_processes(config))
        experiment = importlib.import_module(f"experiments.studies.{config.experiment}")
        interruption.check()
        return experiment.run(config)

    with interruption.handled():
        return interruption.exit_status(command_line.exit_status(argv, program))


def _configuration() -> Configuration | None:
    """That of the flags, or of the run to be resumed; None if that is complete."""
    values = command_line.values_of(Configuration)
    if values["resume"] is None:
        return Configuration(**values)
    given = command_line.given(Configuration)
    return importlib.import_module("experiments.runs.resumption").configuration(given)


if __name__ == "__main__":
    command_line.start(flags.page(), Configuration, lambda argv: interruption.leave(main(argv)))
