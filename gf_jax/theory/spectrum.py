"""Extremal eigenvalues of the Hessian of a loss, and of other matrices, without forming them."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float
from matfree import decomp

from gf_jax.program.arithmetic import flow_arithmetic
from gf_jax.program.compiling import jit
from gf_jax.program.program import Loss, Program, prepare_at_stack
from gf_jax.program.pure import Pure
from gf_jax.records import record

PyTree = Any
Progress = Callable[[float], None]

ASYMMETRY = 1e-8  # of the Jacobian of the gradient, beyond rounding
FRESH = 0.01  # share of a random direction in every start: what the others are blind to is found


@record
class Eigenvalue:
    """Eigenvalues of the Hessian at stacked points, as NumPy arrays.

    Attributes:
      value: the eigenvalue.
      residual: norm of Hv - value v for its unit eigenvector v; some eigenvalue of the
        Hessian lies within that of the value, and mostly far nearer.

    Example:
      >>> def f(w):
      ...     return jnp.sum((w**2 - 1) ** 2)
      >>> w = jnp.array([0.1, 1.5])
      >>> found = gf_jax.curvature(f, jnp.stack([w, 2 * w])).lambda_max
      >>> bool((found.residual < 1e-3).all())
      True
    """

    value: Float[np.ndarray, " points"]
    residual: Float[np.ndarray, " points"]


@record
class Curvature:
    """Both ends of the Hessian's spectrum at stacked points.

    Attributes:
      lambda_min: the smallest eigenvalue. Lanczos approaches it from above: the value
        is never below the smallest eigenvalue.
      lambda_max: the largest, approached from below.
      products: Hessian-vector products taken, over all points.

    Example:
      >>> def f(w):
      ...     return jnp.sum((w**2 - 1) ** 2)
      >>> w = jnp.array([0.1, 1.5])
      >>> found = gf_jax.curvature(f, jnp.stack([w, 2 * w]))
      >>> found.lambda_min.value.round(2), found.products
      (array([-3.88, -3.52]), 4)
    """

    lambda_min: Eigenvalue
    lambda_max: Eigenvalue
    products: int


def curvature(
    f: Loss | Program,
    params: PyTree,
    *,
    tolerance: float = 1e-4,
    products: int = 40,
    restarts: int = 10,
    progress: Progress | None = None,
) -> Curvature:
    """Smallest and largest eigenvalue of the Hessian of f at every point of a stack.

    Lanczos with full reorthogonalisation, in float64 where the device has it. Each point
    starts from the eigenvectors of the one before, the first from the gradient, and is
    started again from what it has found until both residuals are below the tolerance.
    Descent with a step size above 2 / lambda_max is unstable.

    Where f has kinks, this is the Hessian of the smooth piece that a point lies in; the
    jumps of the gradient are not in it.

    Args:
      f: maps parameters to a scalar loss.
      params: stacked parameters, leaves of shape (points, ...), neighbours in order.
      tolerance: largest residual, over the larger of the two absolute values.
      products: Hessian-vector products per start, at most the number of parameters.
      restarts: most starts per point.
      progress: is called after every point with the share of points done.

    Raises:
      ValueError: on parameters, an f or numbers that are not accepted.

    Example:
      >>> def f(w):
      ...     return jnp.sum((w**2 - 1) ** 2)
      >>> w = jnp.array([0.1, 1.5])
      >>> found = gf_jax.curvature(f, jnp.stack([w, 2 * w]))
      >>> found.lambda_max.value.round(2)
      array([ 23., 104.])
    """
    for name, value in {"products": products, "restarts": restarts}.items():
        if value < 1:
            raise ValueError(f"{name}: got {value}; accepted is a positive integer")
    program, params = prepare_at_stack(f, params)
    pure, numbers = program.pure, flow_arithmetic(program.data)
    data, points, taken = numbers.near(program.data), len(jax.tree.leaves(params)[0]), 0
    with numbers.context():
        stack = numbers.cast(params)
        first = _point(stack, 0)
        check_symmetric(pure, data, first)
        flat, unravel = ravel_pytree(first)
        depth = min(products, flat.size)
        of_one = functools.partial(_ends, pure, unravel, depth)
        ends = pure.once(("spectrum", depth), lambda: jit(of_one, speed=pure.flow_speed))
        found, start = [], ravel_pytree(pure.gradient(data, first))[0]
        for at in range(points):
            here = ravel_pytree(_point(stack, at))[0]
            for _ in range(restarts):
                key = jax.random.key(taken)
                values, residuals, start = ends(data, here, start, key)
                taken += depth
                if not residuals.max() > tolerance * jnp.abs(values).max():
                    break
            found.append((values, residuals))
            if progress is not None:
                progress((at + 1) / points)
        values, residuals = (
            np.array(column) for column in zip(*jax.device_get(found), strict=True)
        )
    return Curvature(
        Eigenvalue(values[:, 0], residuals[:, 0]), Eigenvalue(values[:, 1], residuals[:, 1]), taken
    )


def _ends(
    pure: Pure,
    unravel: Callable,
    depth: int,
    data: list[Array],
    params: Array,
    start: Array,
    key: Array,
) -> tuple[Array, Array, Array]:
    """The two eigenvalues, their residuals, and the sum of their vectors to start from again."""
    _, of_tree = pure.linearize(data, unravel(params))

    def product(vector: Array) -> Array:
        return ravel_pytree(of_tree(unravel(vector)))[0]

    fresh = _unit(jax.random.normal(key, start.shape, start.dtype))
    tridiagonalise = decomp.tridiag_sym(depth, custom_vjp=False)
    basis, matrix = tridiagonalise(product, _unit(start) + FRESH * fresh)[:2]
    values, vectors = _ritz(basis, matrix)
    residuals = jax.vmap(lambda value, v: jnp.linalg.norm(product(v) - value * v))(values, vectors)
    return values, residuals, vectors.sum(axis=0)


def check_symmetric(pure: Pure, data: list[Array], params: PyTree) -> None:
    """Refuses a gradient, as JAX computes it, that is the gradient of no function."""
    reason = pure.once_only(data, params)
    if reason is not None:
        raise ValueError(
            f"f: its gradient cannot be differentiated ({reason}), so it has no Hessian"
        )
    if not pure.stops:
        return
    flat, unravel = ravel_pytree(params)
    _, product = pure.linearize(data, params)
    keys = jax.random.split(jax.random.key(0))
    a, b = (jax.random.normal(key, flat.shape, flat.dtype) for key in keys)
    ja, jb = (ravel_pytree(product(unravel(vector)))[0] for vector in (a, b))
    difference, scale = abs(b @ ja - a @ jb), jnp.linalg.norm(ja) * jnp.linalg.norm(b)
    if difference > ASYMMETRY * scale:
        raise ValueError(
            "f: its gradient, as JAX computes it, is not that of any function, since part of it is "
            "held fixed (stop_gradient) or has a derivative of its own; it has no Hessian"
        )


def _ritz(basis: Array, matrix: Array) -> tuple[Array, Array]:
    """First and last eigenpair of a tridiagonal matrix, the vectors in the full space.

    Where an off-diagonal entry is rounding, the Krylov space ended before, and what
    follows is noise: it is replaced by the first diagonal entry, which lies within the
    spectrum of what remains.
    """
    beside = jnp.abs(jnp.diagonal(matrix, 1))
    scale = jnp.maximum(jnp.abs(matrix[0, 0]), beside.max(initial=0.0, where=beside > 0))
    continues = beside > np.sqrt(np.finfo(matrix.dtype).eps) * scale
    alive = jnp.concatenate([jnp.ones(1, bool), jnp.cumprod(continues).astype(bool)])
    matrix = jnp.where(alive & alive[:, None], matrix, matrix[0, 0] * jnp.eye(len(matrix)))
    values, vectors = jnp.linalg.eigh(matrix)
    ends = jnp.array([0, -1])
    return values[ends], jax.vmap(_unit)(vectors.T[ends] @ jnp.where(alive[:, None], basis, 0.0))


def krylov(
    product: Callable[[Array], Array], depth: int, start: Array, key: Array
) -> tuple[Array, Array, Array]:
    """Arnoldi's iteration for any square matrix, from a start and a random share.

    Returns:
      The basis, a vector in each row; the small matrix; and the norm of what leaves the space.
    """
    fresh = _unit(jax.random.normal(key, start.shape, start.dtype))
    arnoldi = decomp.hessenberg(depth, reortho="full", custom_vjp=False)
    found = arnoldi(product, _unit(start) + FRESH * fresh)
    return found.Q_tall, found.J_small, jnp.linalg.norm(found.residual)


def rightmost(basis: Array, matrix: Array, rest: Array) -> tuple[float, float, Array]:
    """The eigenvalue with the largest real part, on the host, of what ``krylov`` found.

    Returns:
      Its real part; the norm of what the eigenvector misses, and beside it the imaginary part; and
      the real part of the vector, to start from again. No numbers where the matrix is none.
    """
    small, over = np.asarray(matrix), float(rest)
    beside = np.append(np.diagonal(small, -1), over)
    # Where an entry is rounding the space ended before, and what follows is noise.
    ends = ~(np.abs(beside) > np.sqrt(np.finfo(small.dtype).eps) * np.abs(small[0]).max())
    size = int(np.argmax(ends)) + 1 if ends.any() else len(small)
    if not np.isfinite(small[:size, :size]).all():
        return np.nan, np.nan, jnp.zeros_like(basis[0])
    values, vectors = np.linalg.eig(small[:size, :size])
    at = int(np.argmax(values.real))
    vector = vectors[:, at]
    missing = np.abs(beside[size - 1] * vector[-1]) + np.abs(values[at].imag)
    return float(values[at].real), float(missing), jnp.asarray(vector.real) @ basis[:size]


def _unit(vector: Array) -> Array:
    """A vector over its norm; zero stays zero."""
    norm = jnp.linalg.norm(vector)
    return vector / jnp.where(norm > 0, norm, 1.0)


def _point(stack: PyTree, at: int) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[at], stack)
