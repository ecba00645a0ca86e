"""Finds the continuous limit of an optimiser, by trying what its program does.

Its state is run from the start, along a gradient that stands still and with a step size so small
that nothing but fast leaves moves, until it settles. There every leaf is perturbed and seen to
rest, to move with the step size, or to forget. What is found is then held against the optimiser
itself, in steps along a gradient that changes. An optimiser that has no smooth limit fails one of
these trials, and the property that it lacks is named.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from gf_jax.optimizers import settling
from gf_jax.optimizers.limit import (
    COUNTS,
    FAST,
    HELD,
    NODES,
    SLOW,
    Given,
    Limit,
    Point,
    compiled_settle,
    compiled_velocity,
)
from gf_jax.optimizers.settling import SETTLED, Slow
from gf_jax.optimizers.sorting import Sorted, sort_leaves
from gf_jax.optimizers.steps import Optimizer, check_optimizer, failed, is_descent
from gf_jax.optimizers.trial import LimitError, Trial, like, relative

PyTree = Any

NEVER = 1e18  # a count long after the end, at the tiny step size
MOMENTS = (0.003, 0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)  # of the whole time, to try counts at
MOST_ROUNDS, RESIDUAL = 8, 1e-8  # until fast leaves are found, and to which relative change
ROUGHER = 4  # nodes of the rough limit, over those of the limit
EARLY = 3  # periods after which the beginnings of fast leaves are looked at
AGREES = 1e-3  # fast leaves as settled and as found, relative
SMALL, JUMPS = 1e-3, 0.3  # gradients made small, and the change of velocity with their sign
SAME_SPEED = 1e-6  # relative


class Start(NamedTuple):
    """The limit of an optimiser from a starting point.

    Attributes:
      limit: the equation.
      given: the arrays that it takes.
      rough: the same of larger small step sizes: what differs is an error of the limit.
      point: where it starts; its time is later than 0 only if the velocity depends on time.
      deviation: e there.
      moment: Σ_k k (A_k − F) of params over the transient; minus DF times it, the second order
        starts from.
      second: maps a step size to what the change of gradients during the transient adds to that.
      settled: steps of the transient.
      behind: maps numbers of steps to what params lack of e(0) after them, leaves of shape
        (numbers, ...); zeros once the transient is over.
    """

    limit: Limit
    given: Given
    rough: Given
    point: Point
    deviation: Point
    moment: PyTree
    second: Callable[[float], PyTree]
    settled: int
    behind: Callable[[Sequence[int]], PyTree]


def find_limit(
    optimizer: Optimizer,
    params: PyTree,
    gradients: PyTree,
    derivative: Callable[[PyTree], PyTree],
    *,
    step_size: float,
    time: float,
) -> Start:
    """Finds the limit of an optimiser from a starting point.

    Args:
      optimizer: maps a step size, which is the time of a step, to an optax transformation.
      params: the starting point, in float64.
      gradients: of the loss there, or of all batches in turn, leaves (batches, ...).
      derivative: maps a direction to the derivatives of these gradients along it.
      step_size: the smallest of those that the limit is to be compared with.
      time: the whole time.

    Raises:
      LimitError: if there is no limit, or none that could be found.
    """
    check_optimizer(optimizer)
    try:
        return _found(Trial(optimizer, params, gradients, derivative, step_size, time))
    except LimitError:
        raise
    except Exception as error:  # the optimiser is a program of the user's
        raise LimitError(failed(error)) from error


def _found(trial: Trial) -> Start:
    """The limit, or LimitError."""
    unknown = Slow((False,) * len(trial.names), fixed=False)
    first = settling.first_run(trial, unknown)
    warm = settling.settle(trial, unknown, first, len(first.last))
    moved = [
        jnp.issubdtype(after.dtype, jnp.floating) and not np.array_equal(before, after)
        for before, after in zip(first.leaves, warm.leaves, strict=True)
    ]
    period = settling.period_of(trial, warm, settling.LIKE_BEFORE) or trial.batches
    for _ in range(2):
        kinds = sort_leaves(trial, warm.leaves, period)
        _check_held(trial, kinds, moved)
        trial.powers = kinds.powers
        is_time = _is_time(trial, kinds, period)
        slow = Slow(tuple(kind == SLOW for kind in kinds.kinds), fixed=not any(is_time))
        state, strict = settling.settle_from_start(trial, kinds, slow, period)
        if strict == period:
            break
        period, trial.powers = strict, (0,) * len(trial.names)
    else:
        raise LimitError(settling.UNSETTLED.format(int(state.steps)))
    if trial.stepper.lifts and any(is_time):
        raise LimitError(
            "optimizer: its steps depend on time, and it rounds part of its state to a lower "
            "precision than that of params; accepted is one of both"
        )
    own = kinds.kinds, trial.names, kinds.rates, is_time, kinds.decays
    plain = is_descent(trial.stepper.optimizer, trial.params)
    limit = Limit(trial.stepper, *own, rounds=1, period=period, plain=plain)
    given, rough = (
        _given(trial, kinds, state.leaves, limit.is_time, times * trial.node)
        for times in (1, ROUGHER)
    )
    start = _start(trial, limit, kinds)
    limit = _solved(trial, limit, kinds, given, start, state.leaves)
    _check_sign(trial, limit, given, start)
    limit = dataclasses.replace(limit, speed=_speed(trial, limit, given, start))
    deviation, moment, behind = settling.transient(trial, limit, slow, state)
    second = settling.second_order(trial, limit, given, start, state)
    return Start(limit, given, rough, start, deviation, moment, second, int(state.steps), behind)


def _check_held(trial: Trial, kinds: Sorted, moved: Sequence[bool]) -> None:
    """Refuses what rests where it is tried, yet has moved from its start."""
    for at, (name, kind) in enumerate(zip(trial.names, kinds.kinds, strict=True)):
        if kind == HELD and moved[at] and at not in kinds.idle:
            raise LimitError(
                f"optimizer: {name} in its state moves at first, and rests where it is tried, as "
                "the largest of all values so far does, so that its limit is not smooth; accepted "
                "are states that forget, such as those of optax.adam"
            )


def _is_time(trial: Trial, kinds: Sorted, period: int) -> tuple[bool, ...]:
    """Whether velocities depend on a count times the step size."""
    base = trial.perturbed(trial.initial(trial.tiny))

    def velocity(at: int, count: float) -> PyTree:
        leaves = [
            jnp.full(leaf.shape, NEVER) if kind == COUNTS else leaf
            for leaf, kind in zip(base, kinds.kinds, strict=True)
        ]
        leaves[at] = jnp.full(leaves[at].shape, count)
        moved, _, after = trial.steps(trial.tiny, leaves, period)
        pairs = zip(kinds.of_kind(SLOW, leaves), kinds.of_kind(SLOW, after), strict=True)
        return moved, [(b - a) / trial.tiny for a, b in pairs]

    def is_time(at: int) -> bool:
        if kinds.kinds[at] != COUNTS:
            return False
        try:
            late = velocity(at, NEVER)
            rate = kinds.rates[at] * trial.time / trial.tiny
            return any(relative(velocity(at, rate * m), late) > SETTLED for m in MOMENTS)
        except TypeError:  # what takes whole numbers only, as an index, is no function of time
            return False

    return tuple(is_time(at) for at in range(len(kinds.kinds)))


def _given(
    trial: Trial, kinds: Sorted, settled: list[Array], is_time: Sequence[bool], node: float
) -> Given:
    """The arrays of a limit whose polynomials have their smallest node there."""
    states = [trial.initial(node * n) for n in NODES]
    held = []
    for at, first in enumerate(zip(*states, strict=True)):
        leaves = list(first)
        if kinds.kinds[at] == HELD and not trial.sized[at]:
            leaves = [settled[at]] * len(NODES)
        stack = jnp.stack([jnp.asarray(leaf) for leaf in leaves])
        held.append(stack.astype(float) if is_time[at] else stack)
    initial = kinds.of_kind(FAST, trial.initial(trial.tiny))
    return Given(jnp.asarray(node), held, initial, kinds.of_kind(FAST, settled))


def _start(trial: Trial, limit: Limit, kinds: Sorted) -> Point:
    """The first point: behind a period of tiny steps if time counts, since 0 may be singular."""
    params, leaves, time = trial.params, trial.initial(trial.node), 0.0
    if limit.timed:
        _, params, leaves = trial.steps(trial.node, leaves, limit.period)
        time = trial.node * limit.period
    return Point(params, kinds.of_kind(SLOW, leaves), jnp.asarray(time))


def _solved(
    trial: Trial,
    limit: Limit,
    kinds: Sorted,
    given: Given,
    start: Point,
    settled: list[Array],
) -> Limit:
    """The limit with as many rounds as fast leaves take to be found from others."""
    if not given.guess:
        return dataclasses.replace(limit, rounds=0)
    guess = kinds.of_kind(FAST, trial.perturbed(settled))
    gradients = trial.phase(limit.period)
    rounds, change = 0, np.inf
    while not change <= RESIDUAL and rounds <= MOST_ROUNDS:
        following = compiled_settle(limit, given._replace(guess=guess), start, gradients)
        change, guess, rounds = relative(following, guess), following, rounds + 1
    if not change <= RESIDUAL:
        raise LimitError(
            f"optimizer: {' and '.join(limit.named(FAST))} in its state settle nowhere that "
            "each of them finds by itself; accepted are states of moving averages"
        )
    if not limit.timed and not relative(guess, given.guess) <= AGREES:
        raise LimitError(
            f"optimizer: {' and '.join(limit.named(FAST))} in its state settle at values that "
            "depend on where they came from; accepted are states that forget"
        )
    # One more than it takes to near them, since roots of what should be positive follow.
    limit = dataclasses.replace(limit, rounds=rounds)
    return dataclasses.replace(limit, fades=_fades(trial, limit, kinds, given, start, settled))


def _fades(
    trial: Trial, limit: Limit, kinds: Sorted, given: Given, start: Point, settled: list[Array]
) -> tuple[bool, ...]:
    """Fast leaves of which a count of time corrects the beginning."""
    fades = [False] * len(kinds.kinds)
    if not limit.timed:
        return tuple(fades)
    steps, _, _ = trial.steps(trial.tiny, settled, limit.period)
    late = jax.tree.map(lambda leaf: leaf.mean(0), steps)
    early = start._replace(time=jnp.asarray(EARLY * trial.node * limit.period))

    def away(fades: list[bool]) -> float:
        tried = dataclasses.replace(limit, fades=tuple(fades))
        return relative(late, _velocity(tried, given, early)(trial.phase(limit.period)))

    least = away(fades)
    for at, (kind, decay) in enumerate(zip(kinds.kinds, kinds.decays, strict=True)):
        if kind == FAST and decay > 0:
            other = [*fades[:at], True, *fades[at + 1 :]]
            if (found := away(other)) < least:
                least, fades = found, other
    return tuple(fades)


def _check_sign(trial: Trial, limit: Limit, given: Given, start: Point) -> None:
    """Refuses steps that jump where an entry of the gradient passes zero."""
    alone = all(leaf[0].size == 1 for leaf in jax.tree.leaves(trial.gradients))

    def some(leaf: Array) -> np.ndarray:
        """Entries that are made small, never all of a leaf: that may be scaled as a whole."""
        chosen = trial.draws.random(leaf.shape[1:]) < 0.5
        if chosen.size:
            chosen.flat[0], chosen.flat[-1] = True, alone
        return chosen

    which, of_steps = jax.tree.map(some, trial.gradients), trial.phase(limit.period)
    velocity = _velocity(limit, given, start)
    first, second = (
        velocity(jax.tree.map(lambda g, w, s=s: jnp.where(w, s * SMALL * g, g), of_steps, which))
        for s in (1, -1)
    )

    def jumps(one: Array, other: Array, before: Array, chosen: np.ndarray) -> bool:
        there = [jnp.where(chosen, each, 0) for each in (one - other, before)]
        jump, whole = (float(jnp.linalg.norm(each)) for each in there)
        return jump > JUMPS * whole

    found = jax.tree.map(jumps, first, second, velocity(of_steps), which)
    if any(jax.tree.leaves(found)):
        raise LimitError(
            "optimizer: its steps jump where an entry of the gradient changes its sign, as "
            "those of sign descent do, and of Adam with a small eps at fixed decays, so that "
            "its limit is not smooth; accepted are a larger eps, or decays that depend on the "
            "step size, such as lambda h: optax.adam(h, b1=1 - 100 * h, b2=1 - h)"
        )


def _speed(trial: Trial, limit: Limit, given: Given, start: Point) -> float | None:
    """c, if the velocity is −c times the gradient wherever that is tried."""
    if start.slow or limit.timed or trial.batches > 1:
        return None
    speeds = []
    for scale in (1.0, 1e-3, 1e3, 1.0, 1.0):
        one = jax.tree.map(lambda leaf: leaf[0], trial.gradients)
        gradient = like(one, trial.draws.normal, scale)
        point = start._replace(params=like(trial.params, trial.draws.normal))
        repeated = jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (limit.period, *leaf.shape)), gradient
        )
        velocity = _velocity(limit, given, point)(repeated)
        speed = -float(optax.tree.vdot(velocity, gradient) / optax.tree.vdot(gradient, gradient))
        if not relative(velocity, optax.tree.scale(-speed, gradient)) < SAME_SPEED:
            return None
        speeds.append(speed)
    same = max(speeds) - min(speeds) <= SAME_SPEED * max(speeds) and min(speeds) > 0
    return float(np.mean(speeds)) if same else None


def _velocity(limit: Limit, given: Given, point: Point) -> Callable[[PyTree], PyTree]:
    """Maps gradients of the steps to the velocity of params at a point."""
    return lambda gradients: compiled_velocity(limit, given, point, gradients)[0]
