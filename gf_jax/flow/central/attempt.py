"""One step of the central flow: where the oscillation has to be what holds the sharpness.

A step of length h carries the mean of the optimiser, for descent w' = −F, F = ∇f + ½ ∇⟨∇²f, Σ⟩,
with a matrix X of the oscillation, in the eigenvectors U near the edge, that is one over the step.
It is to end where every eigenvalue of the Hessian M in the optimiser's metric is at most 2 / s,
with X complementary to what is missing: an implicit method, so that no eigenvalue drifts off the
edge. X is found by Newton's method, whose derivative, for descent −h/2 ⟨T, T⟩, T the gradients of
the entries of UᵀMU, is corrected by what its own steps do.

Source: Cohen, Damian et al., Understanding Optimization in Deep Learning with Central Flows, ICLR
2025; Moreau, Evolution problem associated with a moving convex set, J. Diff. Eq. 1977.
"""

import numpy as np

from gf_jax.flow.central import complementarity
from gf_jax.flow.central.derivatives import Block, Vector
from gf_jax.flow.central.eigenvectors import Eigenpairs
from gf_jax.flow.central.entries import entries, response
from gf_jax.flow.central.steps import Fault, Setting, State, Step, look

MOST_NEWTON = 8
MATCHED = 0.8  # least cosine between the spaces at both ends of a step
COARSE = 2.0  # error of a step, in tolerances, with which it is taken again at once
NOTHING = 1e-7  # share of the largest variance below which there is none
OF_METRIC = 30.0  # relative error of eigenvalues by that of the memory, over that of params
LEFT = 1e-6  # of the complementarity problem, beyond which there is no solution


def attempt(setting: Setting, at: State, length: float) -> Step:
    """Tries a step."""
    search = _Search(setting, at, length)
    for _ in range(MOST_NEWTON):
        if search.ended():
            break
    return search.step()


class _Search:
    """Newton's method for X over one step.

    Attributes:
      fault: what is wrong with the step as it is.
    """

    def __init__(self, setting: Setting, at: State, length: float) -> None:
        self._setting, self._at, self._length = setting, at, length
        self._x = complementarity.vector(at.covariance)
        rise = complementarity.vector(at.slope) * length / 2
        most = float(np.linalg.norm(self._x)) / 2
        self._rise = rise * min(1.0, most / max(float(np.linalg.norm(rise)), complementarity.TINY))
        self.fault, self._size = Fault.SHORTER, np.inf
        self._point, self._local, self._found = at.point, at.local, at.found
        self._turned, self._end = at.vectors, at.entries
        self._newton: np.ndarray | None = None
        self._naive = 1.0
        self._before: tuple[np.ndarray, np.ndarray] | None = None

    def ended(self) -> bool:
        """Takes one step of Newton's method; whether there is no other to take."""
        self._advance()
        if not self._size <= COARSE:  # of no use, whatever holds the sharpness
            self.fault = Fault.NONE if np.isfinite(self._size) else Fault.SHORTER
            return True
        if self._is_crowded():
            return True
        at = self._at
        self._turned, matrix, match = _aligned(at.vectors, self._found)
        if at.near == 0:
            self.fault = Fault.NONE
            return True
        return match < MATCHED or self._is_solved(matrix)

    def step(self) -> Step:
        """The step as it is."""
        covariance, rank, free = complementarity.matrix(self._x), self._at.rank, 0.0
        if self.fault is Fault.NONE and self._newton is not None:
            values, vectors = np.linalg.eigh(covariance)
            largest = values.max()
            rank = int((values > NOTHING * largest).sum()) if largest > 0 else 0
            free = _freed(self._newton, values, vectors, self._at.rank)
        answered = 1.0
        if self._newton is not None and self._naive > 0:
            answered = float(np.trace(self._newton) / self._naive)
        return Step(
            *(self.fault, self._point, self._local, self._found, self._size, covariance),
            *(self._turned, self._end, rank, free, answered),
        )

    def _advance(self) -> None:
        """Makes the step with the X at hand."""
        at, setting = self._at, self._setting
        begin, end = at.entries.push, self._end.push
        pushes = (self._x - self._rise) @ begin, (self._x + self._rise) @ end
        stiffness = setting.stiffness(at.found.values[0])
        self._point, error = setting.derivatives.advance(
            *(at.point, at.time, self._length, stiffness, pushes), corrected=setting.corrected
        )
        self._size = _size(at, error, self._length * stiffness) / setting.tolerance
        self._push = pushes[1]

    def _is_crowded(self) -> bool:
        """Looks at the end of the step; whether an eigenvalue is past the edge unheld."""
        at, setting, near = self._at, self._setting, self._at.near
        time = at.time + self._length
        self._local = setting.derivatives.local(self._point, self._push, time)
        guess = self._found.vectors
        self._found, _ = look(setting, self._point, self._local, guess, near + 1)
        values = self._found.values
        if not len(values) > near or values[near] <= (1 + setting.on_edge) * setting.edge:
            return False
        reachable = at.found.values[near] > (1 - 5 * setting.near) * setting.edge
        reachable |= bool(self._local.rate.size) and self._length <= setting.step_size
        self.fault = Fault.MORE if reachable else Fault.SHORTER
        return True

    def _is_solved(self, matrix: np.ndarray) -> bool:
        """Corrects X by what is missing to the edge; whether that was nothing, or is in vain."""
        setting, last = self._setting, self._end
        images = matrix @ self._turned
        self._end = entries(setting.derivatives, self._point, self._turned, images, self._local)
        size = setting.derivatives.size
        moved = self._x @ (self._end.answer - last.answer)[:, :size]
        shift = float(np.linalg.norm(moved)) * self._length / 2
        metric = setting.edge * self._metric_shift(last.push)
        held = complementarity.vector(matrix)
        newton = self._derivative(held)
        slack = complementarity.vector(setting.edge * np.eye(len(matrix))) - held
        wanted, left = complementarity.solve(newton, slack - newton @ self._x, self._x)
        if not left < LEFT:
            return True
        change = newton @ (wanted - self._x)
        exact = setting.on_edge * setting.edge
        if not setting.remembers:  # else X holds eigenvalues at once, however short the step
            exact *= min(1.0, self._length / setting.step_size)
        found = max(float(np.linalg.norm(change)), metric) <= exact
        if found and shift <= setting.tolerance / 2:
            self.fault = Fault.NONE
            return True
        self._before, self._x = (self._x, held), wanted
        return False

    def _metric_shift(self, last: np.ndarray) -> float:
        """Relative change of eigenvalues by that of squares since they were looked for."""
        by_square = self._local.by_square
        if not by_square.size:
            return 0.0
        squares = (self._x @ (self._end.push - last))[-len(by_square) :]
        return float(np.abs(self._turned**2 @ (by_square * squares)).max())

    def _derivative(self, held: np.ndarray) -> np.ndarray:
        """By how much the entries of UᵀMU fall with X, as far as it is known."""
        if self._newton is None:
            naive = response(self._at.entries, self._end, self._length)
            self._naive = float(np.trace(naive))
            self._newton = self._at.response * naive
        elif self._before is not None:
            x, before = self._before
            self._newton = _improved(self._newton, self._x - x, before - held)
        return self._newton


def _size(at: State, error: Vector, stiffness: float) -> float:
    """Of an error, of which what lies along eigenvectors near the edge decays within the step.

    What the memory is off counts by what it does to their eigenvalues, too.
    """
    vectors, root = at.found.vectors[: max(at.near, 1)], at.local.root
    own, missed = error[: len(root)], error[len(root) :]
    along = vectors @ (own / root)
    size = float(np.linalg.norm(own - root * (along * stiffness / (1 + stiffness) @ vectors)))
    if not (at.near and missed.size):
        return size
    return max(size, float(np.abs(vectors**2 @ (at.local.by_memory * missed)).max()) / OF_METRIC)


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
