"""Data sets by name: a new one is a file here, and a line in ``DATASETS``."""

from collections.abc import Mapping

from experiments.problems.datasets import auto, digits, fashion_mnist, mnist
from experiments.problems.datasets.dataset import Dataset as Dataset
from experiments.problems.datasets.dataset import DatasetKind as DatasetKind

DATASETS: Mapping[str, DatasetKind] = {
    "auto": auto.KIND,
    "mnist": mnist.KIND,
    "fashion_mnist": fashion_mnist.KIND,
    "digits": digits.KIND,
}
