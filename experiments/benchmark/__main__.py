"""Command line of the benchmark: flags, settings, measurement.

Exit status: 0 done; 1 implementations disagree; 2 a mistake in flags or files, nothing was
run, or too little memory for some network; 130 interrupted. What is complete is written.
"""

from collections.abc import Sequence

import jax
from absl import app, flags

from experiments import main as command_line
from experiments.benchmark import program
from experiments.benchmark.program import Settings
from experiments.configuration import DATASETS


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines one flag per field of Settings."""
    flags.DEFINE_list(
        "networks",
        list(Settings.networks),
        f"Networks to measure on, some of {', '.join(Settings.networks)}.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "rounds", Settings.rounds, "How often everything is measured.", flag_values=values
    )
    flags.DEFINE_integer(
        "examples", Settings.examples, "Number of training images.", flag_values=values
    )
    flags.DEFINE(
        command_line.Numbers(int, "integers", "2,5,10"),
        "ratios",
        Settings.ratios,
        "Step size of the base run divided by those of the other runs: positive integers.",
        flag_values=values,
        serializer=flags.CsvListSerializer(","),
    )
    flags.DEFINE_enum(
        "dataset",
        Settings.dataset,
        DATASETS,
        "Training data; auto is MNIST if it can be had, else scikit-learn's digits.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "data_dir",
        None,
        "Folder with MNIST's four IDX files, gzipped or not; nothing is downloaded.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "output_dir",
        None,
        "New or empty folder for the results; runs/benchmark-<time> if not given.",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "torch",
        None,
        "Whether PyTorch takes part; if not given, where it is installed.",
        flag_values=values,
    )


def main(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> int:
    """Runs the benchmark that the flags describe."""

    def benchmark() -> int:
        fields = command_line.values_of(Settings, values)
        return program.run(Settings(**fields | {"networks": tuple(fields["networks"])}))

    return command_line.exit_status(argv, benchmark)


if __name__ == "__main__":
    # What compiling takes is measured, so nothing compiled earlier may be used.
    jax.config.update("jax_enable_compilation_cache", False)
    define_flags()
    app.run(main, flags_parser=command_line.parse_flags)
