"""What a data set is: images and classes, and how the command line offers them."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from experiments.process.mistakes import UsageError


class Dataset(NamedTuple):
    """A training set.

    Attributes:
      images: standardised float32 images, shape (examples, height, width) or (examples,
        height, width, channels).
      labels: classes from 0 as int32.
      label: what every output calls the data, for example "MNIST, 1,000 images".
      source: where the data came from.
      mean: subtracted from pixels in [0, 1].
      std: then divided by.
      classes: number of classes.
      digits: whether the classes are digits, and an image shows its class.
      warning: what the user must be told about the choice of data, or "".
    """

    images: Float[np.ndarray, "examples height width ..."]
    labels: Int[np.ndarray, " examples"]
    label: str
    source: str
    mean: float
    std: float
    classes: int = 10
    digits: bool = True
    warning: str = ""


class DatasetKind(NamedTuple):
    """A data set that can be asked for by name.

    Attributes:
      meaning: what help tells of it.
      load: maps the folder of ``--data_dir`` (None if it is not given), the number of
        examples, and whether small images are to be enlarged to 28x28, to the training set.
        Raises UsageError if it cannot be had.
      files: whether it comes in files that a folder may hold.
    """

    meaning: str
    load: Callable[[str | None, int, bool], Dataset]
    files: bool = True


class UnreachableError(Exception):
    """A data set cannot be had from the network now."""


def select(pool: int, examples: int) -> Int[np.ndarray, " examples"]:
    """Numbers of so many examples of a pool, evenly spaced."""
    return np.arange(examples) * pool // examples


def check_examples(examples: int, available: int, name: str) -> None:
    """Raises UsageError if a data set holds less."""
    if examples > available:
        raise UsageError(f"--examples={examples}: {name} holds {available}; accepted is up to that")
