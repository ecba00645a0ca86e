import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import gf_jax


def dense_eigenvalues(f, point):
    """All eigenvalues of the Hessian at a point, in float64."""
    with jax.enable_x64(True):
        point = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), point)
        flat, unravel = ravel_pytree(point)
        return np.linalg.eigvalsh(np.asarray(jax.jit(jax.hessian(lambda x: f(unravel(x))))(flat)))


def stacked(points):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *points)


@pytest.mark.parametrize("activation", ["linear", "relu"])
def test_both_ends_against_the_dense_hessian(activation, digits):
    """To six digits, at points that have nothing to do with each other."""
    network = gf_jax.problems.fully_connected((64, 4, 10), activation)
    f = gf_jax.problems.classification(network, digits.images.reshape(-1, 64), digits.labels).loss
    points = [
        gf_jax.problems.xavier_uniform(jax.random.key(k), network.shapes, scale=s)
        for k, s in ((0, 1.0), (1, 1.0), (2, 0.01))
    ]
    found = gf_jax.curvature(f, stacked(points), tolerance=1e-6)
    for number, point in enumerate(points):
        eigenvalues = dense_eigenvalues(f, point)
        for end, exact in ((found.lambda_min, eigenvalues[0]), (found.lambda_max, eigenvalues[-1])):
            np.testing.assert_allclose(end.value[number], exact, rtol=1e-6)
            nearest = np.abs(eigenvalues - end.value[number]).min()
            assert nearest <= end.residual[number] + 1e-12
    largest = np.abs([found.lambda_min.value, found.lambda_max.value]).max(axis=0)
    assert (found.lambda_min.residual <= 1e-6 * largest).all()


def test_restarts_and_warm_starts_save_products(smooth_problem):
    """A point next to one that is known takes fewer products than a first one."""
    f, start = smooth_problem
    options = {"products": 12, "restarts": 100, "tolerance": 1e-4}
    once = gf_jax.curvature(f, stacked([start]), **options)
    twice = gf_jax.curvature(f, stacked([start, start]), **options)
    assert once.products > 12
    assert twice.products == once.products + 12
    assert twice.lambda_min.value[1] <= twice.lambda_min.value[0] + 1e-9


@pytest.mark.parametrize("curvatures", [(-2.0, 5.0), (3.0,) * 6, (0.0,) * 3, (-1.0,) * 5 + (4.0,)])
def test_spectra_that_end_the_iteration_early(curvatures):
    """Few different eigenvalues: a Krylov space smaller than the depth."""
    curvatures = jnp.array(curvatures)
    points = jnp.stack([jnp.ones(len(curvatures)), jnp.arange(len(curvatures)) - 1.0])
    found = gf_jax.curvature(lambda x: 0.5 * jnp.sum(curvatures * x**2), points)
    np.testing.assert_allclose(found.lambda_min.value, curvatures.min(), atol=1e-6)
    np.testing.assert_allclose(found.lambda_max.value, curvatures.max(), atol=1e-6)


def test_a_point_that_diverged_is_no_number():
    found = gf_jax.curvature(lambda x: jnp.sum(x**4), jnp.array([[1.0, 2], [jnp.nan, 1]]))
    assert np.isfinite(found.lambda_max.value[0])
    assert np.isnan(found.lambda_max.value[1])


@pytest.mark.parametrize("name", ["products", "restarts"])
def test_numbers_that_are_not_accepted(name):
    with pytest.raises(ValueError, match=f"{name}: got 0"):
        gf_jax.curvature(jnp.sum, jnp.ones((1, 2)), **{name: 0})
