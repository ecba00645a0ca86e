"""One step of the central flow: where the oscillation has to be what holds the sharpness.

A step of length h carries w' = −F, F = ∇f + ½ ∇⟨∇²f, Σ⟩, with Σ = U X Uᵀ of a matrix X that is
one over the step. It is to end where every eigenvalue of ∇²f is at most 2 / s, with X
complementary to what is missing: an implicit method, so that no eigenvalue drifts off the edge.
X is found by Newton's method, whose derivative −h/2 ⟨T, T⟩, T the gradients of the entries of
Uᵀ∇²fU, is corrected by what its own steps do.

Source: Cohen, Damian et al., Understanding Optimization in Deep Learning with Central Flows, ICLR
2025; Moreau, Evolution problem associated with a moving convex set, J. Diff. Eq. 1977.
"""

import enum
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from gf_jax.flow.central import chebyshev, complementarity, eigenvectors
from gf_jax.flow.central.derivatives import Block, Derivatives, Vector, pairs, weights
from gf_jax.flow.central.eigenvectors import Eigenpairs

NEAR = 0.01  # below the edge, as a share of it: such eigenvectors may be reached within a step
ON_EDGE, MOST_OFF_EDGE = 0.1, 1e-3  # share of the edge over the tolerance, and at most
RESIDUAL = 1e-3  # of eigenvectors, over the edge
MOST_NEWTON = 8
MATCHED = 0.8  # least cosine between the spaces at both ends of a step
COARSE = 2.0  # error of a step, in tolerances, with which it is taken again at once
NOTHING = 1e-7  # share of the largest variance below which there is none


class Fault(enum.Enum):
    """Why a step has to be taken again."""

    NONE = 0
    MORE = 1  # eigenvectors are near the edge
    SHORTER = 2


class Setting(NamedTuple):
    """What is followed, and how exactly.

    Attributes:
      derivatives: of the loss.
      step_size: of descent.
      corrected: whether the first order of its deviation counts, see ``central_flow``.
      tolerance: largest error of a step.
    """

    derivatives: Derivatives
    step_size: float
    corrected: bool
    tolerance: float

    @property
    def edge(self) -> float:
        """The largest stable curvature."""
        return 2 / self.step_size

    @property
    def on_edge(self) -> float:
        """How far from the edge an eigenvalue may be that is held, as a share of it."""
        return min(ON_EDGE * self.tolerance, MOST_OFF_EDGE)

    def stiffness(self, curvature: float) -> float:
        """Of the flow, where the largest curvature is this."""
        each = 1.05 * max(curvature, 1e-3 * self.edge)
        return each * (1 + self.step_size / 2 * each) if self.corrected else each


class State(NamedTuple):
    """The flow at one time.

    Attributes:
      time: the time.
      point: params as a vector.
      found: eigenpairs, of which the last is below all that are near the edge.
      near: how many are.
      gradients: of the entries of Uᵀ∇²fU, U those near, as vectors of the same norm.
      covariance: X of the step before, in U.
      slope: its derivative in time, by the two steps before.
      length: of the step before.
      rank: of X.
      response: by how much Newton's derivative was to be multiplied.
    """

    time: float
    point: Vector
    found: Eigenpairs
    near: int
    gradients: Block
    covariance: Float[np.ndarray, "near near"]
    slope: Float[np.ndarray, "near near"]
    length: float
    rank: int
    response: float

    @property
    def vectors(self) -> Block:
        """Those near the edge."""
        return self.found.vectors[: self.near]


class Step(NamedTuple):
    """A step that was tried.

    Attributes:
      fault: what is wrong with it.
      point: params at its end.
      found: eigenpairs there.
      size: of its error, in tolerances.
      covariance: X over the step, in the vectors of its beginning.
      turned: the same vectors at its end.
      gradients: of the entries of Uᵀ∇²fU there, in these.
      rank: of X.
      free: by how much eigenvalues would lie higher without X, at most.
      response: see ``State``.
    """

    fault: Fault
    point: Vector
    found: Eigenpairs
    size: float
    covariance: Float[np.ndarray, "near near"]
    turned: Block
    gradients: Block
    rank: int
    free: float
    response: float


def look(setting: Setting, point: Vector, near: Block, least: int) -> tuple[Eigenpairs, int]:
    """Eigenpairs at a point, at least so many, and how many of them are near the edge."""
    derivatives, wanted = setting.derivatives, min(max(least, 1), len(point))
    threshold = (1 - NEAR) * setting.edge
    while True:
        found = eigenvectors.largest(
            lambda block: derivatives.products(point, block),
            *(near, wanted, RESIDUAL * setting.edge),
        )
        count = int((found.values > threshold).sum())
        if count < wanted or wanted == len(point) or not np.isfinite(found.values).all():
            return found, count
        near, wanted = found.vectors, wanted + 1


def begin(setting: Setting) -> State:
    """The state at the start."""
    start = setting.derivatives.start
    fresh = np.random.default_rng(0).standard_normal(len(start))
    gradient = setting.derivatives.gradient(start)
    found, near = look(setting, start, np.stack([gradient, fresh]), 1)
    none, vectors = np.zeros((near, near)), found.vectors[:near]
    entries = _entries(setting, start, vectors)
    return State(0.0, start, found, near, entries, none, none, 1.0, 0, 1.0)


def widened(setting: Setting, at: State) -> State:
    """The same state, with one more eigenvector taken to be near the edge."""
    near = at.near + 1
    entries = _entries(setting, at.point, at.found.vectors[:near])
    covariance, slope = (np.pad(each, (0, 1)) for each in (at.covariance, at.slope))
    return at._replace(near=near, gradients=entries, covariance=covariance, slope=slope)


def following(setting: Setting, at: State, step: Step, time: float) -> State:
    """The state after a step that is accepted, at the time of its end."""
    near = int((step.found.values > (1 - NEAR) * setting.edge).sum())
    vectors = step.found.vectors[:near]
    turn, length = vectors @ step.turned.T, time - at.time
    slope = np.zeros_like(step.covariance)
    if step.rank == at.rank:
        between = (length + at.length) / 2
        slope = (step.covariance - at.covariance) / max(between, setting.step_size)
    if near == at.near:  # the same space
        entries = complementarity.turned(turn, step.gradients)
    else:
        entries = _entries(setting, step.point, vectors)
    return State(
        *(time, step.point, step.found, near, entries),
        *(turn @ step.covariance @ turn.T, turn @ slope @ turn.T, length),
        *(step.rank, step.response),
    )


def attempt(setting: Setting, at: State, length: float) -> Step:
    """Tries a step."""
    near, entries = at.near, complementarity.vector(at.covariance)
    begin, end, newton = at.gradients, at.gradients, None
    rise = complementarity.vector(at.slope) * length / 2
    most = float(np.linalg.norm(entries)) / 2
    rise *= min(1.0, most / max(float(np.linalg.norm(rise)), complementarity.TINY))
    guess, stiffness = at.found.vectors, setting.stiffness(at.found.values[0])
    correction = setting.step_size if setting.corrected else None
    fault, naive = Fault.SHORTER, 1.0
    size, free, turned, rank = np.inf, 0.0, at.vectors, at.rank
    before: tuple[np.ndarray, np.ndarray] | None = None
    point, found = at.point, at.found
    for _ in range(MOST_NEWTON):
        forces = ((entries - rise) @ begin / 2, (entries + rise) @ end / 2)
        point, error = setting.derivatives.advance(at.point, length, stiffness, forces, correction)
        size = _size(at, error, length * stiffness) / setting.tolerance
        if not np.isfinite(size):
            break
        if size > COARSE:  # of no use, whatever holds the sharpness
            return Step(Fault.NONE, point, found, size, at.covariance, turned, end, rank, 0.0, 1.0)
        found, _ = look(setting, point, guess, near + 1)
        guess = found.vectors
        if len(found.values) > near and found.values[near] > (1 + setting.on_edge) * setting.edge:
            reachable = at.found.values[near] > (1 - 5 * NEAR) * setting.edge
            fault = Fault.MORE if reachable else Fault.SHORTER
            break
        turned, matrix, match = _aligned(at.vectors, found)
        if near == 0:
            return Step(Fault.NONE, point, found, size, at.covariance, turned, end, 0, 0.0, 1.0)
        if match < MATCHED:
            break
        last, end = end, _entries(setting, point, turned)
        shift = float(np.linalg.norm(entries @ (end - last))) * length / 4
        held = complementarity.vector(matrix)
        if newton is None:
            newton = length / 4 * (begin @ end.T + end @ begin.T)
            naive = np.trace(newton)
            newton = at.response * newton
        elif before is not None:
            newton = _improved(newton, entries - before[0], before[1] - held)
        slack = complementarity.vector(setting.edge * np.eye(near)) - held
        wanted, left = complementarity.solve(newton, slack - newton @ entries, entries)
        if not left < 1e-6:
            break
        change = newton @ (wanted - entries)
        exact = setting.on_edge * setting.edge * min(1.0, length / setting.step_size)
        if np.linalg.norm(change) <= exact and shift <= setting.tolerance / 2:
            fault = Fault.NONE
            break
        before, entries = (entries, held), wanted
    covariance = complementarity.matrix(entries)
    if fault is Fault.NONE and newton is not None:
        values, vectors = np.linalg.eigh(covariance)
        rank = int((values > NOTHING * max(values.max(), 0)).sum()) if values.max() > 0 else 0
        free = _freed(newton, values, vectors, at.rank)
    response = float(np.trace(newton) / naive) if newton is not None and naive > 0 else 1.0
    return Step(fault, point, found, size, covariance, turned, end, rank, free, response)


def _size(at: State, error: Vector, stiffness: float) -> float:
    """Of an error, of which what lies along eigenvectors near the edge decays within the step."""
    vectors = at.found.vectors[: max(at.near, 1)]
    along = vectors @ error
    return float(np.linalg.norm(error - along * stiffness / (1 + stiffness) @ vectors))


def _entries(setting: Setting, point: Vector, vectors: Block) -> Block:
    """Gradients of the entries of Uᵀ∇²fU."""
    if not len(vectors):
        return np.zeros((0, len(point)))
    thirds = setting.derivatives.thirds(point, *pairs(vectors))
    return weights(len(vectors))[:, None] * thirds


def _aligned(vectors: Block, found: Eigenpairs) -> tuple[Block, np.ndarray, float]:
    """The vectors at the end that are nearest to those given, Uᵀ∇²fU in them, and the cosine."""
    near = len(vectors)
    if not near:
        return vectors, np.zeros((0, 0)), 1.0
    left, cosines, right = np.linalg.svd(vectors @ found.vectors[:near].T)
    turn = left @ right
    matrix = (turn * found.values[:near]) @ turn.T
    return turn @ found.vectors[:near], matrix, float(cosines.min())


def _improved(newton: np.ndarray, moved: np.ndarray, answered: np.ndarray) -> np.ndarray:
    """The derivative that a step of Newton's shows, by the formula of BFGS."""
    along = float(moved @ answered)
    if not along > 1e-8 * np.linalg.norm(moved) * np.linalg.norm(answered):
        return newton
    before = newton @ moved
    curved = float(moved @ before)
    if not curved > 0:
        return newton
    return newton + np.outer(answered, answered) / along - np.outer(before, before) / curved


def _freed(newton: np.ndarray, values: np.ndarray, vectors: np.ndarray, rank: int) -> float:
    """How much higher the largest eigenvalue would be without what was not held before."""
    fresh = np.where(np.arange(len(values)) < len(values) - rank, values, 0.0)
    added = complementarity.vector((vectors * fresh) @ vectors.T)
    return float(np.linalg.eigvalsh(complementarity.matrix(newton @ added))[-1])


def longest(setting: Setting) -> float:
    """The longest step that is ever taken."""
    return chebyshev.longest_step(setting.stiffness(setting.edge))
