"""Training sets by name, see ``datasets`` for what there is."""

from experiments.problems.datasets import DATASETS
from experiments.problems.datasets import Dataset as Dataset


def load(dataset: str, data_dir: str | None, examples: int, *, enlarge: bool = False) -> Dataset:
    """Loads a training set.

    Args:
      dataset: a name in ``datasets.DATASETS``.
      data_dir: folder that holds its files, if it comes in files; None takes those of the
        cache, or downloads them.
      examples: number of training examples.
      enlarge: give images that are smaller than MNIST's as 28x28 ones, as the convolutional
        networks need.

    Raises:
      UsageError: if the data asked for cannot be had, or a file is damaged.
    """
    return DATASETS[dataset].load(data_dir, examples, enlarge)
