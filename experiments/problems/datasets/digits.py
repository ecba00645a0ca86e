"""scikit-learn's digits: 1,797 images of 8x8 pixels, which need no network.

Pixels are standardised by mean and standard deviation of all of them, in the form that is given
to the network.
"""

import jax
import numpy as np
from jaxtyping import Float

from experiments.problems.datasets.dataset import Dataset, DatasetKind, check_examples, select


def load(data_dir: str | None, examples: int, enlarge: bool) -> Dataset:
    """So many of the images; enlarged, they have MNIST's format: 20x20 pixels centred on 28x28."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = digits.images / 16.0
    check_examples(examples, len(pixels), "scikit-learn's digits data set")
    if enlarge:
        pixels = enlarged(pixels)
    mean, std = float(pixels.mean()), float(pixels.std())
    chosen = select(len(pixels), examples)
    form = " enlarged to 28x28" if enlarge else ""
    return Dataset(
        images=((pixels[chosen] - mean) / std).astype(np.float32),
        labels=digits.target[chosen].astype(np.int32),
        label=f"scikit-learn digits{form}, {examples:,} images",
        source="scikit-learn, sklearn.datasets.load_digits",
        mean=mean,
        std=std,
    )


def enlarged(images: Float[np.ndarray, "n 8 8"]) -> Float[np.ndarray, "n 28 28"]:
    """Bilinear interpolation from 8x8 pixels to 20x20, centred on 28x28 background."""
    wide = jax.image.resize(images, (len(images), 20, 20), "linear")
    return np.pad(np.asarray(wide, float), ((0, 0), (4, 4), (4, 4)))


KIND = DatasetKind("scikit-learn's 8x8 images, which need no network", load, files=False)
