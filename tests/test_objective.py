"""The row space of the inputs changes nothing but the cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gf_jax


@pytest.fixture(scope="module")
def inputs(digits):
    """Fifty images, which span fifty of the 64 dimensions."""
    return digits.images.reshape(-1, 64)[:50]


def test_an_orthonormal_basis_of_the_inputs(inputs):
    rows = gf_jax.problems.row_space(inputs)
    assert rows.basis.shape == (np.linalg.matrix_rank(inputs.astype(np.float64)), 64)
    np.testing.assert_allclose(rows.basis @ rows.basis.T, np.eye(len(rows.basis)), atol=1e-12)
    # Coordinates are rounded to float32.
    np.testing.assert_allclose(rows.inputs @ rows.basis, inputs, atol=1e-5)
    twice = gf_jax.problems.row_space(np.concatenate([inputs, 2 * inputs]))
    assert len(twice.basis) == len(rows.basis)


@pytest.mark.parametrize("activation", ["linear", "relu"])
def test_the_same_run_in_fewer_coordinates(activation, inputs, digits):
    """Losses, distances and iterates, in float64 to its rounding."""
    labels, rows = digits.labels[:50], gf_jax.problems.row_space(inputs)
    options = {"step_size": 0.05, "ratios": (2, 5), "iterations": 10, "arithmetic": "float64"}

    def run(inputs, start):
        network = gf_jax.problems.fully_connected((inputs.shape[1], 6, 5, 10), activation)
        with jax.enable_x64(True):
            f = gf_jax.problems.classification(network, inputs, labels).loss
            return gf_jax.gradient_descent(f, start, **options)

    shapes = gf_jax.problems.fully_connected((64, 6, 5, 10)).shapes
    with jax.enable_x64(True):
        start = jax.tree.map(
            lambda leaf: jnp.asarray(leaf, jnp.float64),
            gf_jax.problems.xavier_uniform(jax.random.key(0), shapes),
        )
        plain = run(inputs.astype(np.float64), start)
        exact = rows._replace(inputs=inputs.astype(np.float64) @ rows.basis.T)
        reduced = run(exact.inputs, rows.reduce(start))
    for name, values in vars(plain.metrics).items():
        other = getattr(reduced.metrics, name)
        np.testing.assert_allclose(other, values, rtol=1e-9, atol=1e-13, err_msg=name)
    restored = rows.restore(reduced.snapshots, start)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-13), restored, plain.snapshots
    )
    assert reduced.snapshots["dense_1"]["weight"].shape[-1] == len(rows.basis) < 64


def test_what_the_inputs_do_not_span_stays(inputs):
    rows = gf_jax.problems.row_space(inputs)
    start = gf_jax.problems.xavier_uniform(jax.random.key(0), {"dense_1": {"weight": (3, 64)}})
    restored = rows.restore(rows.reduce(start), start)
    np.testing.assert_allclose(restored["dense_1"]["weight"], start["dense_1"]["weight"], atol=1e-7)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_inputs_that_are_not_finite_are_refused(value):
    inputs = np.ones((3, 4), np.float32)
    inputs[1, 2] = value
    network = gf_jax.problems.fully_connected((4, 10))
    with pytest.raises(ValueError, match="inputs: have entries that are not finite"):
        gf_jax.problems.classification(network, inputs, np.zeros(3, int))
    with pytest.raises(ValueError, match="inputs: have entries that are not finite"):
        gf_jax.problems.row_space(inputs)
