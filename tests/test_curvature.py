import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import gf_jax


def test_largest_eigenvalue_against_the_dense_hessian(digits):
    network = gf_jax.fully_connected((64, 4, 10))
    inputs = digits.images.reshape(-1, 64)
    f = gf_jax.classification(network, inputs, digits.labels).loss
    points = [gf_jax.xavier_uniform(jax.random.key(k), network.shapes) for k in (0, 1)]
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *points)
    found = gf_jax.lambda_max(f, stack)
    for number, point in enumerate(points):
        with jax.enable_x64(True):
            point = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), point)
            flat, unravel = ravel_pytree(point)
            dense = jax.hessian(lambda x, u=unravel: f(u(x)))(flat)
        eigenvalues = np.linalg.eigvalsh(np.asarray(dense))
        np.testing.assert_allclose(found.value[number], eigenvalues[-1], rtol=1e-6)
        assert np.abs(eigenvalues - found.value[number]).min() <= found.residual[number] + 1e-12
    assert (found.residual < 1e-3 * found.value).all()


def test_a_space_smaller_than_the_depth():
    curvatures = jnp.array([1.0, 5.0])
    found = gf_jax.lambda_max(
        lambda x: 0.5 * jnp.sum(curvatures * x**2), jnp.array([[1.0, 1.0], [2.0, -1.0]])
    )
    np.testing.assert_allclose(found.value, 5.0, rtol=1e-6)
