"""How an optimiser settles from its start, along gradients that stand still."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from gf_jax.optimizers.limit import (
    COUNTS,
    FAST,
    LATE,
    SLOW,
    Given,
    Limit,
    Point,
    compiled_velocity,
)
from gf_jax.optimizers.sorting import Sorted
from gf_jax.optimizers.steps import Stepper, steps_of
from gf_jax.optimizers.trial import DIRECTIONS, LimitError, Trial, relative

PyTree = Any

MOST_PERIODS = 64  # steps that may make a period, in numbers of batches
FIRST_SETTLING, MOST_SETTLING = 256, 2**17  # steps of a transient
LIKE_BEFORE = 0.1  # relative change of velocities that may yet settle
SETTLED = 1e-5  # of those that have settled
REMEMBERS = 1e-4  # relative change of fast leaves that have settled
VANISHED = 1e-6  # velocity, over the largest of the transient
PROPORTIONAL = 0.1  # relative change of a velocity when the step size is halved
SEEN = 1e-8  # relative change of a velocity with the step size, above rounding
SMOOTH = 0.35  # change of velocities at a quarter of the step size; 1/4 where they are smooth
HALVED = (1, 2, 4)  # parts of a step whose ends tell the second order
SMALLER = 4  # size of a step over that at which the second order is to be the same
CURVED = (8 / 3, -8.0, 16 / 3)  # weights of these ends in it
FOLLOWS = 0.05  # velocities of the optimiser and of the limit, relative
UNSETTLED = (
    "optimizer: its steps do not settle within {:,} of them along a gradient that stands still, so "
    "that they follow no equation in time; accepted are states that forget, or that change with "
    "the step size, such as decays 1 - c * h"
)


class Run(NamedTuple):
    """A state along gradients that stand still, and what its velocities were."""

    leaves: list[Array]
    steps: Array  # done
    grown: list[Array]  # by how much slow leaves have, or would have
    sum: PyTree  # of velocities
    moment: PyTree  # of them, each times the steps before it
    last: Array  # projections of the last velocities, (most, directions)
    peak: Array  # of each direction, the largest so far


class Slow(NamedTuple):
    """Which leaves are slow, and whether they are held fixed, as they are at h = 0.

    Where time counts they are not, since a count corrects their beginnings.
    """

    leaves: tuple[bool, ...]
    fixed: bool


def first_run(trial: Trial, slow: Slow) -> Run:
    """The state before the first step, over the powers of the tiny step size."""
    leaves = trial.initial(trial.tiny)
    pairs = zip(leaves, slow.leaves, strict=True)
    return Run(
        leaves,
        jnp.zeros((), int),
        [jnp.zeros_like(leaf) for leaf, is_slow in pairs if is_slow],
        jax.tree.map(jnp.zeros_like, trial.params),
        jax.tree.map(jnp.zeros_like, trial.params),
        jnp.zeros((2 * MOST_PERIODS * trial.batches, DIRECTIONS)),
        jnp.zeros(DIRECTIONS),
    )


def settle_from_start(trial: Trial, kinds: Sorted, slow: Slow, period: int) -> tuple[Run, int]:
    """The run where velocity and fast leaves have settled, and its period."""
    first = first_run(trial, slow)
    most = max(FIRST_SETTLING, len(first.last))
    run = settle(trial, slow, first, -(-most // period) * period)
    typical = _typical(trial, kinds, run.leaves, period)
    while True:
        half, steps = run, int(run.steps)
        run = settle(trial, slow, run, steps)
        strict = period_of(trial, run, SETTLED, typical)
        if strict and strict != period:
            return run, strict
        if strict and _has_settled(trial, kinds, half, run, typical, period):
            break
        if 2 * steps >= MOST_SETTLING:
            raise LimitError(UNSETTLED.format(2 * steps))
    last, peak = np.abs(run.last), np.asarray(run.peak)
    if (last.max(0) <= VANISHED * peak).all() and (peak > typical).any():
        raise LimitError(
            "optimizer: its steps vanish after a number of them that does not depend on the "
            "step size, so that nothing moves in the limit; accepted are schedules of time, "
            "such as lambda h: optax.sgd(lambda count: h * schedule(count * h))"
        )
    return run, period


def _has_settled(
    trial: Trial, kinds: Sorted, half: Run, run: Run, typical: np.ndarray, period: int
) -> bool:
    before, now = (np.asarray(each.last)[-period:].mean(0) for each in (half, run))
    scale = np.maximum(np.abs(run.last[-period:]).max(0), typical)
    fast = (kinds.of_kind(FAST, each.leaves) for each in (half, run))
    return bool((np.abs(now - before) <= SETTLED * scale).all()) and all(
        relative(a, b) <= REMEMBERS for a, b in zip(*fast, strict=True)
    )


def settle(trial: Trial, slow: Slow, run: Run, count: int) -> Run:
    """More steps along the gradients, params held fixed."""
    given = trial.gradients, trial.params, trial.watched
    return _more_steps(trial.stepper, slow, trial.tiny, *given, run, count)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _more_steps(
    stepper: Stepper,
    slow: Slow,
    size: Array,
    gradients: PyTree,
    params: PyTree,
    watched: list[PyTree],
    run: Run,
    count: Array,
) -> Run:
    batches = jax.tree.leaves(gradients)[0].shape[0]

    def step(_: Array, run: Run) -> Run:
        gradient = jax.tree.map(lambda leaf: leaf[run.steps % batches][None], gradients)
        velocities, _, leaves = steps_of(stepper, size, gradient, params, run.leaves)
        velocity = jax.tree.map(lambda leaf: leaf[0], velocities)
        seen = jnp.stack([optax.tree.vdot(velocity, each) for each in watched])
        pairs = list(zip(leaves, run.leaves, slow.leaves, strict=True))
        by = [new - old for new, old, is_slow in pairs if is_slow]
        return Run(
            [old if is_slow and slow.fixed else new for new, old, is_slow in pairs],
            run.steps + 1,
            jax.tree.map(jnp.add, run.grown, by),
            jax.tree.map(jnp.add, run.sum, velocity),
            optax.tree.add_scale(run.moment, run.steps, velocity),
            jnp.concatenate([run.last[1:], seen[None]]),
            jnp.maximum(run.peak, jnp.abs(seen)),
        )

    return jax.lax.fori_loop(0, count, step, run)


def period_of(
    trial: Trial, run: Run, tolerance: float, typical: np.ndarray | float = 0.0
) -> int | None:
    """After how many steps velocities return."""
    last = np.asarray(run.last)
    if not np.isfinite(last).all():
        raise LimitError(
            "optimizer: its steps along a gradient that stands still are not finite, as those "
            "through a root that is zero there; accepted are steps that are smooth there"
        )
    scale = np.maximum(np.abs(last).max(0), typical)
    window = MOST_PERIODS * trial.batches
    for period in trial.batches * np.arange(1, MOST_PERIODS + 1):
        now, before = last[-window:], last[-window - period : -period]
        if (np.abs(now - before) <= tolerance * scale).all():
            return int(period)
    return None


def _typical(trial: Trial, kinds: Sorted, leaves: list[Array], period: int) -> np.ndarray:
    """Projections of a typical velocity; LimitError unless steps are in proportion to h."""
    gradients = trial.any_gradients(period)
    size = np.sqrt(np.mean([float(jnp.mean(leaf**2)) for leaf in jax.tree.leaves(gradients)]))
    perturbed = [
        leaf + size if kind == SLOW else leaf
        for leaf, kind in zip(trial.perturbed(leaves), kinds.kinds, strict=True)
    ]

    def velocity(size: float) -> PyTree:
        """At half of the whole time."""
        at_half = [
            jnp.asarray(min(r * trial.time / (2 * size), LATE), leaf.dtype)
            if kind == COUNTS
            else leaf
            for leaf, kind, r in zip(perturbed, kinds.kinds, kinds.rates, strict=True)
        ]
        return trial.steps(size, at_half, period, gradients)[0]

    whole, half, *small = (velocity(trial.node / n) for n in (1, 2, 4, 16))
    if not relative(whole, half) <= PROPORTIONAL:
        raise LimitError(
            "optimizer: its steps are not in proportion to the step size as that goes to zero; "
            "accepted are functions of it such as optax.sgd, whose updates are"
        )
    change, next_change = relative(small[0], whole), relative(small[1], small[0])
    if change > SEEN and next_change > SMOOTH * change:
        raise LimitError(
            "optimizer: its steps depend on a power of the step size that is no whole number, such "
            "as its root, so that they have no expansion in it; accepted are smooth functions of it"
        )
    mean = jax.tree.map(lambda leaf: leaf.mean(0), whole)
    return np.array([abs(float(optax.tree.vdot(mean, each))) for each in trial.watched])


def transient(
    trial: Trial, limit: Limit, slow: Slow, state: Run
) -> tuple[Point, PyTree, Callable[[Sequence[int]], PyTree]]:
    """The deviation at the start, its moment, and what params lack of it after some steps."""
    period, settled = limit.period, int(state.steps)
    more = settle(trial, slow, state._replace(grown=none_of(state.grown)), period)
    steps, _, _ = trial.steps(trial.tiny, state.leaves, period)
    mean = jax.tree.map(lambda leaf: leaf.mean(0), steps)
    within = jax.tree.map(lambda leaf: jnp.cumsum(leaf, 0) - leaf, steps)
    whole = jax.tree.map(lambda total, m: total - settled * m, state.sum, mean)
    pairs = zip(state.grown, more.grown, strict=True)
    of_slow = [(total - settled / period * last) / trial.tiny for total, last in pairs]

    def behind(numbers: Sequence[int]) -> PyTree:
        none, rows, run = jax.tree.map(np.zeros_like, whole), {}, first_run(trial, slow)
        for number in sorted({int(n) for n in numbers if n < settled}):
            run = settle(trial, slow, run, number - int(run.steps))
            phase = number % period
            rows[number] = jax.tree.map(
                lambda total, e, inner, m, n=number, j=phase: np.asarray(
                    total - n * m - e - (inner[j] - j * m)
                ),
                *(run.sum, whole, within, mean),
            )
        picked = [rows.get(int(number), none) for number in numbers]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *picked)

    # Of whole periods, so that what steps do within one is not in it.
    moment = jax.tree.map(
        lambda total, inner, m: (
            total
            - settled * (settled - 1) / 2 * m
            + settled
            / period
            * (inner - jnp.arange(period).reshape(-1, *(1,) * (inner.ndim - 1)) * m).sum(0)
        ),
        *(state.moment, within, mean),
    )
    return Point(whole, of_slow, jnp.zeros(())), moment, behind


def none_of(leaves: list[Array]) -> list[Array]:
    """Zeros like these."""
    return [jnp.zeros_like(leaf) for leaf in leaves]


def second_order(
    trial: Trial, limit: Limit, given: Given, start: Point, state: Run
) -> Callable[[float], PyTree]:
    """What the transient leaves of the second order; LimitError unless steps follow the limit.

    The optimiser steps along gradients that change as they do along the limit. At last its
    velocity is that of the limit and a little more, in proportion to the step size. Where steps
    of sizes h, h/2 and h/4 stand at the same time tells the second order, at h itself: as
    velocities may change fast with small gradients, its derivative at zero would not. It is to be
    the same at a quarter of h; the larger of the two is taken, which grows where h is too large for
    an expansion, as behind a root that is zero at first.

    Returns:
      Maps a step size to the second order of params after the transient.
    """
    settled, period = int(state.steps), limit.period
    changing = (
        trial.gradients,
        trial.derivative(compiled_velocity(limit, given, start, trial.phase(period))[0]),
    )

    def follow(size: float, periods: int) -> tuple[PyTree, PyTree, PyTree]:
        first = trial.params, trial.initial(size)
        return _follow(limit, given, changing, first, size, periods)

    larger = trial.node * min(1.0, FIRST_SETTLING / settled)
    _, found, there = follow(larger, settled // period)
    if not relative(found, there) <= FOLLOWS:
        raise LimitError(
            "optimizer: its steps do not tend to a velocity that depends on params, gradient "
            "and slow state alone, as where a root is zero along a smooth path; accepted are "
            "steps that do"
        )

    def of_size(size: float) -> PyTree:
        periods = max(1, min(settled, int(trial.time / size)) // period)
        weighted = [
            jax.tree.map(
                lambda total, n=n, weight=weight: weight * total * period / (n * size),
                follow(size / n, n * periods)[0],
            )
            for n, weight in zip(HALVED, CURVED, strict=True)
        ]
        return jax.tree.map(lambda *ends: sum(ends), *weighted)

    def second(size: float) -> PyTree:
        found, nearer = of_size(size), of_size(size / SMALLER)
        larger = optax.tree.norm(nearer) > optax.tree.norm(found)
        return nearer if bool(larger) else found

    return second


@functools.partial(jax.jit, static_argnums=0)
def _follow(
    limit: Limit,
    given: Given,
    changing: tuple[PyTree, PyTree],
    first: tuple[PyTree, list[Array]],
    size: Array,
    periods: Array,
) -> tuple[PyTree, PyTree, PyTree]:
    """Steps along gradients that change in time.

    Returns:
      The sum of the velocities of all periods, the last of them, and the limit's where that is.
    """
    batches = jax.tree.leaves(changing)[0].shape[0]

    def at(number: Any) -> PyTree:
        steps = number * limit.period + jnp.arange(limit.period)
        index = steps % batches
        return jax.tree.map(
            lambda g, d: g[index] + (size * steps).reshape(-1, *(1,) * (g.ndim - 1)) * d[index],
            *changing,
        )

    def more(number: Array, carry: Any) -> Any:
        sums, _, params, leaves = carry
        steps, params, leaves = steps_of(limit.stepper, size, at(number), params, leaves)
        mean = jax.tree.map(lambda leaf: leaf.mean(0), steps)
        return jax.tree.map(jnp.add, sums, mean), mean, params, leaves

    none = jax.tree.map(jnp.zeros_like, first[0])
    total, last, params, leaves = jax.lax.fori_loop(0, periods, more, (none, none, *first))
    slow = [leaf for leaf, kind in zip(leaves, limit.kinds, strict=True) if kind == SLOW]
    point = Point(params, slow, periods * limit.period * size)
    there, _ = limit.velocity_along(given, point, at(periods - 1))
    return total, last, there
