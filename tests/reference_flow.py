"""Descent and gradient flow in float64 by plain loops, which the library is judged by.

Of the library nothing is used. A loss is given as g(params, data), the data being arrays
that were computed once, in the precision of the user, so that g is the same in float64.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

# Offsets and weights of the stages, Euler's step and the classical Runge-Kutta method.
EULER = (1, np.zeros(4), np.array([1.0, 0, 0, 0]))
RUNGE_KUTTA = (4, np.array([0, 0.5, 0.5, 1]), np.array([1, 2, 2, 1]) / 6)
# Steps of the flow in one of descent. Unequal phases meet a kink in unequal places, so that
# their difference tells the error even of solutions that are only of first order.
DIVISIONS = (19, 23, 31, 37, 47)
CAUTION = 3  # chatter along a kink may differ by less than it is off
SHARPER = 4
WELL_KNOWN = 0.01  # error of the flow as a share of the smallest distance from it
# A number in the source of a loss, as 0.1, and data that it computes, are rounded to float32 in the
# user's form alone: seven digits, of which a distance loses two.
LITERALS = 1e-5
MOST_EVALUATIONS = 300_000


class Reference(NamedTuple):
    """Distances of descent from the flow, (snapshots, lanes), and their error, (snapshots,)."""

    distance: np.ndarray
    error: np.ndarray
    travelled: np.ndarray


def reference(g, data, params, step_size, iterations, ratios) -> Reference:
    """Of descent on g at some base iterations, with step sizes step_size / ratio."""
    params, data = _as_float64(params), _as_float64(data)
    with jax.enable_x64(True):
        start, unravel = ravel_pytree(params)
        follow = _follower(g, unravel)
        counts = np.diff(np.asarray(iterations), prepend=0)
        lanes = [follow(start, data, step_size / r, counts * r, *EULER) for r in ratios]
        runs = np.stack([np.asarray(lane) for lane in lanes], axis=1)

        def solved(divisions):
            steps = counts * divisions
            solution = follow(start, data, step_size / divisions, steps, *RUNGE_KUTTA)
            return np.asarray(solution)

        return _solved_well(solved, runs, np.asarray(start), int(counts.sum()))


def _as_float64(tree):
    """Floating-point leaves in float64, with the values that they have for the user."""
    leaves = jax.tree.map(lambda leaf: np.asarray(jnp.asarray(leaf)), tree)
    return jax.tree.map(lambda a: a.astype(np.float64) if a.dtype.kind in "fV" else a, leaves)


def _follower(g, unravel):
    """One compiled program for descent and flow: the number of stages is an argument."""

    @jax.jit
    def follow(start, data, step_size, counts, stages, offsets, weights):
        def velocity(point):
            return -jax.grad(lambda flat: g(unravel(flat), data))(point)

        def stage(i, carry):
            point, last, total = carry
            last = velocity(point + step_size * offsets[i] * last)
            return point, last, total + weights[i] * last

        def one(_, point):
            nothing = jnp.zeros_like(point)
            return (
                point + step_size * jax.lax.fori_loop(0, stages, stage, (point, *[nothing] * 2))[2]
            )

        def between(point, count):
            point = jax.lax.fori_loop(0, count, one, point)
            return point, point

        return jax.lax.scan(between, start, jnp.asarray(counts))[1]

    return follow


def _solved_well(solved, runs, start, iterations) -> Reference:
    """With the flow in ever smaller steps, until it is known well beside the distances."""
    factor = 1
    while True:
        # Without a common divisor, by which all would meet a kink at the same phase.
        *rough, flow = (solved(factor * n + shift) for shift, n in enumerate(DIVISIONS))
        apart = [np.linalg.norm(flow - other, axis=-1) for other in rough]
        error = CAUTION * np.max(apart, axis=0)
        with np.errstate(over="ignore", invalid="ignore"):  # of a lane that diverges
            distance = np.linalg.norm(runs - flow[:, None], axis=-1)
        work = 4 * iterations * factor * SHARPER * sum(DIVISIONS)
        if (error <= WELL_KNOWN * distance.min(axis=1)).all() or work > MOST_EVALUATIONS:
            return Reference(distance, error, np.linalg.norm(flow - start, axis=-1))
        factor *= SHARPER


def judged(found, known: Reference) -> tuple[str, str]:
    """What the comparison `found` is worth, in a word, and why.

    right: every distance is measured at the end, and all is within the claimed errors;
    told: all that is claimed holds, but something is missing or doubted, or what does not hold
    is doubted; wrong: what does not hold is not.
    """
    doubts = tuple(getattr(found, "doubts", ()))
    distances, predictions = _distances_off(found, known), _predictions_off(found, known)
    if distances or predictions:
        # That predictions are doubtful says nothing of what is called measured.
        covered = any("predict" not in doubt for doubt in doubts) if distances else bool(doubts)
        said = [*distances, *predictions, *([f"doubts: {doubts}"] if doubts else [])]
        return ("told" if covered else "wrong"), "; ".join(said)
    measured, predicted = found.run.reference.measured[-1], found.predicted[-1]
    if doubts or not measured.all() or np.isnan(predicted).any():
        return "told", f"doubts: {doubts}, measured: {measured}, predicted: {predicted}"
    return "right", ""


def _distances_off(found, known: Reference):
    claimed = 2 * found.resolution + known.error[:, None] + LITERALS * known.distance
    off = ~(np.abs(found.distance - known.distance) <= claimed)
    off &= found.run.reference.measured
    return _worst("distance", off, found.distance, found.resolution, known)


def _predictions_off(found, known: Reference):
    claimed = getattr(found, "predicted_error", np.zeros_like(found.predicted))
    given = np.isfinite(found.predicted)
    claimed = np.where(np.isfinite(claimed), claimed, 0.0)  # unknown is not infinite
    # What is as small as the float64 reference itself is accurate cannot be told from zero.
    allowed = np.maximum(0.1 * known.distance, claimed) + known.error[:, None] + 1e-13
    off = given & ~(np.abs(found.predicted - known.distance) <= allowed)
    return _worst("predicted", off, found.predicted, claimed, known)


def _worst(what, off, values, claimed, known: Reference) -> list[str]:
    """A line on the entry that is the farthest off, if any is."""
    if not off.any():
        return []
    by = np.where(off, np.abs(values - known.distance) / (known.distance + 1e-300), -1)
    at = np.unravel_index(by.argmax(), by.shape)
    return [
        f"{what} {values[at]:.3e} ± {claimed[at]:.1e} at snapshot {at[0]}, lane {at[1]}, is "
        f"off by {abs(values[at] - known.distance[at]):.1e}: right is "
        f"{known.distance[at]:.3e} ± {known.error[at[0]]:.0e}; {off.sum()} of {off.size} off"
    ]
