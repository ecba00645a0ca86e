"""Some eigenvectors of a large symmetric matrix, begun at those of a matrix nearby.

The space spanned by what is known grows by the residuals of what is wanted until these are
small: without a preconditioner that is block Lanczos with full reorthogonalisation.

Source: Saad, Numerical Methods for Large Eigenvalue Problems, 2011, section 8.4.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

LARGEST = 48  # space, in vectors, before it is begun anew
MOST_PRODUCTS = 400  # if not told otherwise
DEPENDENT = 1e-10  # share of a vector outside of a space below which it lies in it

Block = Float[np.ndarray, "vectors parameters"]


class Eigenpairs(NamedTuple):
    """The largest eigenvalues, descending, with unit vectors in rows.

    Attributes:
      values: the eigenvalues.
      vectors: their vectors.
      residual: the largest norm of Hv − value v.
      products: matrix-vector products taken.
    """

    values: Float[np.ndarray, " vectors"]
    vectors: Block
    residual: float
    products: int


def largest(
    product: Callable[[Block], Block],
    near: Block,
    wanted: int,
    tolerance: float,
    most: int = MOST_PRODUCTS,
) -> Eigenpairs:
    """The largest eigenvalues and their vectors.

    Args:
      product: multiplies every row by the matrix.
      near: vectors to begin with, at least one of them nonzero.
      wanted: how many, at most the number of columns.
      tolerance: largest norm of a residual.
      most: products, about, after which it ends all the same.
    """
    space, products = _orthonormal(near, np.zeros((0, near.shape[1]))), 0
    images = np.zeros((0, near.shape[1]))
    while True:
        fresh = space[len(images) :]
        images, products = np.concatenate([images, product(fresh)]), products + len(fresh)
        small = space @ images.T
        values, vectors = np.linalg.eigh((small + small.T) / 2)
        values, vectors = values[::-1][:wanted], vectors[:, ::-1][:, :wanted]
        ritz, moved = vectors.T @ space, vectors.T @ images
        rest = moved - values[:, None] * ritz
        sizes = np.sqrt(np.einsum("ij,ij->i", rest, rest))
        enough = len(values) == wanted and not sizes.max() > tolerance
        if enough or products >= most or len(space) >= space.shape[1]:
            return Eigenpairs(values, ritz, float(sizes.max()), products)
        if len(space) + wanted > LARGEST:
            space, images = ritz, moved
        more = _orthonormal(rest[sizes > tolerance], space)
        if not len(more):
            generator = np.random.default_rng(len(space))
            more = _orthonormal(generator.standard_normal((1, space.shape[1])), space)
        space = np.concatenate([space, more])


def _orthonormal(vectors: Block, beside: Block) -> Block:
    """An orthonormal basis of what vectors span outside of an orthonormal space."""
    vectors = _units(vectors)
    for _ in range(2):  # twice is enough
        vectors = _units(vectors - (vectors @ beside.T) @ beside, DEPENDENT)
    kept = list[np.ndarray]()
    for each in vectors:
        for _ in range(2):
            for other in kept:
                each = each - (each * other).sum() * other
            each = each if not kept else _units(each[None], DEPENDENT).sum(axis=0)
        if (each * each).sum() > 0.5:
            kept.append(each)
    return np.array(kept).reshape(-1, beside.shape[1])


def _units(vectors: Block, least: float = 0.0) -> Block:
    """Those that are finite and longer than the least, over their norms."""
    # Not numpy.linalg.norm, whose threads wait for those of JAX.
    sizes = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    kept = np.isfinite(sizes) & (sizes > least)
    return vectors[kept] / sizes[kept, None]
