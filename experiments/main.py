"""Command line of gf_jax: flags, one configuration, one experiment.

    python -m experiments.main --ratios=2,5,10,20

Exit status: 0 done; 2 a mistake in flags or files, or too little memory, nothing was run; 3 a run
diverged, results are written; 130 interrupted, what was computed is written.
"""

import importlib
from collections.abc import Sequence

from experiments import command_line, flags
from experiments.configuration import Configuration


def main(argv: Sequence[str]) -> int:
    """Runs the experiment that the flags describe."""

    def experiment() -> int:
        config = Configuration(**command_line.values_of(Configuration))
        # Slow to load, so after the flags are known to be right.
        importlib.import_module("experiments.devices").start_processes(config)
        return importlib.import_module(f"experiments.{config.experiment}").run(config)

    return command_line.exit_status(argv, experiment)


if __name__ == "__main__":
    command_line.start(flags.page(), Configuration, main)
