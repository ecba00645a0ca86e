import os
from pathlib import Path

import jax
import numpy as np
import pytest

import gf_jax
from experiments import data


@pytest.fixture(scope="session")
def mnist_dir():
    folder = os.environ.get("GF_JAX_MNIST_DIR")
    if not folder:
        pytest.skip("set GF_JAX_MNIST_DIR to a folder with MNIST's four IDX files")
    return Path(folder)


@pytest.fixture(scope="session")
def digits():
    return data.load("digits", None, 200)


@pytest.fixture(scope="session")
def large_digits():
    return data.load("digits", None, 40, enlarge=True)


@pytest.fixture(scope="session")
def small_problem(digits):
    """A small network on real data: f and its starting point."""
    network = gf_jax.fully_connected((64, 12, 8, 10), "relu")
    f = gf_jax.classification(network, digits.images.reshape(-1, 64), digits.labels).loss
    return f, gf_jax.xavier_uniform(jax.random.key(3), network.shapes)


@pytest.fixture(scope="session")
def smooth_problem(digits):
    """The same without kinks: a linear network."""
    network = gf_jax.fully_connected((64, 12, 8, 10))
    f = gf_jax.classification(network, digits.images.reshape(-1, 64), digits.labels).loss
    return f, gf_jax.xavier_uniform(jax.random.key(3), network.shapes)


@pytest.fixture
def generator():
    return np.random.default_rng(7)
