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

MOST = 100  # iterations
RIDGE = 1e-9  # added to G, over its norm, so that there is one solution where G has no inverse
TINY = 1e-300  # so that nothing over nothing is nothing
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
    """The matrix turn @ each of a stack of symmetric matrices @ turn.T, as vectors."""
    units = np.eye(len(stack))
    columns = [vector(turn @ matrix(unit) @ turn.T) for unit in units]
    return np.stack(columns, axis=1) @ stack if len(stack) else stack


def solve(
    response: Float[np.ndarray, "entries entries"],
    offset: Vector,
    start: Vector,
    tolerance: float = 1e-8,
) -> tuple[Vector, float]:
    """X, by Newton's method on X = P(X − Y / ‖G‖), P the projection on X ⪰ 0.

    A step of Newton's is shortened until the difference of both sides falls; where it does not
    the right side is taken, which never leads away.

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
    identity = np.eye(len(offset))
    unit, shift = response / steepest + RIDGE * identity, offset / steepest

    def distance(point: Vector) -> tuple[Vector, np.ndarray, float]:
        """From where the projection takes a point, and the derivative of the projection."""
        target, derivative = _projection(point - unit @ point - shift)
        return target, derivative, float(np.linalg.norm(point - target))

    found, (target, derivative, left) = start, distance(start)
    for _ in range(MOST):
        scale = max(float(np.linalg.norm(found)), float(np.linalg.norm(shift)), TINY)
        if left <= tolerance * scale:
            break
        jacobian = identity - derivative @ (identity - unit)
        newton = np.linalg.lstsq(jacobian, target - found, rcond=None)[0]
        for share in (1.0, 0.5, 0.25, 0.125):
            ahead = found + share * newton
            new = distance(ahead)
            if new[2] < (1 - share / 10) * left:
                break
        else:
            ahead, new = target, distance(target)
        found, (target, derivative, left) = ahead, new
    return vector(_positive(matrix(found))), left / scale


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
