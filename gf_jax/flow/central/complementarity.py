"""Complementarity over small positive semidefinite matrices.

Wanted is a symmetric k × k matrix X with

    X ⪰ 0,   Y = G X + Q ⪰ 0,   ⟨X, Y⟩ = 0,

which is where ½⟨X, G X⟩ + ⟨X, Q⟩ is smallest among the X ⪰ 0. Symmetric matrices are vectors of
k (k + 1) / 2 numbers here, those off the diagonal times √2, so that inner products are kept.

Source: Qi & Sun, A quadratically convergent Newton method for computing the nearest correlation
matrix, SIAM J. Matrix Anal. Appl. 2006 (the derivative of the projection).
"""

import numpy as np
from jaxtyping import Float

MOST = 200  # iterations
RIDGE = 1e-13  # of G, over its norm, so that what depends on nothing stays at nothing
TIE = 1e-14  # eigenvalues, over the largest, that are taken to be one

Matrix = Float[np.ndarray, "k k"]
Vector = Float[np.ndarray, " entries"]


def vector(matrix: Matrix) -> Vector:
    """A symmetric matrix as a vector of the same norm."""
    rows, columns = np.triu_indices(len(matrix))
    return matrix[rows, columns] * np.where(rows == columns, 1.0, np.sqrt(2.0))


def matrix(entries: Vector) -> Matrix:
    """The symmetric matrix of a vector."""
    size = int((np.sqrt(8 * len(entries) + 1) - 1) / 2)
    rows, columns = np.triu_indices(size)
    full = np.zeros((size, size), entries.dtype)
    full[rows, columns] = entries / np.where(rows == columns, 1.0, np.sqrt(2.0))
    return full + np.triu(full, 1).T


def turned(
    turn: Matrix, stack: Float[np.ndarray, "entries *more"]
) -> Float[np.ndarray, "entries *more"]:
    """turn @ each symmetric matrix @ turn.T, the matrices along the first axis as vectors."""
    units = np.eye(len(stack))
    columns = [vector(turn @ matrix(unit) @ turn.T) for unit in units]
    return np.stack(columns, axis=1) @ stack if len(stack) else stack


def solve(
    response: Float[np.ndarray, "entries entries"],
    offset: Vector,
    start: Vector,
    tolerance: float = 1e-10,
) -> tuple[Vector, float]:
    """X, by Newton's method on X = P(X − Y / ‖G‖), P the projection on X ⪰ 0.

    Where Newton's step does not make the difference of both sides smaller, the right side is
    taken, which never leads away.

    Args:
      response: G, symmetric and positive semidefinite.
      offset: Q.
      start: where to begin.
      tolerance: largest norm of the difference, over that of X or of Q / ‖G‖.

    Returns:
      X, and the difference that is left over the same; above the tolerance there may be no X, as
      where G is zero and Q is not positive semidefinite.
    """
    steepest = np.linalg.norm(response, 2)
    if not (np.isfinite(steepest) and np.isfinite(offset).all()):
        return np.full_like(start, np.nan), np.inf
    if steepest == 0:
        whole = matrix(offset)
        holds = not len(whole) or np.linalg.eigvalsh(whole)[0] >= 0
        return np.zeros_like(start), 0.0 if holds else np.inf
    unit = response / steepest + RIDGE * np.eye(len(offset))
    shift = offset / steepest
    found, left = start, np.inf
    for _ in range(MOST):
        target, derivative = _projection(found - unit @ found - shift)
        rest = found - target
        left = np.linalg.norm(rest) / max(np.linalg.norm(found), np.linalg.norm(shift), 1e-300)
        if left <= tolerance:
            break
        jacobian = np.eye(len(found)) - derivative @ (np.eye(len(found)) - unit)
        newton = found - np.linalg.lstsq(jacobian, rest, rcond=None)[0]
        ahead, _ = _projection(newton - unit @ newton - shift)
        better = np.linalg.norm(newton - ahead) < 0.9 * np.linalg.norm(rest)
        found = newton if better else target
    return vector(_positive(matrix(found))), float(left)


def _positive(whole: Matrix) -> Matrix:
    values, vectors = np.linalg.eigh(whole)
    return (vectors * np.maximum(values, 0)) @ vectors.T


def _projection(entries: Vector) -> tuple[Vector, Float[np.ndarray, "entries entries"]]:
    """The nearest positive semidefinite matrix, and the derivative of that."""
    values, vectors = np.linalg.eigh(matrix(entries))
    kept = np.maximum(values, 0)
    apart = values[:, None] - values
    tied = np.abs(apart) <= TIE * np.abs(values).max()
    slopes = np.where(
        tied,
        (values > 0).astype(float)[:, None],
        (kept[:, None] - kept) / np.where(tied, 1.0, apart),
    )

    def along(direction: Vector) -> Vector:
        inner = slopes * (vectors.T @ matrix(direction) @ vectors)
        return vector(vectors @ inner @ vectors.T)

    derivative = np.stack([along(unit) for unit in np.eye(len(entries))], axis=1)
    return vector((vectors * kept) @ vectors.T), derivative
