"""What an optimiser makes of an oscillation whose sign changes with every step.

Let params be off by (−1)^k v, near a point of curvature H. The gradient is then off by (−1)^k Hv,
and the state answers with (−1)^k σ, where

    −σ = A σ + B (Hv, v),

A and B being the derivatives of a step's new state by the state, and by gradient and params. The
step changes by (−1)^k u, u that of its derivatives along σ, Hv and v together. At the edge of
stability the oscillation neither grows nor decays: u = −2 v. So with M(h) v = −u/h, a matrix that
is the Hessian in the optimiser's own metric, step size h is at the edge where the largest
eigenvalue of M(h) is 2/h:

    plain descent                    M = H
    heavy ball, decay β              M = H / (1 + β)
    Nesterov                         M = (1 + 2β) / (1 + β) H
    Adam, averages long settled      M = (1 − β₁)/(1 + β₁) P⁻¹ H,   P = √v + eps,

the last but for what the average v of squares answers, (1 − β₂)/(1 + β₂) as large.

Sources: Cohen, Kaur, Li, Kolter & Talwalkar, Gradient Descent on Neural Networks Typically Occurs
at the Edge of Stability (ICLR 2021); Cohen, Ghorbani, Krishnan, Agarwal, Medapati, Badura, Suo,
Cardoze, Nado, Dahl & Gilmer, Adaptive Gradient Methods at the Edge of Stability (2022).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from gf_jax.optimizers.limit import FAST, SLOW, Given, Limit, Point, zero_where_still
from gf_jax.optimizers.steps import steps_of

PyTree = Any
Leaves = list[Array]
Answer = Callable[[PyTree, PyTree], PyTree]

SOLVED = 1e-10  # residual of a leaf of sigma, over its norm
MOST_ROUNDS = 100  # until then


def alternating(
    limit: Limit, given: Given, size: Array, point: Point, gradient: PyTree, fast: Leaves
) -> Answer:
    """M(h) at a point of an optimiser's limit.

    Within a period the gradient is off by the same in every step, as where gradients are
    accumulated.

    Args:
      limit: of the optimiser.
      given: arrays that it takes.
      size: h, the time of a step.
      point: of the limit.
      gradient: of the loss there.
      fast: the fast leaves there.

    Returns:
      Maps v and Hv to M(h) v; no numbers where σ is not found.
    """
    held = [leaf[0] for leaf in given.held]
    state = limit.leaves(size, held, point, fast, given.initial)
    moving = [at for at, kind in enumerate(limit.kinds) if kind in (SLOW, FAST)]

    def step(gradient: PyTree, params: PyTree, leaves: Leaves) -> tuple[PyTree, Leaves]:
        whole = list(state)
        for at, leaf in zip(moving, leaves, strict=True):
            whole[at] = leaf
        gradients = repeated(gradient, limit.period)
        velocities, _, after = steps_of(limit.stepper, size, gradients, params, whole)
        return jax.tree.map(lambda leaf: leaf.sum(0), velocities), [after[at] for at in moving]

    leaves = [state[at] for at in moving]
    _, change = jax.linearize(step, gradient, point.params, leaves)
    none = jax.tree.map(jnp.zeros_like, point.params)
    diagonal = _diagonal(lambda sigma: change(none, none, sigma)[1], leaves)

    def answer(vector: PyTree, product: PyTree) -> PyTree:
        sigma = _settled(lambda sigma: change(product, vector, sigma)[1], diagonal, leaves)
        velocity, _ = change(product, vector, sigma)
        velocity = zero_where_still(repeated(gradient, 1), velocity)
        return jax.tree.map(jnp.negative, velocity)

    return answer


def _diagonal(change: Callable[[Leaves], Leaves], leaves: Leaves) -> list[Array]:
    """By what every leaf remembers itself, a number for each."""
    found = []
    for at, leaf in enumerate(leaves):
        ones = [jnp.zeros_like(each) for each in leaves]
        ones[at] = jnp.ones_like(leaf)
        found.append(change(ones)[at].mean())
    return found


def _settled(
    after: Callable[[Leaves], Leaves], diagonal: Sequence[Array], leaves: Leaves
) -> Leaves:
    """σ, of which ``after`` makes −σ, each leaf by itself; no numbers where it is not found."""

    def rest(sigma: Leaves) -> Leaves:
        return [-old - new for old, new in zip(sigma, after(sigma), strict=True)]

    def better(carry: tuple[Array, Leaves, Leaves]) -> tuple[Array, Leaves, Leaves]:
        number, sigma, missing = carry
        sigma = [s + r / (1 + d) for s, r, d in zip(sigma, missing, diagonal, strict=True)]
        return number + 1, sigma, rest(sigma)

    def is_found(sigma: Leaves, missing: Leaves) -> Array:
        pairs = zip(sigma, missing, strict=True)
        each = [jnp.linalg.norm(r) <= SOLVED * jnp.linalg.norm(s) for s, r in pairs]
        return jnp.stack([jnp.asarray(True), *each]).all()

    none = [jnp.zeros_like(leaf) for leaf in leaves]
    _, sigma, missing = jax.lax.while_loop(
        lambda carry: (carry[0] < MOST_ROUNDS) & ~is_found(*carry[1:]),
        better,
        (jnp.zeros((), int), none, rest(none)),
    )
    found = is_found(sigma, missing)
    return [jnp.where(found, leaf, jnp.nan) for leaf in sigma]


def repeated(gradient: PyTree, period: int) -> PyTree:
    """A gradient as that of every step of a period."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (period, *leaf.shape)), gradient)
