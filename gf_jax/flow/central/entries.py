"""What an oscillation does to a flow and to its sharpness, for every pair of eigenvectors.

Of eigenvectors U of M = D^½ ∇²f D^½ an oscillation of covariance Σ = δ D^½ U X Uᵀ D^½ adds the
force ½ ∇⟨∇²f, Σ⟩ to the gradient, which alternates with the squares diag(∇²f Σ ∇²f). Both are
linear in X, as is what they do, in a step, to the entries of UᵀMU. Where an optimiser remembers
squares, the number δ makes their sum tr X, so that they hardly change with D, which they change; of
others it is 1.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from gf_jax.flow.central import complementarity
from gf_jax.flow.central.derivatives import Block, Derivatives, State, pairs, weights
from gf_jax.flow.central.scaling import Local

Rows = Float[np.ndarray, "entries numbers"]


class Entries(NamedTuple):
    """For every entry of X, as a vector of the same norm.

    Attributes:
      push: force, and squares where the optimiser takes account of them, of one unit of it.
      answer: by how much velocities of params and memory change.
      pull: derivative of the entry of UᵀMU by params and memory.
      at_once: by the squares of what alternates.
      rate: at which entries of the memory forget.
      scale: δ.
    """

    push: Rows
    answer: Rows
    pull: Rows
    at_once: Rows
    rate: np.ndarray
    scale: float

    def turned(self, turn: np.ndarray) -> "Entries":
        """The same for the eigenvectors turn @ U."""
        names = "push", "answer", "pull", "at_once"
        rows: dict[str, Any] = {
            name: complementarity.turned(turn, getattr(self, name)) for name in names
        }
        return self._replace(**rows)


def entries(
    derivatives: Derivatives, state: State, vectors: Block, images: Block, local: Local
) -> Entries:
    """For vectors at a state.

    Args:
      derivatives: of the loss.
      state: the state.
      vectors: U, orthonormal, in rows.
      images: each times M.
      local: what the optimiser does there.
    """
    if not len(vectors):
        none = np.zeros((0, len(state)))
        return Entries(np.zeros((0, derivatives.pushed)), none, none, none[:, :0], local.rate, 1.0)
    weight = weights(len(vectors))[:, None]
    thirds = weight * derivatives.thirds(state, *pairs(local.root * vectors))
    if not local.rate.size:
        answer = local.moved[0] * thirds / 2
        return Entries(thirds / 2, answer, thirds, thirds[:, :0], local.rate, 1.0)
    scale = len(vectors) / float(((images / local.root) ** 2).sum())
    force = scale / 2 * thirds
    (left, right), (image, other) = pairs(vectors), pairs(images)
    square = scale * weight * image * other / local.root**2
    turning = weight * (image * right + left * other) / 2
    answers = (by[0] * force + by[1] * square for by in (local.moved, local.remembered))
    return Entries(
        np.concatenate([force, square], axis=1),
        np.concatenate(list(answers), axis=1),
        np.concatenate([thirds, turning * local.by_memory], axis=1),
        turning * local.by_square,
        local.rate,
        scale,
    )


def response(begin: Entries, end: Entries, length: float) -> np.ndarray:
    """By how much the entries of UᵀMU fall in a step with X, if fast directions do not answer."""
    forgets = begin.rate * length
    kept = np.where(forgets > 1e-6, -np.expm1(-forgets) / np.maximum(forgets, 1e-6), 1.0)
    size = begin.answer.shape[1] - len(kept)
    share = np.concatenate([np.ones(size), kept])
    one, other = ((a.pull * share) @ b.answer.T for a, b in ((end, begin), (begin, end)))
    squares = end.push[:, end.push.shape[1] - end.at_once.shape[1] :]
    whole = -length / 4 * (one + other) - end.at_once @ squares.T
    return (whole + whole.T) / 2
