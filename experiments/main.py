"""Command line of gf_jax: flags, one configuration, one experiment.

    python -m experiments.main --ratios=2,5,10,20

Exit status: 0 done; 2 a mistake in flags or files, or too little memory, nothing was run; 3 a run
diverged, results are written; 130 interrupted, what was computed is written.
"""

import dataclasses
import importlib
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging

from experiments.configuration import (
    ALONG,
    COORDINATES,
    DATASETS,
    EXIT_INTERRUPTED,
    EXIT_USAGE,
    EXPERIMENTS,
    NETWORKS,
    Configuration,
    UsageError,
)
from gf_jax.arithmetic import ARITHMETICS
from gf_jax.networks import ACTIVATIONS

# What is accepted of the kinds of flags of which absl does not say it.
KINDS = {
    "int": "accepted is an integer",
    "float": "accepted is a number",
    "bool": "accepted are true and false",
}


class Numbers(flags.ArgumentParser):
    """Comma-separated numbers of one kind."""

    def __init__(self, kind: type, name: str, example: str) -> None:
        self._kind, self._name, self._example = kind, name, example

    def parse(self, argument: object) -> tuple[Any, ...]:
        """The numbers in a text; a default, which is a tuple, as it is."""
        if not isinstance(argument, str):
            return tuple(argument)  # type: ignore[arg-type]
        parts = argument.split(",") if argument.strip() else []
        try:
            return tuple(self._kind(part) for part in parts)
        except ValueError:
            raise ValueError(f"accepted are {self.flag_type()}, such as {self._example}") from None

    def flag_type(self) -> str:
        """What is accepted, in words."""
        return f"{self._name} separated by commas"


def define_flags() -> None:
    """Defines one flag per field of Configuration."""
    integers = Numbers(int, "integers", "2,5,10")
    numbers = Numbers(float, "numbers", "0.1,0.05,0.01")
    serializer = flags.CsvListSerializer(",")
    flags.DEFINE_enum(
        "experiment",
        Configuration.experiment,
        EXPERIMENTS,
        "paper: descent against smaller steps and against gradient flow. rounding: the same run "
        "in every arithmetic. predict: the gaps predicted, without running descent. large_steps: "
        "step sizes up to the edge of stability. curvature: extremal eigenvalues of the Hessian "
        "along the flow. bounds: what the theorems allow and what is measured. near_zero: the "
        "smallest eigenvalue against scale and depth. deep_linear: deep linear networks from "
        "random balanced starts. necessity: a saddle that needs exponentially small steps.",
    )
    flags.DEFINE(
        integers,
        "ratios",
        None,
        "Step size of the base run divided by those of the other runs: positive integers; "
        "2,5,10,20 if not given.",
        serializer=serializer,
    )
    flags.DEFINE_float(
        "step_size",
        None,
        "Step size of the base run, in time per iteration; 0.001 if not given. In large_steps, "
        "the smallest.",
    )
    flags.DEFINE(
        numbers,
        "step_sizes",
        None,
        "Step sizes of all runs, instead of step_size and ratios; the largest is that of the base "
        "run and a whole multiple of every other.",
        serializer=serializer,
    )
    flags.DEFINE_enum(
        "arithmetic",
        None,
        list(ARITHMETICS),
        "Of the weights: compensated (float32 free of the rounding of updates), the default; "
        "float32, as the paper; float64; tf32 (float32 with a GPU's default products).",
    )
    flags.DEFINE_float(
        "momentum",
        None,
        "Decay of past gradients, beta, from 0 to below 1: heavy ball, whose time per iteration is "
        "step_size / (1 - beta); plain descent if not given.",
    )
    flags.DEFINE_boolean("nesterov", None, "Whether momentum is Nesterov's instead of heavy ball.")
    flags.DEFINE_integer(
        "batch_size",
        None,
        "Number of examples whose gradient a step follows, a divisor of examples; all of them if "
        "not given. Batches follow each other in one order, the same for all runs.",
    )
    flags.DEFINE_integer(
        "batch_seed", None, "Seed of the order of the examples in batches, 0 if not given."
    )
    flags.DEFINE_boolean(
        "flow",
        None,
        "Compare with gradient flow and with the gaps that it predicts; true if not given.",
    )
    flags.DEFINE_enum(
        "along",
        None,
        ALONG,
        "Whose curvature is told: that of gradient flow, the default, or of descent with "
        "step_size.",
    )
    flags.DEFINE_float(
        "epsilon",
        None,
        "Accuracy: of bounds and necessity the distance between descent and flow, 0.001 and 0.01 "
        "if not given; of deep_linear the loss above its minimum, 0.001 if not given.",
    )
    flags.DEFINE(
        integers,
        "depths",
        None,
        "Numbers of layers in near_zero and deep_linear, 2,3,4,5 and 2,3,4 if not given.",
        serializer=serializer,
    )
    flags.DEFINE_integer(
        "seeds",
        None,
        "Number of starting points, with seeds from seed on; 1 if not given. In deep_linear the "
        "number of starts, 1,000 if not given.",
    )
    flags.DEFINE_integer(
        "iterations",
        None,
        "Iterations of the base run, 10,000 if not given (deep_linear: 400); time is this times "
        "step_size, over 1 - beta with momentum.",
    )
    flags.DEFINE_enum("network", None, NETWORKS, "Architecture, fully_connected if not given.")
    flags.DEFINE_enum(
        "coordinates",
        None,
        COORDINATES,
        "Of the fully connected network's inputs and first layer while it is computed: row_space, "
        "the default, the space that the images span, which is exact and cheaper; pixels.",
    )
    flags.DEFINE(
        integers,
        "widths",
        None,
        "Hidden widths, in units per layer, of the fully connected network, 50,50 if not given; "
        "near_zero and deep_linear take one, that of every hidden layer, 50 and 2 if not given.",
        serializer=serializer,
    )
    flags.DEFINE_enum(
        "activation",
        None,
        list(ACTIVATIONS),
        "Activation of the fully connected network, linear if not given.",
    )
    flags.DEFINE_float(
        "init_scale",
        None,
        "Factor on the Xavier uniform start, 1 if not given; nearer zero below. In deep_linear, "
        "the norm of the initial end-to-end matrix, 0.01 if not given.",
    )
    flags.DEFINE_integer("seed", None, "Seed of the starting point, 0 if not given.")
    flags.DEFINE_enum(
        "dataset",
        None,
        DATASETS,
        "Training data; auto, the default, is MNIST if given, cached or reachable within five "
        "seconds, else scikit-learn's digits with a warning.",
    )
    flags.DEFINE_string(
        "data_dir",
        None,
        "Folder with MNIST's four IDX files, gzipped or not; nothing is downloaded.",
    )
    flags.DEFINE_integer(
        "examples",
        None,
        "Number of training images, 1,000 if not given: evenly spaced in file order among the "
        "first 50,000 of MNIST (above that, among all 60,000), or among the 1,797 digits.",
    )
    flags.DEFINE_integer(
        "snapshots",
        None,
        "Number of evenly spaced base iterations at which parameters and accuracy are kept; "
        "100 if not given, or all if there are fewer.",
    )
    flags.DEFINE_integer(
        "segments",
        None,
        "Number of equal compiled calls, between which progress is shown; a divisor of iterations, "
        "the largest up to 100 if not given. 1 is a single call.",
    )
    flags.DEFINE_string(
        "mesh",
        None,
        "Devices that a run is spread over: auto, the default, takes all there are; a number; none "
        "is a single one. Starting points are divided among them if they divide evenly, else "
        "examples.",
    )
    flags.DEFINE_string(
        "initial_params", None, "Start from the weights in this npz file instead of a random start."
    )
    flags.DEFINE_string(
        "output_dir",
        None,
        "New or empty folder for the results; runs/<network>-<time> if not given.",
    )


def main(argv: Sequence[str]) -> int:
    """Runs the experiment that the flags describe."""

    def experiment() -> int:
        config = Configuration(**values_of(Configuration))
        # Slow to load, so after the flags are known to be right.
        importlib.import_module("experiments.devices").start_processes(config)
        return importlib.import_module(f"experiments.{config.experiment}").run(config)

    return exit_status(argv, experiment)


def values_of(configuration: type, values: flags.FlagValues = flags.FLAGS) -> dict[str, Any]:
    """The values of the flags that are fields of a configuration."""
    return {field.name: values[field.name].value for field in dataclasses.fields(configuration)}


def exit_status(argv: Sequence[str], program: Callable[[], int]) -> int:
    """Runs a program; a mistake of the user's, or an interrupt, is one line and a status."""
    try:
        if len(argv) > 1:
            raise UsageError(f"{argv[1]}: not a flag; accepted are flags such as --ratios=2,5,10")
        return program()
    except UsageError as error:
        return fail(str(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def fail(message: str) -> int:
    """Shows a mistake of the user's in one line."""
    print("error:", " ".join(message.splitlines()), file=sys.stderr)
    return EXIT_USAGE


def _in_words(error: Exception, values: flags.FlagValues) -> str:
    """What is wrong with a flag, in one line that names it and says what is accepted."""
    line = " ".join(str(error).split()).removeprefix("ERROR:: ")
    refused = re.match(r"flag (--(\w+)=[^:]*)", line)
    if refused is None:
        return f"{line}; --help lists what is accepted"
    flag, name = refused.groups()
    accepted = KINDS.get(values[name].flag_type()) if name in values else None
    return f"{flag}: {accepted}" if accepted else line.removeprefix("flag ")


def parse_flags(argv: list[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Parses flags; a mistake ends the program with one line."""
    try:
        arguments = values(argv)
    except (flags.Error, ValueError) as error:  # absl's own flags raise the latter
        sys.exit(fail(_in_words(error, values)))
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # which backends JAX looked for is no news
    return arguments


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=parse_flags)
