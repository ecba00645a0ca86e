"""Command line of gf_jax: flags, one experiment and its options.

    python -m experiments.main --ratios=2,5,10,20

Exit status: 0 done; 2 a mistake in flags or files, or too little memory, nothing was run; 3 a run
diverged, results are written; 4 results could not be written; 5 another process of a run on
several hosts is lost; 130 interrupted, 143 terminated, 129 the terminal was closed, what was
computed is written.
"""

import importlib
from collections.abc import Sequence

from absl import flags

from experiments import studies
from experiments.cli import command_line
from experiments.cli.experiment import Experiment
from experiments.cli.options import Options
from experiments.cli.usage import Example, Page
from experiments.process import hosts, interruption, peers
from experiments.process.mistakes import EXIT_STATUSES

COMMAND = "python -m experiments.main"
# Times are of two CPU cores.
EXAMPLES = (
    Example(
        f"{COMMAND} --ratios=2,5,10,20",
        "The linear network on MNIST: runs with five step sizes, their flow and its predictions; "
        "three minutes.",
    ),
    Example(
        f"{COMMAND} --dataset=digits --iterations=1000 --activation=relu",
        "A small ReLU network, without any download; a minute.",
    ),
    Example(
        f"{COMMAND} --experiment=predict --step_sizes=0.01,0.003,0.001",
        "How far apart three step sizes end, without running them; ten seconds.",
    ),
    Example(
        f"{COMMAND} --experiment=large_steps",
        "From which step size on descent leaves its flow; two minutes.",
    ),
    Example(
        f"{COMMAND} --experiment=necessity",
        "A saddle where nothing but tiny steps will do, beside its closed form; five seconds.",
    ),
)


def page() -> Page:
    """What help tells of the main command line."""
    return Page(
        command=COMMAND,
        takes="[--FLAG=VALUE ...]",
        purpose="Measures how far gradient descent on a neural network stands from its gradient "
        "flow, and writes tables, arrays and figures into a folder. Defaults are in brackets.",
        groups=studies.flags(),
        defaults=studies.defaults(),
        examples=EXAMPLES,
        statuses=EXIT_STATUSES,
        more="experiments/GUIDE.md explains the figures. --helpfull lists absl's own flags too.",
    )


def main(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> int:
    """Runs the experiment that the flags describe."""

    def program() -> int:
        chosen = _chosen(values)
        if chosen is None:
            return 0
        experiment, options = chosen
        hosts.check(experiment.name, experiment.on_hosts)
        interruption.call(hosts.connect)
        interruption.check()
        return experiment.run(options)

    with interruption.handled():
        status = interruption.exit_status(command_line.exit_status(argv, program))
        peers.farewell(status)
        return status


def _chosen(values: flags.FlagValues) -> tuple[Experiment, Options] | None:
    """What the flags say, or the run to be resumed; None if that is complete."""
    given = command_line.given(studies.flags(), values)
    if "resume" not in given:
        return studies.chosen(given)
    interruption.call(hosts.connect)
    resumption = importlib.import_module("experiments.runs.resumption")  # slow to load
    return peers.agreed(lambda: resumption.chosen(given, studies.load))


if __name__ == "__main__":
    # JAX's own farewell waits for processes that are gone, and their threads fall with Python.
    command_line.start(page(), lambda argv: interruption.leave(main(argv), at_once=peers.several()))
