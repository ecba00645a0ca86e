"""Scalar regression on whitened inputs, of a data set or synthetic.

Inputs are centred, projected on their leading principal directions and scaled to unit
variance along each, in float64; so X Xᵀ / N is the identity. The target of a data set is the
parity of its classes, +1 for even and −1 for odd, which divides them in halves: of digits
their own parity, else that of the numbers that the classes happen to have. The target of
synthetic data is a random linear function of the inputs with noise. Targets are centred and
scaled to unit variance. Then the squared loss of a linear map w is

    1/(2N) Σ (w x_i − y_i)² = ½ ‖w − Λ‖² + ½ (1 − ‖Λ‖²),   Λ = 1/N Σ y_i x_iᵀ,

and ‖Λ‖ is the multiple correlation of target and inputs.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from experiments.problems.data import Dataset
from experiments.process.mistakes import UsageError

DIRECTIONS = 50
SYNTHETIC_CORRELATION = 0.8
NEGLIGIBLE = 1e-6  # variance relative to the largest, below which a direction is rounding


class Regression(NamedTuple):
    """Whitened inputs and a standardised scalar target.

    Attributes:
      inputs: shape (examples, directions), of mean 0 and covariance 1.
      target: shape (examples,), of mean 0 and variance 1.
      label: what every output calls the data.
    """

    inputs: Float[np.ndarray, "examples directions"]
    target: Float[np.ndarray, " examples"]
    label: str

    @property
    def cross_covariance(self) -> Float[np.ndarray, " directions"]:
        """Λ, of target and inputs."""
        return self.target @ self.inputs / len(self.target)

    @property
    def correlation(self) -> float:
        """Norm of the cross-covariance."""
        return float(np.linalg.norm(self.cross_covariance))


def parity(dataset: Dataset) -> Regression:
    """Whether the classes of a data set are even, from the images' leading directions.

    Raises:
      UsageError: if the examples are all even, all odd, or all the same image.
    """
    even = np.where(dataset.labels % 2 == 0, 1.0, -1.0)
    images = dataset.images.reshape(len(even), -1)
    if np.ptp(even) == 0 or not np.ptp(images, axis=0).any():
        raise UsageError(
            f"--examples={len(even)}: all are even, all odd or all the same image, so that there "
            "is nothing to tell apart; give more examples"
        )
    inputs = whiten(images, DIRECTIONS)
    what = "parity" if dataset.digits else "parity of class numbers"
    return Regression(inputs, _standardise(even), f"{what} of {dataset.label}")


def synthetic(seed: int, examples: int, directions: int) -> Regression:
    """Gaussian inputs, whitened, and a random linear function of them with Gaussian noise.

    The correlation of target and inputs is about 0.8, and more with few examples.
    """
    generator = np.random.default_rng(seed)
    inputs = whiten(generator.normal(size=(examples, directions)), directions)
    teacher = generator.normal(size=inputs.shape[1:])
    teacher *= SYNTHETIC_CORRELATION / np.linalg.norm(teacher)
    noise = np.sqrt(1 - SYNTHETIC_CORRELATION**2) * generator.normal(size=examples)
    label = f"synthetic data, {examples:,} examples"
    return Regression(inputs, _standardise(inputs @ teacher + noise), label)


def whiten(
    inputs: Float[np.ndarray, "examples features"], directions: int
) -> Float[np.ndarray, "examples directions"]:
    """The leading principal components, as many as there are, scaled to unit variance.

    The largest entry of every direction is positive by scikit-learn's rule: the sign of a
    decomposition changes with the number of threads. Two examples are the least.
    """
    from sklearn.decomposition import PCA

    exact, examples = inputs.astype(np.float64), len(inputs)
    found = PCA(min(directions, *inputs.shape), whiten=True, svd_solver="full").fit(exact)
    kept = found.explained_variance_ > NEGLIGIBLE * found.explained_variance_[0]
    # scikit-learn divides by one less than the number of examples.
    return found.transform(exact)[:, kept] * np.sqrt(examples / (examples - 1))


def _standardise(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / values.std()
