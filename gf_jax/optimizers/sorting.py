"""What the leaves of an optimiser's state are, found by perturbing each and watching it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from gf_jax.optimizers.limit import COUNTS, FAST, HELD, SLOW
from gf_jax.optimizers.steps import Powers
from gf_jax.optimizers.trial import LimitError, Trial, relative

RESTS = 1e-12  # relative motion of what rests
WITH_SIZE = (0.45, 0.55)  # motion at half the step size, over that at the whole one
WITHOUT_SIZE = 0.95  # likewise, from which on it does not depend on the step size
FORGETS = 1 - 1e-7  # decay from which on nothing is forgotten
DIGITS = 12  # of a decay, so that what is compiled with it serves other starts
GROWS = 0.01  # relative change of where a leaf settles when the step size is doubled


class Sorted(NamedTuple):
    """What the leaves of a state are, see ``Limit``."""

    kinds: tuple[str, ...]
    powers: Powers
    decays: tuple[float, ...]
    rates: tuple[float, ...]
    idle: frozenset[int]

    def of_kind(self, kind: str, leaves: Sequence[Any]) -> list[Any]:
        """The leaves of one kind."""
        return [leaf for leaf, own in zip(leaves, self.kinds, strict=True) if own == kind]


def sort_leaves(trial: Trial, leaves: list[Array], period: int) -> Sorted:
    """The kinds of all leaves, found from a state near which they are perturbed."""
    _, _, second = trial.steps(trial.tiny, leaves, period)
    _, _, third = trial.steps(trial.tiny, second, period)
    idle = _idle(trial, leaves, period)
    whole = {
        at: 0 if at in idle else _whole_number(*each)
        for at, each in enumerate(zip(trial.names, leaves, second, third, strict=True))
        if not jnp.issubdtype(each[1].dtype, jnp.floating)
    }
    rates = tuple(whole.get(at, 0) / period for at in range(len(leaves)))
    trial.rests = {
        at
        for at in range(len(leaves))
        if at not in whole and (at in idle or _rests(trial, at, leaves, period))
    }
    for _ in range(1 + len(leaves)):
        found = [
            (COUNTS if whole[at] else HELD, 0, 0.0)
            if at in whole
            else _kind(trial, at, leaves, period)
            for at in range(len(leaves))
        ]
        kinds, powers, decays = (
            (tuple(each) for each in zip(*found, strict=True)) if found else ((),) * 3
        )
        if powers == trial.powers:
            break
        # Those of others may be seen only now.
        leaves = [
            leaf * trial.tiny ** ((old or 0) - (new or 0)) if old != new else leaf
            for leaf, old, new in zip(leaves, trial.powers, powers, strict=True)
        ]
        trial.powers = powers
    return Sorted(kinds, powers, decays, rates, frozenset(idle))


def _idle(trial: Trial, leaves: list[Array], period: int) -> set[int]:
    """Leaves that no step depends on, such as averages that are kept to be read."""
    gradients = trial.any_gradients(period)

    def others(leaf: Array) -> list[Array]:
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            return [trial.moved(leaf), -3 * trial.moved(leaf), jnp.zeros_like(leaf)]
        return [~leaf if leaf.dtype == bool else leaf + jnp.ones_like(leaf)]

    def after(leaves: list[Array]) -> tuple[Any, list[Array]]:
        steps, _, state = trial.steps(trial.node, leaves, period, gradients)
        return steps, state

    steps, state = after(leaves)
    feeds, count = {}, len(leaves)
    for at, leaf in enumerate(leaves):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.extended):  # a random key
            feeds[at] = {count}
            continue
        feeds[at] = set()
        for other in others(leaf):
            seen, found = after([*leaves[:at], other, *leaves[at + 1 :]])
            pairs = zip(*map(jax.tree.leaves, (steps, seen)), strict=True)
            if not all(np.array_equal(a, b) for a, b in pairs):
                feeds[at].add(count)
            pairs = zip(state, found, strict=True)
            feeds[at] |= {to for to, (a, b) in enumerate(pairs) if not np.array_equal(a, b)}
    needed = {count}
    while more := {at for at in feeds if at not in needed and feeds[at] & needed}:
        needed |= more
    return set(range(count)) - needed


def _rests(trial: Trial, at: int, leaves: list[Array], period: int) -> bool:
    """Whether a leaf stays where it is put."""
    other = list(leaves)
    for share in (1.0, 0.5):
        other[at] = share * trial.moved(leaves[at])
        _, _, after = trial.steps(trial.node, other, period, trial.any_gradients(period))
        if not relative(other[at], after[at]) <= RESTS:
            return False
    return True


def _kind(trial: Trial, at: int, leaves: list[Array], period: int) -> tuple[str, int | None, float]:
    """Kind, power and decay of one leaf."""
    name, known = trial.names[at], trial.powers[at]
    if at in trial.rests:
        return HELD, None if trial.sized[at] else 0, 0.0
    known = known or 0
    found = {_moves(trial, at, leaves, period, sign) for sign in (1, -1)}
    if len(found) > 1:
        raise LimitError(
            f"optimizer: {name} in its state moves one way only, as a running maximum, so that "
            "its limit is not smooth; accepted are states that forget both ways"
        )
    (kind,) = found
    if kind != FAST:
        return kind, known, 0.0
    perturbed = trial.perturbed(leaves)
    other = list(perturbed)
    other[at] = trial.moved(perturbed[at])
    by = other[at] - perturbed[at]

    def after(leaves: list[Array], size: float) -> Array:
        return trial.steps(size, leaves, period)[2][at]

    here = after(perturbed, trial.tiny)
    decay = float(jnp.vdot(by, after(other, trial.tiny) - here) / jnp.vdot(by, by))
    if abs(decay) < FORGETS and np.isfinite(decay):
        decay = round(decay, DIGITS)
        settles = [
            perturbed[at] + (a - perturbed[at]) / (1 - decay)
            for a in (here, after(perturbed, 2 * trial.tiny))
        ]
        grows = relative(settles[1], settles[0])
        return FAST, known + (1 if grows > GROWS else 0), decay
    if known >= 0 and abs(decay - 1) <= 1 - FORGETS:
        return SLOW, known - 1, 0.0  # a sum: times the step size it is slow
    raise LimitError(
        f"optimizer: {name} in its state does not forget; accepted are states that do, that "
        "rest, or that change with the step size"
    )


def _moves(trial: Trial, at: int, leaves: list[Array], period: int, sign: int) -> str:
    """Whether a leaf rests, or moves with the step size, from a perturbed state."""
    perturbed, gradients = trial.perturbed(leaves), trial.any_gradients(period)
    if sign < 0:
        perturbed[at] = 0.5 * perturbed[at]
    whole, half = (
        float(
            jnp.linalg.norm(trial.steps(size, perturbed, period, gradients)[2][at] - perturbed[at])
        )
        for size in (trial.node, trial.node / 2)
    )
    if whole <= RESTS * float(jnp.linalg.norm(perturbed[at])):
        return HELD
    least, most = (share * whole for share in WITH_SIZE)
    if least < half < most:
        return SLOW
    if half > WITHOUT_SIZE * whole:
        return FAST
    raise LimitError(
        f"optimizer: {trial.names[at]} in its state moves in proportion to a power of the step "
        "size that is neither 0 nor 1; accepted are decays such as 0.9 and 1 - c * h"
    )


def _whole_number(name: str, first: Array, second: Array, third: Array) -> int:
    """How much a leaf that is no floating-point number grows in a period."""
    if np.array_equal(first, second) and np.array_equal(second, third):
        return 0
    if jnp.issubdtype(first.dtype, jnp.integer):
        a, b, c = (np.asarray(each, np.int64) for each in (first, second, third))
        growth = (b - a).flat[0]
        if growth > 0 and (b - a == growth).all() and (c - b == growth).all():
            return int(growth)
    raise LimitError(
        f"optimizer: {name} in its state holds whole numbers that neither rest nor count, as "
        "the key of a random generator; accepted are optimisers whose steps are determined"
    )
