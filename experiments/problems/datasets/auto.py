"""MNIST where it can be had, else digits, which need no network."""

from experiments.problems.datasets import digits, mnist
from experiments.problems.datasets.dataset import Dataset, DatasetKind, UnreachableError


def load(data_dir: str | None, examples: int, enlarge: bool) -> Dataset:
    """MNIST if it is given, cached or reachable, else digits with a warning."""
    try:
        return mnist.MNIST.load(data_dir, examples)
    except UnreachableError as error:
        return digits.load(None, examples, enlarge)._replace(
            warning=f"{error}."
            " This run uses scikit-learn's handwritten digits instead, so its numbers are NOT "
            "those of MNIST or of the paper. For MNIST, give a folder with the four IDX files "
            "by --data_dir, or run where the network is reachable."
        )


KIND = DatasetKind("MNIST if given, cached or reachable within five seconds, else digits", load)
