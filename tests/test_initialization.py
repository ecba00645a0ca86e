import jax
import numpy as np

import gf_jax


def test_xavier_bounds_and_spread():
    shapes = gf_jax.lenet5().shapes
    params = gf_jax.xavier_uniform(jax.random.key(0), shapes)
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
    shapes = gf_jax.fully_connected((5, 4, 3)).shapes
    one = gf_jax.xavier_uniform(jax.random.key(1), shapes)
    half = gf_jax.xavier_uniform(jax.random.key(1), shapes, scale=0.5)
    other = gf_jax.xavier_uniform(jax.random.key(2), shapes)
    for a, b, c in zip(*map(jax.tree.leaves, (one, half, other)), strict=True):
        np.testing.assert_array_equal(0.5 * a, b)
        assert np.abs(a - c).max() > 0
