"""Finds the continuous limit of an optimiser, by trying what its program does.

Its state is run from the start, along a gradient that stands still and with a step size so small
that nothing but fast leaves moves, until it settles. There every leaf is perturbed and seen to
rest, to move with the step size, or to forget. What is found is then held against the optimiser
itself, in steps along a gradient that changes. An optimiser that has no smooth limit fails one of
these trials, and the property that it lacks is named.
"""

import dataclasses
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
    HELD,
    LATE,
    NODES,
    SLOW,
    Given,
    Limit,
    Optimizer,
    Point,
    Stepper,
    steps_of,
)

PyTree = Any

NODE = 1 / 200  # smallest step size tried, over the smallest of those asked about
TINY = 1e-5  # step size of transients, over that
MOST_PERIODS = 64  # steps that may make a period, in numbers of batches
FIRST_SETTLING, MOST_SETTLING = 256, 2**17  # steps of a transient
DIRECTIONS = 3  # along which velocities are watched
LIKE_BEFORE = 0.1  # relative change of velocities that may yet settle
SETTLED = 1e-5  # of those that have settled
REMEMBERS = 1e-4  # relative change of fast leaves that have settled
VANISHED = 1e-6  # velocity, over the largest of the transient
PROPORTIONAL = 0.1  # relative change of a velocity when the step size is halved
RESTS = 1e-12  # relative motion of what rests
WITH_SIZE = 0.75  # motion at half the step size, over that at the whole one
FORGETS = 1 - 1e-7  # decay from which on nothing is forgotten
GROWS = 0.01  # relative change of where a leaf settles when the step size is doubled
NEVER = 1e18  # a count long after the end, at the tiny step size
MOMENTS = (0.003, 0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)  # of the whole time, to try counts at
MOST_ROUNDS, RESIDUAL = 8, 1e-8  # until fast leaves are found, and to which relative change
EARLY = 3  # periods after which the beginnings of fast leaves are looked at
AGREES = 1e-3  # fast leaves as settled and as found, relative
DRIFT = 1e-3  # step size along gradients that change, over the smallest node
FOLLOWS = 0.05  # velocities of the optimiser and of the limit, relative
SMALL, JUMPS = 1e-3, 0.3  # gradients made small, and the change of velocity with their sign
SAME_SPEED = 1e-6  # relative
UNSETTLED = (
    "optimizer: its steps do not settle within {:,} of them along a gradient that stands still, so "
    "that they follow no equation in time; accepted are states that forget, or that change with "
    "the step size, such as decays 1 - c * h"
)


class LimitError(ValueError):
    """An optimiser has no continuous limit that could be found; says which property it lacks."""


class Start(NamedTuple):
    """The limit of an optimiser from a starting point.

    Attributes:
      limit: the equation.
      given: the arrays that it takes.
      point: where it starts; its time is later than 0 only if the velocity depends on time.
      deviation: e there.
      moment: Σ_k k (A_k − F) of params over the transient; minus DF times it, the second order
        starts from.
      second: what the change of gradients during the transient adds to that.
      settled: steps of the transient.
      behind: maps numbers of steps to what params lack of e(0) after them, leaves of shape
        (numbers, ...); zeros once the transient is over.
    """

    limit: Limit
    given: Given
    point: Point
    deviation: Point
    moment: PyTree
    second: PyTree
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
        return _Search(optimizer, params, gradients, derivative, step_size, time).found()
    except LimitError:
        raise
    except Exception as error:  # the optimiser is a program of the user's
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise LimitError(
            f"optimizer: a step of it failed ({reason}); accepted are optimisers whose update "
            "takes gradients, state and params, and that can be differentiated"
        ) from error


def check_optimizer(optimizer: Any) -> None:
    """Raises ValueError unless an optimiser is a function."""
    if callable(optimizer) and not isinstance(optimizer, optax.GradientTransformation):
        return
    what = "a transformation" if hasattr(optimizer, "update") else repr(optimizer)
    raise ValueError(
        f"optimizer: got {what}; accepted is a function from the step size to an optax "
        "transformation: optax.adam, or lambda h: optax.sgd(h, momentum=0.9)"
    )


def is_descent(optimizer: Optimizer, params: PyTree) -> bool:
    """Whether an optimiser is plain descent, −h times the gradient, by its program."""
    state = optimizer(1.0).init(params)
    if jax.tree.leaves(state):
        return False

    def updates(size: Array, gradient: PyTree) -> PyTree:
        return optimizer(size).update(gradient, state, params)[0]

    program = jax.make_jaxpr(updates)(1.0, params)
    linear = {"mul", "neg", "convert_element_type", "copy", "copy_p"}
    if not {eqn.primitive.name for eqn in program.eqns} <= linear:
        return False
    ones = jax.tree.map(jnp.ones_like, params)
    return all(
        bool((leaf == -size).all())
        for size in (0.5, 2.0)
        for leaf in jax.tree.leaves(updates(jnp.asarray(size), ones))
    )


class _Run(NamedTuple):
    """A state along gradients that stand still, and what its velocities were."""

    leaves: list[Array]
    steps: Array  # done
    sum: PyTree  # of velocities
    moment: PyTree  # of them, each times the steps before it
    last: Array  # projections of the last velocities, (most, directions)
    peak: Array  # of each direction, the largest so far


class _Sorted(NamedTuple):
    """What the leaves of a state are, see ``Limit``."""

    kinds: tuple[str, ...]
    powers: tuple[int | None, ...]
    decays: tuple[float, ...]
    rates: tuple[float, ...]

    def of_kind(self, kind: str, leaves: Sequence[Any]) -> list[Any]:
        return [leaf for leaf, own in zip(leaves, self.kinds, strict=True) if own == kind]


class _Search:
    """The trials of one optimiser at one point.

    All states are over the powers of the step size, once these are known.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        params: PyTree,
        gradients: PyTree,
        derivative: Callable[[PyTree], PyTree],
        step_size: float,
        time: float,
    ) -> None:
        self.optimizer, self.params, self.time = optimizer, params, time
        self.gradients, self.derivative = gradients, derivative
        self.batches = jax.tree.leaves(gradients)[0].shape[0]
        self.node = NODE * step_size
        self.tiny = TINY * self.node
        named, self.structure = jax.tree_util.tree_flatten_with_path(
            optimizer(self.node).init(params)
        )
        self.names = tuple(_name(path) for path, _ in named)
        self.lifts = False
        self.powers: tuple[int | None, ...] = (0,) * len(self.names)
        first, other = self._initial(self.node), self._initial(2 * self.node)
        self.sized = [not np.array_equal(*pair) for pair in zip(first, other, strict=True)]
        self.rests: set[int] = set()
        self.draws = np.random.default_rng(0)
        self.watched = [_like(params, self.draws.normal) for _ in range(DIRECTIONS)]
        self.move = jax.jit(self._move, static_argnums=4)
        self.settle = jax.jit(self._settle, static_argnums=2)

    def found(self) -> Start:
        """The limit, or LimitError."""
        states = jax.tree.leaves(self.optimizer(self.node).init(self.params))
        self.lifts = any(
            jnp.issubdtype(jnp.result_type(leaf), jnp.floating) and jnp.result_type(leaf) != float
            for leaf in states
        )
        warm = self._run()
        most = len(warm.last)
        warm = self.settle(warm, most, self.powers)
        period = self._period(warm, LIKE_BEFORE) or self.batches
        for _ in range(2):
            kinds = self._sorted(warm.leaves, period)
            self.powers = kinds.powers
            state, strict = self._settled(kinds, period)
            if strict == period:
                break
            period, self.powers = strict, (0,) * len(self.names)
        else:
            raise LimitError(UNSETTLED.format(int(state.steps)))
        settled = int(state.steps)
        is_time = self._is_time(kinds, state.leaves, period)
        if self.lifts and any(is_time):
            raise LimitError(
                "optimizer: its steps depend on time, and it rounds part of its state to a lower "
                "precision than that of params; accepted is one of both"
            )
        stepper = self._stepper(kinds.powers)
        limit = Limit(
            stepper, kinds.kinds, self.names, kinds.rates, is_time, kinds.decays, 1, period
        )
        given = self._given(limit, kinds, state.leaves)
        start = self._start(limit, kinds)
        steps, _, _ = self._period_of_steps(self.tiny, state.leaves, period)
        mean = jax.tree.map(lambda leaf: leaf.mean(0), steps)
        limit = self._solved(limit, kinds, given, start, state.leaves, mean)
        self._check_sign(limit, given, start)
        limit = dataclasses.replace(limit, speed=self._speed(limit, given, start))
        deviation, moment, behind = self._transient(limit, kinds, state)
        second = self._second(limit, kinds, given, start, state)
        return Start(limit, given, start, deviation, moment, second, settled, behind)

    def _stepper(self, powers: tuple[int | None, ...]) -> Stepper:
        return Stepper(self.optimizer, self.structure, powers, self.lifts)

    # The transient

    def _run(self) -> _Run:
        """The state before the first step, over the powers of the tiny step size."""
        return _Run(
            self._natural(self._initial(self.tiny), self.tiny),
            jnp.zeros((), int),
            jax.tree.map(jnp.zeros_like, self.params),
            jax.tree.map(jnp.zeros_like, self.params),
            jnp.zeros((2 * MOST_PERIODS * self.batches, DIRECTIONS)),
            jnp.zeros(DIRECTIONS),
        )

    def _settled(self, kinds: _Sorted, period: int) -> tuple[_Run, int]:
        """The run where velocity and fast leaves have settled, and its period."""
        run = self.settle(self._run(), FIRST_SETTLING * self.batches * period, self.powers)
        typical = self._typical(kinds, run.leaves, period)
        while True:
            half, steps = run, int(run.steps)
            run = self.settle(run, steps, self.powers)
            strict = self._period(run, SETTLED, typical)
            if strict and strict != period:
                return run, strict
            if strict and self._has_settled(kinds, half, run, typical, period):
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
        self, kinds: _Sorted, half: _Run, run: _Run, typical: np.ndarray, period: int
    ) -> bool:
        before, now = (np.asarray(each.last)[-period:].mean(0) for each in (half, run))
        scale = np.maximum(np.abs(run.last[-period:]).max(0), typical)
        fast = (kinds.of_kind(FAST, each.leaves) for each in (half, run))
        return bool((np.abs(now - before) <= SETTLED * scale).all()) and all(
            _relative(a, b) <= REMEMBERS for a, b in zip(*fast, strict=True)
        )

    def _settle(self, run: _Run, count: Array, powers: tuple[int | None, ...]) -> _Run:
        """More steps along the gradients, params held fixed."""

        def step(_: Array, run: _Run) -> _Run:
            index = run.steps % self.batches
            gradient = jax.tree.map(lambda leaf: leaf[index][None], self.gradients)
            velocity, _, leaves = self._move(self.tiny, gradient, self.params, run.leaves, powers)
            velocity = jax.tree.map(lambda leaf: leaf[0], velocity)
            seen = jnp.stack([optax.tree.vdot(velocity, each) for each in self.watched])
            return _Run(
                leaves,
                run.steps + 1,
                jax.tree.map(jnp.add, run.sum, velocity),
                optax.tree.add_scale(run.moment, run.steps, velocity),
                jnp.concatenate([run.last[1:], seen[None]]),
                jnp.maximum(run.peak, jnp.abs(seen)),
            )

        return jax.lax.fori_loop(0, count, step, run)

    def _period(
        self, run: _Run, tolerance: float, typical: np.ndarray | float = 0.0
    ) -> int | None:
        """After how many steps velocities return."""
        last = np.asarray(run.last)
        if not np.isfinite(last).all():
            raise LimitError(
                "optimizer: its steps along a gradient that stands still are not finite, as those "
                "through a root that is zero there; accepted are steps that are smooth there"
            )
        scale = np.maximum(np.abs(last).max(0), typical)
        window = MOST_PERIODS * self.batches
        for period in self.batches * np.arange(1, MOST_PERIODS + 1):
            now, before = last[-window:], last[-window - period : -period]
            if (np.abs(now - before) <= tolerance * scale).all():
                return int(period)
        return None

    def _transient(
        self, limit: Limit, kinds: _Sorted, state: _Run
    ) -> tuple[Point, PyTree, Callable[[Sequence[int]], PyTree]]:
        """e at the start, its moment, and what params lack of it after some steps."""
        period, settled = limit.period, int(state.steps)
        steps, _, after = self._period_of_steps(self.tiny, state.leaves, period)
        mean = jax.tree.map(lambda leaf: leaf.mean(0), steps)
        within = jax.tree.map(lambda leaf: jnp.cumsum(leaf, 0) - leaf, steps)
        whole = jax.tree.map(lambda total, m: total - settled * m, state.sum, mean)
        first = self._natural(self._initial(self.tiny), self.tiny)
        slow = [
            ((b - a) - settled / period * (c - b)) / self.tiny
            for a, b, c in zip(*(kinds.of_kind(SLOW, s) for s in (first, state.leaves, after)), strict=True)
        ]

        def behind(numbers: Sequence[int]) -> PyTree:
            none, rows, run = jax.tree.map(np.zeros_like, whole), {}, self._run()
            for number in sorted({int(n) for n in numbers if n < settled}):
                run = self.settle(run, number - int(run.steps), self.powers)
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
            lambda total, inner, m: total
            - settled * (settled - 1) / 2 * m
            + settled / period * (inner - jnp.arange(period).reshape(-1, *(1,) * (inner.ndim - 1)) * m).sum(0),
            *(state.moment, within, mean),
        )
        return Point(whole, slow, jnp.zeros(())), moment, behind

    # What the leaves are

    def _sorted(self, leaves: list[Array], period: int) -> _Sorted:
        """The kinds of all leaves, found from a state near which they are perturbed."""
        _, _, second = self._period_of_steps(self.tiny, leaves, period)
        _, _, third = self._period_of_steps(self.tiny, second, period)
        whole = {
            at: self._whole_number(*each)
            for at, each in enumerate(zip(self.names, leaves, second, third, strict=True))
            if not jnp.issubdtype(each[1].dtype, jnp.floating)
        }
        rates = tuple(whole.get(at, 0) / period for at in range(len(leaves)))
        self.rests = {
            at for at in range(len(leaves)) if at not in whole and self._rests(at, leaves, period)
        }
        while True:
            found = [
                (COUNTS if whole[at] else HELD, 0, 0.0)
                if at in whole
                else self._kind(at, leaves, period)
                for at in range(len(leaves))
            ]
            kinds, powers, decays = (tuple(each) for each in zip(*found, strict=True)) if found else ((),) * 3
            if powers == self.powers:
                break
            # Those of others may be seen only now.
            leaves = [
                leaf * self.tiny ** ((old or 0) - (new or 0)) if old != new else leaf
                for leaf, old, new in zip(leaves, self.powers, powers, strict=True)
            ]
            self.powers = powers
        return _Sorted(kinds, powers, decays, rates)

    def _rests(self, at: int, leaves: list[Array], period: int) -> bool:
        """Whether a leaf stays where it is put."""
        other = list(leaves)
        for share in (1.0, 0.5):
            other[at] = share * self._perturbed(leaves)[at]
            _, _, after = self.move(
                self.node, self._any_gradients(period), self.params, other, self.powers
            )
            if not _relative(other[at], after[at]) <= RESTS:
                return False
        return True

    def _kind(self, at: int, leaves: list[Array], period: int) -> tuple[str, int | None, float]:
        """Kind, power and decay of one leaf."""
        name, known = self.names[at], self.powers[at]
        if at in self.rests:
            return HELD, None if self.sized[at] else 0, 0.0
        known = known or 0
        found = {self._moves(at, leaves, period, sign) for sign in (1, -1)}
        if len(found) > 1:
            raise LimitError(
                f"optimizer: {name} in its state moves one way only, as a running maximum, so that "
                "its limit is not smooth; accepted are states that forget both ways"
            )
        (kind,) = found
        if kind != FAST:
            return kind, known, 0.0
        perturbed = self._perturbed(leaves)
        other = list(perturbed)
        other[at] = self._perturbed(perturbed)[at]
        by = other[at] - perturbed[at]

        def after(leaves: list[Array], size: float) -> Array:
            return self._period_of_steps(size, leaves, period)[2][at]

        here = after(perturbed, self.tiny)
        decay = float(jnp.vdot(by, after(other, self.tiny) - here) / jnp.vdot(by, by))
        if abs(decay) < FORGETS and np.isfinite(decay):
            settles = [
                perturbed[at] + (a - perturbed[at]) / (1 - decay)
                for a in (here, after(perturbed, 2 * self.tiny))
            ]
            grows = _relative(settles[1], settles[0])
            return FAST, known + (1 if grows > GROWS else 0), decay
        if known >= 0 and abs(decay - 1) <= 1 - FORGETS:
            return SLOW, known - 1, 0.0  # a sum: times the step size it is slow
        raise LimitError(
            f"optimizer: {name} in its state does not forget; accepted are states that do, that "
            "rest, or that change with the step size"
        )

    def _moves(self, at: int, leaves: list[Array], period: int, sign: int) -> str:
        """Whether a leaf rests, or moves with the step size, from a perturbed state."""
        perturbed, gradients = self._perturbed(leaves), self._any_gradients(period)
        if sign < 0:
            perturbed[at] = 0.5 * perturbed[at]
        whole, half = (
            float(
                jnp.linalg.norm(
                    self.move(size, gradients, self.params, perturbed, self.powers)[2][at]
                    - perturbed[at]
                )
            )
            for size in (self.node, self.node / 2)
        )
        if whole <= RESTS * float(jnp.linalg.norm(perturbed[at])):
            return HELD
        return SLOW if half < WITH_SIZE * whole else FAST

    @staticmethod
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

    def _perturbed(self, leaves: list[Array]) -> list[Array]:
        """The state with all floating-point numbers moved a little, upwards."""
        squares = [float(jnp.mean(leaf**2)) for leaf in jax.tree.leaves(self.gradients)]
        more = 1e-3 * np.sqrt(np.mean(squares))

        def moved(leaf: Array) -> Array:
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                return leaf
            share, some = (self.draws.uniform(0.5, 1.5, leaf.shape) for _ in range(2))
            return leaf * (1 + 0.1 * share) + more * some

        return [leaf if at in self.rests else moved(leaf) for at, leaf in enumerate(leaves)]

    def _any_gradients(self, period: int) -> PyTree:
        """Gradients like those at the start, of which no leaf is zero."""
        return jax.tree.map(
            lambda leaf: leaf * (1 + 0.3 * self.draws.normal(size=leaf.shape)),
            jax.tree.map(jnp.add, *(
                self._phase(period),
                _like(self._phase(period), self.draws.normal, 0.3),
            )),
        )  # fmt: skip

    def _typical(self, kinds: _Sorted, leaves: list[Array], period: int) -> np.ndarray:
        """Projections of a typical velocity; LimitError unless steps are in proportion to h."""
        gradients = self._any_gradients(period)
        size = np.sqrt(np.mean([float(jnp.mean(leaf**2)) for leaf in jax.tree.leaves(gradients)]))
        perturbed = [
            leaf + size if kind == SLOW else leaf
            for leaf, kind in zip(self._perturbed(leaves), kinds.kinds, strict=True)
        ]

        def velocity(size: float) -> PyTree:
            """At half of the whole time."""
            at_half = [
                jnp.asarray(min(r * self.time / (2 * size), LATE), leaf.dtype)
                if kind == COUNTS
                else leaf
                for leaf, kind, r in zip(perturbed, kinds.kinds, kinds.rates, strict=True)
            ]
            return self.move(size, gradients, self.params, at_half, self.powers)[0]

        whole, half = velocity(self.node), velocity(self.node / 2)
        if not _relative(whole, half) <= PROPORTIONAL:
            raise LimitError(
                "optimizer: its steps are not in proportion to the step size as that goes to zero; "
                "accepted are functions of it such as optax.sgd, whose updates are"
            )
        mean = jax.tree.map(lambda leaf: leaf.mean(0), whole)
        return np.array([abs(float(optax.tree.vdot(mean, each))) for each in self.watched])

    def _is_time(
        self, kinds: _Sorted, settled: list[Array], period: int
    ) -> tuple[bool, ...]:
        """Whether velocities depend on a count times the step size."""
        base = self._perturbed(settled)

        def velocity(at: int, count: float) -> PyTree:
            leaves = [
                jnp.full(leaf.shape, NEVER) if kind == COUNTS else leaf
                for leaf, kind in zip(base, kinds.kinds, strict=True)
            ]
            leaves[at] = jnp.full(leaves[at].shape, count)
            moved, _, after = self._period_of_steps(self.tiny, leaves, period)
            pairs = zip(kinds.of_kind(SLOW, leaves), kinds.of_kind(SLOW, after), strict=True)
            return moved, [(b - a) / self.tiny for a, b in pairs]

        def is_time(at: int) -> bool:
            if kinds.kinds[at] != COUNTS:
                return False
            try:
                late = velocity(at, NEVER)
                rate = kinds.rates[at] * self.time / self.tiny
                return any(_relative(velocity(at, rate * m), late) > SETTLED for m in MOMENTS)
            except TypeError:  # what takes whole numbers only, as an index, is no function of time
                return False

        return tuple(is_time(at) for at in range(len(kinds.kinds)))

    # The equation

    def _given(self, limit: Limit, kinds: _Sorted, settled: list[Array]) -> Given:
        states = [self._initial(self.node * n) for n in NODES]
        held = []
        for at, first in enumerate(zip(*states, strict=True)):
            leaves = list(first)
            if kinds.kinds[at] == HELD and not self.sized[at]:
                leaves = [settled[at]] * len(NODES)
            stack = jnp.stack([jnp.asarray(leaf) for leaf in leaves])
            held.append(stack.astype(float) if limit.is_time[at] else stack)
        initial = kinds.of_kind(FAST, self._natural(self._initial(self.tiny), self.tiny))
        return Given(jnp.asarray(self.node), held, initial, kinds.of_kind(FAST, settled))

    def _start(self, limit: Limit, kinds: _Sorted) -> Point:
        """The first point: behind a period of tiny steps if time counts, since 0 may be singular."""
        params, time = self.params, 0.0
        leaves = self._natural(self._initial(self.node), self.node)
        if limit.timed:
            _, params, leaves = self._period_of_steps(self.node, leaves, limit.period)
            time = self.node * limit.period
        return Point(params, kinds.of_kind(SLOW, leaves), jnp.asarray(time))

    def _solved(
        self,
        limit: Limit,
        kinds: _Sorted,
        given: Given,
        start: Point,
        settled: list[Array],
        mean: PyTree,
    ) -> Limit:
        """The limit with as many rounds as fast leaves take to be found from others."""
        if not given.guess:
            return dataclasses.replace(limit, rounds=0)
        guess = kinds.of_kind(FAST, self._perturbed(settled))
        gradients = self._phase(limit.period)
        once = jax.jit(lambda guess: limit.settle(given._replace(guess=guess), start, gradients))
        for rounds in range(MOST_ROUNDS):
            following = once(guess)
            change, guess = _relative(following, guess), following
            if change <= RESIDUAL:
                break
        else:
            raise LimitError(
                f"optimizer: {' and '.join(limit.named(FAST))} in its state settle nowhere that "
                "each of them finds by itself; accepted are states of moving averages"
            )
        if not limit.timed and not _relative(guess, given.guess) <= AGREES:
            raise LimitError(
                f"optimizer: {' and '.join(limit.named(FAST))} in its state settle at values that "
                "depend on where they came from; accepted are states that forget"
            )
        # One more than it takes to near them, since roots of what should be positive follow.
        limit = dataclasses.replace(limit, rounds=rounds + 1)
        return dataclasses.replace(limit, fades=self._fades(limit, kinds, given, start, mean))

    def _fades(
        self, limit: Limit, kinds: _Sorted, given: Given, start: Point, settled: PyTree
    ) -> tuple[bool, ...]:
        """Fast leaves of which a count of time corrects the beginning."""
        fades = [False] * len(kinds.kinds)
        if not limit.timed:
            return tuple(fades)
        early = start._replace(time=jnp.asarray(EARLY * self.node * limit.period))

        def away(fades: list[bool]) -> float:
            tried = dataclasses.replace(limit, fades=tuple(fades))
            return _relative(settled, self._velocity(tried, given, early)(self._phase(limit.period)))

        least = away(fades)
        for at, (kind, decay) in enumerate(zip(kinds.kinds, kinds.decays, strict=True)):
            if kind == FAST and decay > 0:
                other = [*fades[:at], True, *fades[at + 1 :]]
                if (found := away(other)) < least:
                    least, fades = found, other
        return tuple(fades)

    def _check_sign(self, limit: Limit, given: Given, start: Point) -> None:
        """Refuses steps that jump where an entry of the gradient passes zero."""
        several = any(leaf[0].size > 1 for leaf in jax.tree.leaves(self.gradients))

        def some(leaf: Array) -> np.ndarray:
            """Entries that are made small, never all of a leaf: that may be scaled as a whole."""
            chosen = self.draws.random(leaf.shape[1:]) < 0.5
            if several and chosen.all():
                chosen.flat[0] = False
            return chosen

        which, of_steps = jax.tree.map(some, self.gradients), self._phase(limit.period)
        velocity = self._velocity(limit, given, start)
        first, second = (
            velocity(
                jax.tree.map(lambda g, w, s=s: jnp.where(w, s * SMALL * g, g), of_steps, which)
            )
            for s in (1, -1)
        )

        def there(tree: PyTree) -> float:
            return _norm(jax.tree.map(lambda leaf, w: jnp.where(w, leaf, 0), tree, which))

        if there(jax.tree.map(jnp.subtract, first, second)) > JUMPS * there(velocity(of_steps)):
            raise LimitError(
                "optimizer: its steps jump where an entry of the gradient changes its sign, as "
                "those of sign descent do, and of Adam with a small eps at fixed decays, so that "
                "its limit is not smooth; accepted are a larger eps, or decays that depend on the "
                "step size, such as lambda h: optax.adam(h, b1=1 - 100 * h, b2=1 - h)"
            )

    def _second(
        self, limit: Limit, kinds: _Sorted, given: Given, start: Point, state: _Run
    ) -> PyTree:
        """What the second order starts from; LimitError unless the optimiser follows the limit.

        The optimiser steps along gradients that change as they do along the limit. At last its
        velocity is that of the limit and a little more, in proportion to the step size. By how
        much less the steps before were changed by the change of gradients is of the second order.
        """
        settled, period = int(state.steps), limit.period
        size = DRIFT * self.node * min(1.0, FIRST_SETTLING / settled) ** 3
        half = settled // (2 * period)
        drift = self.derivative(self._velocity(limit, given, start)(self._phase(period)))

        def at(number: Array, speed: Array) -> PyTree:
            steps = number * period + jnp.arange(period)
            index, time = steps % self.batches, speed * size * steps
            return jax.tree.map(
                lambda g, d: g[index] + time.reshape(-1, *(1,) * (g.ndim - 1)) * d[index],
                *(self.gradients, drift),
            )

        def follow(params: PyTree, leaves: list[Array], speed: Array) -> Any:
            """Sums of velocities, and the last of them, after half of the steps and all of them."""

            def more(number: Array, carry: Any) -> Any:
                sums, _, params, leaves = carry
                of_steps = at(number, speed)
                steps, params, leaves = self._move(size, of_steps, params, leaves, self.powers)
                last = jax.tree.map(lambda leaf: leaf.mean(0), steps)
                return jax.tree.map(jnp.add, sums, last), last, params, leaves

            none = jax.tree.map(jnp.zeros_like, params)
            first = jax.lax.fori_loop(0, half, more, (none, none, params, leaves))
            whole = jax.lax.fori_loop(half, 2 * half, more, first)
            _, last, params, leaves = whole
            time = jnp.asarray(2 * half * period * size)
            point = Point(params, kinds.of_kind(SLOW, leaves), time)
            there, _ = limit.velocity_along(given, point, at(2 * half - 1, speed))
            return first[:2], whole[:2], there

        compiled = jax.jit(follow)
        leaves = self._natural(self._initial(size), size)
        still, moving = (compiled(self.params, leaves, speed) for speed in (0.0, 1.0))
        if not _relative(moving[1][1], moving[2]) <= FOLLOWS:
            raise LimitError(
                "optimizer: its steps do not tend to a velocity that depends on params, gradient "
                "and slow state alone, as where a root is zero along a smooth path; accepted are "
                "steps that do"
            )
        (_, middle), (total, last) = jax.tree.map(jnp.subtract, moving[:2], still[:2])

        def beginning(total: Array, middle: Array, last: Array) -> Array:
            """The sum over all periods of what is not on the line that the second half is on."""
            slope = (last - middle) / half
            line = 2 * half * last - slope * half * (2 * half - 1)
            return period * (total - line) / size

        return jax.tree.map(beginning, total, middle, last)

    def _speed(self, limit: Limit, given: Given, start: Point) -> float | None:
        """c, if the velocity is −c times the gradient wherever that is tried."""
        if start.slow or limit.timed or self.batches > 1:
            return None
        speeds = []
        for scale in (1.0, 1e-3, 1e3, 1.0, 1.0):
            one = jax.tree.map(lambda leaf: leaf[0], self.gradients)
            gradient = _like(one, self.draws.normal, scale)
            point = start._replace(params=_like(self.params, self.draws.normal))
            repeated = jax.tree.map(
                lambda leaf: jnp.broadcast_to(leaf, (limit.period, *leaf.shape)), gradient
            )
            velocity = self._velocity(limit, given, point)(repeated)
            norm = optax.tree.vdot(gradient, gradient)
            speed = -float(optax.tree.vdot(velocity, gradient) / norm)
            if not _relative(velocity, jax.tree.map(lambda g: -speed * g, gradient)) < SAME_SPEED:
                return None
            speeds.append(speed)
        same = max(speeds) - min(speeds) <= SAME_SPEED * max(speeds) and min(speeds) > 0
        return float(np.mean(speeds)) if same else None

    def _velocity(self, limit: Limit, given: Given, point: Point) -> Callable[[PyTree], PyTree]:
        """Maps gradients of the steps to the velocity of params at a point."""
        compiled = self._compiled_velocity(limit)
        return lambda gradients: compiled(given, point, gradients)[0]

    @functools.cache  # noqa: B019
    def _compiled_velocity(self, limit: Limit) -> Callable:
        return jax.jit(limit.velocity_along)

    # Steps

    def _period_of_steps(self, size: float, leaves: list[Array], period: int) -> Any:
        """Velocities, params and state of a period from its beginning."""
        return self.move(size, self._phase(period), self.params, leaves, self.powers)

    def _move(
        self,
        size: Any,
        gradients: PyTree,
        params: PyTree,
        leaves: list[Array],
        powers: tuple[int | None, ...],
    ) -> tuple[PyTree, PyTree, list[Array]]:
        size = jnp.asarray(size)
        first = self._initial(size)
        leaves = [
            jnp.asarray(own, leaf.dtype) if power is None else leaf
            for leaf, own, power in zip(leaves, first, powers, strict=True)
        ]
        return steps_of(self._stepper(powers), size, gradients, params, leaves)

    def _initial(self, size: Any) -> list[Array]:
        """The state before the first step, in double precision."""
        state = self.optimizer(size).init(self.params)
        leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(state)]
        return [
            leaf.astype(float) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
            for leaf in leaves
        ]

    def _natural(self, leaves: list[Array], size: float) -> list[Array]:
        return [
            leaf / size**power if power else leaf
            for leaf, power in zip(leaves, self.powers, strict=True)
        ]

    def _phase(self, period: int) -> PyTree:
        """Gradients of the steps of a period, of batches in turn."""
        index = np.arange(period) % self.batches
        return jax.tree.map(lambda leaf: leaf[index], self.gradients)


def _like(tree: PyTree, draw: Callable, scale: float = 1.0) -> PyTree:
    """A random tree of that shape, with entries about as large as the whole's are."""
    leaves = jax.tree.leaves(tree)
    size = np.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in leaves) / sum(x.size for x in leaves))
    return jax.tree.map(lambda leaf: scale * max(size, 1e-30) * draw(size=leaf.shape), tree)


def _name(path: Any) -> str:
    """The name of a leaf in an optimiser's state: that of the field it is in."""
    fields = [key.name for key in path if isinstance(key, jax.tree_util.GetAttrKey)]
    known = [name for name in fields if name not in ("inner_state", "inner_states")]
    return known[-1] if known else "what it keeps"


def _norm(tree: PyTree) -> float:
    return float(optax.tree.norm(tree))


def _relative(one: PyTree, other: PyTree) -> float:
    """Distance over the norm; 0 if both are the same."""
    apart = _norm(jax.tree.map(jnp.subtract, one, other))
    return apart / max(_norm(one), np.finfo(float).tiny) if apart else 0.0
