import functools
import itertools

import jax
import numpy as np
import pytest

import gf_jax


def test_xavier_bounds_and_spread():
    shapes = gf_jax.problems.lenet5().shapes
    params = gf_jax.problems.xavier_uniform(jax.random.key(0), shapes)
    for layer, kinds in shapes.items():
        outputs, inputs, *taps = kinds["weight"]
        bound = np.sqrt(6 / ((outputs + inputs) * np.prod(taps, initial=1)))
        weight = np.asarray(params[layer]["weight"])
        assert np.abs(weight).max() <= bound * (1 + 1e-6)  # the bound itself is rounded
        # Standard error of the spread of n uniform draws is about 0.45 / sqrt(n); six of them.
        spread = weight.std() / (bound / np.sqrt(3))
        assert abs(spread - 1) < 6 * 0.45 / np.sqrt(weight.size)
        assert not np.asarray(params[layer]["bias"]).any()


def test_scale_multiplies_and_keys_differ():
    shapes = gf_jax.problems.fully_connected((5, 4, 3)).shapes
    one = gf_jax.problems.xavier_uniform(jax.random.key(1), shapes)
    half = gf_jax.problems.xavier_uniform(jax.random.key(1), shapes, scale=0.5)
    other = gf_jax.problems.xavier_uniform(jax.random.key(2), shapes)
    for a, b, c in zip(*map(jax.tree.leaves, (one, half, other)), strict=True):
        np.testing.assert_array_equal(0.5 * a, b)
        assert np.abs(a - c).max() > 0


SIZES = [(5, 3), (5, 4, 1), (3, 7, 7, 2), (6, 2, 5, 4), (4, 4, 4, 4, 4), (1, 3, 5)]


def low_rank(generator, sizes):
    outputs, inputs, rank = sizes[-1], sizes[0], min(sizes)
    return generator.normal(size=(outputs, rank)) @ generator.normal(size=(rank, inputs))


def assert_balanced(weights, atol):
    for lower, upper in itertools.pairwise(weights):
        np.testing.assert_allclose(upper.T @ upper, lower @ lower.T, atol=atol)


def in_order(params):
    return [np.asarray(params[f"dense_{j + 1}"]["weight"]) for j in range(len(params))]


@pytest.mark.parametrize("sizes", SIZES)
def test_balanced_weights_of_a_matrix(sizes, generator):
    """Product, balance, shapes and zero padding, in float64."""
    matrix = low_rank(generator, sizes)
    with jax.enable_x64(True):
        weights = in_order(gf_jax.problems.balanced(matrix, sizes))
    assert [weight.shape for weight in weights] == list(zip(sizes[1:], sizes, strict=False))
    assert weights[0].dtype == np.float64
    # Products of a few matrices with entries of size one: tens of ulps.
    np.testing.assert_allclose(functools.reduce(lambda a, b: b @ a, weights), matrix, atol=1e-13)
    assert_balanced(weights, 1e-13)
    rank = min(sizes)
    for weight in weights[:-1]:
        assert not weight[rank:].any()
    for weight in weights[1:]:
        assert not weight[:, rank:].any()
    for weight in weights:
        assert np.linalg.matrix_rank(weight) == rank


def test_what_is_not_accepted(generator):
    with pytest.raises(ValueError, match=r"matrix: is of rank 3; layer sizes \(4, 2, 3\) take up"):
        gf_jax.problems.balanced(generator.normal(size=(3, 4)), (4, 2, 3))
    with pytest.raises(ValueError, match="matrix: shape"):
        gf_jax.problems.balanced(np.ones((4, 3)), (4, 3))
    with pytest.raises(ValueError, match="not finite"):
        gf_jax.problems.balanced(np.full((3, 4), np.nan), (4, 3))
    for sizes in ((4,), (4, 0, 3)):
        with pytest.raises(ValueError, match="sizes: got"):
            gf_jax.problems.random_balanced(jax.random.key(0), sizes)


@pytest.mark.parametrize("sizes", SIZES)
def test_random_balanced_starts(sizes):
    """Mapped over keys: each is balanced, and the norm of the product is the scale."""
    scale, keys = 0.01, jax.random.split(jax.random.key(4), 200)
    with jax.enable_x64(True):
        starts = jax.vmap(lambda key: gf_jax.problems.random_balanced(key, sizes, scale=scale))(
            keys
        )
        first = gf_jax.problems.random_balanced(keys[0], sizes, scale=scale)
    products = functools.reduce(lambda a, b: b @ a, in_order(starts))
    assert products.dtype == np.float64
    np.testing.assert_allclose(in_order(first)[0], in_order(starts)[0][0], atol=1e-13)
    assert_balanced(in_order(first), 1e-13)
    singular = np.linalg.svd(products, compute_uv=False)
    assert singular[:, min(sizes) :].max(initial=0) < 1e-12 * scale
    if min(sizes) == min(sizes[0], sizes[-1]):  # nothing of the Gaussian matrix is dropped
        # Of k squared Gaussian entries the mean over 200 draws has error sqrt(2/(200 k)); five.
        entries = sizes[0] * sizes[-1]
        mean_square = np.square(products).sum(axis=(1, 2)).mean()
        assert abs(mean_square / scale**2 - 1) < 5 * np.sqrt(2 / (200 * entries))


def test_a_distribution_of_ones_own():
    def ones(key, shape):
        return np.ones(shape)

    start = gf_jax.problems.random_balanced(
        jax.random.key(0), (4, 2, 3), scale=0.5, distribution=ones
    )
    np.testing.assert_allclose(gf_jax.theory.end_to_end(start), np.full((3, 4), 0.5), atol=1e-6)
