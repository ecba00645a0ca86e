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
MOST_PRODUCTS = 400
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
    product: Callable[[Block], Block], near: Block, wanted: int, tolerance: float
) -> Eigenpairs:
    """The largest eigenvalues and their vectors.

    Args:
      product: multiplies every row by the matrix.
      near: vectors to begin with, at least one of them nonzero.
      wanted: how many, at most the number of columns.
      tolerance: largest norm of a residual.
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
        sizes = np.linalg.norm(rest, axis=1)
        enough = len(values) == wanted and not sizes.max() > tolerance
        if enough or products >= MOST_PRODUCTS or len(space) >= space.shape[1]:
            return Eigenpairs(values, ritz, float(sizes.max()), products)
        if len(space) + wanted > LARGEST:
            space, images = ritz, moved
        more = _orthonormal(rest[sizes > tolerance], space)
        if not len(more) and len(values) < wanted or not len(more):
            generator = np.random.default_rng(len(space))
            more = _orthonormal(generator.standard_normal((1, space.shape[1])), space)
        space = np.concatenate([space, more])


def _orthonormal(vectors: Block, beside: Block) -> Block:
    """An orthonormal basis of what vectors span outside of an orthonormal space."""
    kept = list[np.ndarray]()
    for each in vectors:
        size = np.linalg.norm(each)
        if not (np.isfinite(size) and size > 0):
            continue
        rest = each / size
        known = np.concatenate([beside, np.array(kept).reshape(-1, beside.shape[1])])
        for _ in range(2):  # twice is enough
            rest = rest - known.T @ (known @ rest)
        if np.linalg.norm(rest) > DEPENDENT:
            rest = rest - known.T @ (known @ (rest / np.linalg.norm(rest)))
            kept.append(rest / np.linalg.norm(rest))
    return np.array(kept).reshape(-1, beside.shape[1])
