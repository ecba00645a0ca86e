"""Eigenvalues of the Hessian of a loss, without forming it."""

from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Float
from matfree import decomp, eig

from gf_jax.arithmetic import flow_arithmetic
from gf_jax.tracing import Loss, check_loss, hoist_constants

PyTree = Any


class Eigenvalue(NamedTuple):
    """Eigenvalues of the Hessian at stacked points, as NumPy arrays.

    Attributes:
      value: the eigenvalue.
      residual: norm of Hv - value v for its unit eigenvector v; some eigenvalue of the
        Hessian lies within that of the value.
    """

    value: Float[np.ndarray, " points"]
    residual: Float[np.ndarray, " points"]


def lambda_max(f: Loss, params: PyTree, *, products: int = 30) -> Eigenvalue:
    """Largest eigenvalue of the Hessian of f at every point of a stack.

    Lanczos with full reorthogonalisation, started from the gradient. Descent with
    step size above 2 / lambda_max is unstable there.

    Args:
      f: maps parameters to a scalar loss.
      params: stacked parameters, leaves of shape (points, ...).
      products: Hessian-vector products per point, at most the number of parameters.

    Raises:
      ValueError: on parameters or an f that are not accepted.
    """
    numbers = flow_arithmetic()
    with numbers.context():
        stack = jax.tree.map(numbers.cast, params)
        first = jax.tree.map(lambda leaf: leaf[0], stack)
        check_loss(f, first)
        pure, constants = hoist_constants(f, first)
        depth = min(products, sum(leaf.size for leaf in jax.tree.leaves(first)))
        decompose = eig.eigh_partial(decomp.tridiag_sym(depth, custom_vjp=False))

        @jax.jit
        def top(constants: list[Any], params: PyTree) -> tuple[Any, Any]:
            gradient, product = jax.linearize(
                lambda p: jax.grad(pure, argnums=1)(constants, p), params
            )
            values, vectors = decompose(product, gradient)
            value, vector = values[-1], jax.tree.map(lambda leaf: leaf[-1], vectors)
            residual = optax.tree.add_scale(product(vector), -value, vector)
            return value, optax.tree.norm(residual) / optax.tree.norm(vector)

        pairs = [
            top(constants, jax.tree.map(lambda leaf, at=at: leaf[at], stack))
            for at in range(len(jax.tree.leaves(stack)[0]))
        ]
        value, residual = np.array(jax.device_get(pairs)).T
    return Eigenvalue(value, residual)
