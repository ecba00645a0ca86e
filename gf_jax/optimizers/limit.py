"""What an optimiser does as its step size goes to zero, found from its program.

An optimiser is a function from the step size h to an optax transformation. With params x and its
state S, one step is ``u, S⁺ = optimizer(h).update(∇f(x), S, x)`` and x⁺ = x + u; the time of a step
is h.
The leaves of S are sorted by trying them:

    slow    s moves by an amount in proportion to h, as params do;
    fast    y forgets where it was, at a rate that h does not change: a moving average;
    counts  a whole number that grows by the same in every step;
    held    all that does not change.

A leaf may be large or small as h is: what is called slow or fast is then the leaf over h, as of
velocities that the step size is in, or the leaf times h, as of sums of all gradients.

With A the velocity u/h of params and of slow leaves, and y⁺ = B(x, y, h), the fast leaves stand on
y₀(x) + h y₁(x) after a transient, and the steps on x(kh) + h e(kh) + O(h²), where

    x' = F = A(x, y₀, 0),   (I − B_y) y₁ = B_h − m Dy₀ F,   G = A_y y₁ + A_h,
    e' = DF e + G − (m/2) DF F,   e(0) = Σ_k (A(x₀, y_k, 0) − F(x₀)),

x here being params and slow leaves together, y_k the fast leaves after k steps at the start, and m
the *period*: the steps after which whole numbers in S, or batches, begin again; A and B are then
those of the m steps. The partial sums of e(0) are the first iterations, and within a period the
steps stand apart from its ends by h Σ_{i<j} (A_i − F).

Limits h → 0 are taken by polynomials through four small step sizes, since an optimiser may be no
number at h = 0 (bias correction of decays such as 1 − h is 0/0 there). What a count does in the
limit depends on the optimiser: where it only says that the start is past, it is taken to be late;
where steps depend on it times h, as with schedules of time, it is time, and a part of the state
whose velocity is 1.

A limit is found, from a starting point, by ``gf_jax.optimizers.search``.

Sources: the expansion is that of one-step methods (Hairer, Nørsett & Wanner, Solving ODEs I, II.8)
on the invariant manifold of the fast leaves. For special optimisers it is known: momentum
(Kovachki & Stuart, JMLR 22, 2021), Adam (Ma, Wu & E 2021; Cattaneo, Klusowski & Shigida 2024).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gf_jax.optimizers.steps import Stepper, steps_of

PyTree = Any

NODES = (1.0, 2.0, 3.0, 4.0)  # step sizes of the polynomials, in the smallest of them
VALUE = (4.0, -6.0, 4.0, -1.0)  # weights of their value at 0
SLOPE = (-13 / 3, 19 / 2, -7.0, 11 / 6)  # of their derivative there, times the smallest
LATE = 10**9  # of a count: what it says of the start is over
HELD, COUNTS, SLOW, FAST = "held", "counts", "slow", "fast"


class Point(NamedTuple):
    """A point of the limit: params, slow leaves, and time."""

    params: PyTree
    slow: list[Array]
    time: Array


class Given(NamedTuple):
    """Arrays that the equation takes beside a point.

    Attributes:
      step_size: the smallest node, in time per step.
      held: for every node the held leaves, and counts as they are at first.
      initial: the fast leaves before the first step.
      guess: the fast leaves where they have settled at the start.
    """

    step_size: Float[Array, ""]
    held: list[Array]
    initial: list[Array]
    guess: list[Array]


class _Moved(NamedTuple):
    """What a period of steps does: velocities of its steps, of slow leaves, and fast leaves."""

    steps: PyTree
    slow: list[Array]
    fast: list[Array]


class _Reduced(NamedTuple):
    """The limit at a point: its velocity, and what was found on the way."""

    velocity: Point
    fast: list[Array]
    steps: PyTree
    gradients: PyTree


@dataclasses.dataclass(frozen=True)
class Limit:
    """The limit of an optimiser as an equation; holds no arrays, so that what is compiled serves.

    Gradients are given as functions that map params to the gradients of the steps of a period,
    leaves of shape (period, ...).

    Attributes:
      stepper: how it steps.
      kinds: of every leaf of its state, as the next four.
      names: of every leaf.
      rates: growth of counts in each step; 0 of other leaves.
      is_time: whether a count is a measure of time.
      decays: of fast leaves, in a period; 0 of other leaves.
      rounds: Newton steps after which the fast leaves are found.
      period: steps of a period.
      fades: whether a fast leaf, where time counts, is that of as many steps as make up the time:
        of leaves whose beginnings a count corrects.
      plain: whether steps are those of plain descent, which need not be run to be known.
      speed: c, if the limit is gradient flow with time c t, that is F = −c ∇f; else None.
    """

    stepper: Stepper
    kinds: tuple[str, ...]
    names: tuple[str, ...]
    rates: tuple[float, ...]
    is_time: tuple[bool, ...]
    decays: tuple[float, ...]
    rounds: int
    period: int
    fades: tuple[bool, ...] = ()
    plain: bool = False
    speed: float | None = dataclasses.field(default=None, compare=False)

    @property
    def timed(self) -> bool:
        """Whether the velocity depends on time by itself."""
        return any(self.is_time)

    def named(self, kind: str) -> list[str]:
        """Names of the leaves of a kind, each once."""
        found = [name for name, own in zip(self.names, self.kinds, strict=True) if own == kind]
        return list(dict.fromkeys(found))

    @property
    def words(self) -> str:
        """Which equation it is, in a sentence."""
        slow, fast = self.named(SLOW), self.named(FAST)
        sentence = "an equation in the parameters" + (f" and {_and(slow)}" if slow else " alone")
        if fast:
            sentence += f", on which {_and(fast)} follow{'s' if len(fast) == 1 else ''} at once"
        if self.timed:
            sentence += "; its velocity depends on time by itself"
        if self.period > 1:
            sentence += f"; {self.period} steps make a period"
        return sentence

    # What follows is traced.

    def velocity(self, given: Given, gradients: Callable[[PyTree], PyTree], point: Point) -> Point:
        """F, the velocity of a point."""
        return self._reduced(given, gradients, point).velocity

    def velocity_along(
        self, given: Given, point: Point, gradients: PyTree
    ) -> tuple[PyTree, list[Array]]:
        """The velocity of params and of slow leaves for gradients of the steps that are given."""
        found = self.velocity(given, lambda _: gradients, point)
        return found.params, found.slow

    def expansion(
        self,
        given: Given,
        gradients: Callable[[PyTree], PyTree],
        products: Callable[[PyTree, PyTree], PyTree],
        point: Point,
        *along: Point,
    ) -> tuple[Point, Point, Point, list[Point]]:
        """The velocity, what the first order adds to it, and derivatives of the velocity.

        Args:
          given: arrays.
          gradients: maps params to those of the steps.
          products: maps params and a stack of directions, one for each step, to the derivatives
            of the gradients of the steps along them.
          point: where.
          along: directions in which the velocity is differentiated.

        Returns:
          F; G − (m/2) DF F; DF F; and DF times every direction.
        """
        found, derivative = jax.linearize(lambda p: self._reduced(given, gradients, p), point)
        bend, *others = (
            self._where_still(found.gradients, derivative(vector))
            for vector in (found.velocity, *along)
        )
        fast, slopes = found.fast, None
        if self.period > 1:
            slopes = products(point.params, _before(found.steps))

        def at(y: list[Array], slopes: PyTree = None, *, raw: bool = False) -> _Moved:
            return self._at_nodes(given, point, y, found.gradients, slopes, raw=raw)

        def raw(y: list[Array]) -> list[Array]:
            return _combine(VALUE, at(y, raw=True).fast)

        def flat(moved: _Moved, weights: Sequence[float]) -> tuple[PyTree, list[Array]]:
            return _combine(weights, (_mean(moved.steps, 1), moved.slow))

        growth = [s / given.step_size for s in _combine(SLOPE, at(fast, slopes, raw=True).fast)]
        drift = [g - self.period * d for g, d in zip(growth, bend.fast, strict=True)]
        shift = [jnp.zeros_like(leaf) for leaf in fast]
        for _ in range(self.rounds):
            _, carried = jax.jvp(raw, (fast,), (shift,))
            rest = [c + d - s for c, d, s in zip(carried, drift, shift, strict=True)]
            shift = self._newton(shift, rest)
        _, by_state = jax.jvp(lambda y: flat(at(y), VALUE), (fast,), (shift,))
        by_size = flat(at(fast, slopes), SLOPE)
        by_state = zero_where_still(found.gradients, by_state[0]), by_state[1]
        added, added_slow = jax.tree.map(lambda y, h: y + h / given.step_size, by_state, by_size)
        added = Point(added, added_slow, jnp.zeros_like(point.time))
        first = jax.tree.map(lambda g, b: g - self.period / 2 * b, added, bend.velocity)
        return found.velocity, first, bend.velocity, [each.velocity for each in others]

    @staticmethod
    def _where_still(gradients: PyTree, derivative: _Reduced) -> _Reduced:
        velocity = derivative.velocity
        params = zero_where_still(gradients, velocity.params)
        return derivative._replace(velocity=velocity._replace(params=params))

    def offsets(self, given: Given, gradients: Callable[[PyTree], PyTree], point: Point) -> PyTree:
        """By how much the steps of a period stand apart from its ends, over h, (period, ...)."""
        found = self._reduced(given, gradients, point)
        return jax.tree.map(
            lambda before, mean: before - _column(jnp.arange(self.period), before) * mean,
            _before(found.steps),
            found.velocity.params,
        )

    def settle(self, given: Given, point: Point, gradients: PyTree) -> list[Array]:
        """Where fast leaves settle along gradients of the steps, from the guess."""
        fast = given.guess
        for _ in range(self.rounds):
            after = _combine(VALUE, self._at_nodes(given, point, fast, gradients, raw=True).fast)
            fast = self._newton(fast, [a - b for a, b in zip(after, fast, strict=True)])
        return fast

    def _reduced(
        self, given: Given, gradients: Callable[[PyTree], PyTree], point: Point
    ) -> _Reduced:
        slopes = gradients(point.params)
        fast = self.settle(given, point, slopes)
        moved = self._at_nodes(given, point, fast, slopes)
        steps, slow = _combine(VALUE, (moved.steps, moved.slow))
        velocity = Point(_mean(steps, 0), slow, jnp.ones_like(point.time))
        return _Reduced(velocity, fast, steps, slopes)

    def _newton(self, fast: list[Array], rest: list[Array]) -> list[Array]:
        """One step to where fast leaves settle, each of them by itself."""
        decays = [d for d, kind in zip(self.decays, self.kinds, strict=True) if kind == FAST]
        return [y + r / (1 - d) for y, r, d in zip(fast, rest, decays, strict=True)]

    def _at_nodes(
        self,
        given: Given,
        point: Point,
        fast: list[Array],
        gradients: PyTree,
        slopes: PyTree = None,
        *,
        raw: bool = False,
    ) -> _Moved:
        """A period of steps at every node.

        Args:
          given: arrays.
          point: where.
          fast: the fast leaves.
          gradients: of the steps.
          slopes: by how much they grow with the step size; None is not at all.
          raw: whether all fast leaves are taken as they are, also those that fade in.
        """

        def one(size: Array, held: list[Array]) -> _Moved:
            of_steps = gradients
            if slopes is not None:
                of_steps = jax.tree.map(lambda g, q: g + size * q, gradients, slopes)
            leaves = self.leaves(size, held, point, fast, given.initial, raw=raw)
            return self.move(size, of_steps, point.params, leaves)

        sizes = given.step_size * jnp.asarray(NODES, point.time.dtype)
        return jax.vmap(one)(sizes, given.held)

    def leaves(
        self,
        size: Array,
        held: list[Array],
        point: Point,
        fast: list[Array],
        initial: list[Array],
        *,
        raw: bool = False,
    ) -> list[Array]:
        """The state of the optimiser at a point; arguments as of ``_at_nodes`` and ``Given``."""
        leaves, slow, steps = [], iter(point.slow), point.time / size
        remembered = iter(zip(fast, initial, strict=True))
        for at, kind in enumerate(self.kinds):
            leaf = held[at]
            if kind == SLOW:
                leaf = next(slow)
            elif kind == FAST:
                leaf, first = next(remembered)
                if not raw and self.fades and self.fades[at]:
                    leaf = leaf + self.decays[at] ** (steps / self.period) * (first - leaf)
            elif self.is_time[at]:
                leaf = leaf + self.rates[at] * steps
            elif kind == COUNTS:
                leaf = leaf + late(self.rates[at], self.period, leaf.dtype)
            leaves.append(leaf)
        return leaves

    def move(self, size: Array, gradients: PyTree, params: PyTree, leaves: list[Array]) -> _Moved:
        """A period of steps of one size, along gradients that are given."""
        if self.plain:
            return _Moved(jax.tree.map(jnp.negative, gradients), [], [])
        moved, _, after = steps_of(self.stepper, size, gradients, params, leaves)
        pairs = list(zip(leaves, after, self.kinds, strict=True))
        time = self.period * size
        slow = [(b - a) / time for a, b, kind in pairs if kind == SLOW]
        return _Moved(moved, slow, [b for _, b, kind in pairs if kind == FAST])


compiled_velocity = jax.jit(Limit.velocity_along, static_argnums=0)
compiled_settle = jax.jit(Limit.settle, static_argnums=0)


def late(rate: float, period: int, dtype: Any) -> Array:
    """Growth of a count in very many periods."""
    return jnp.asarray(round(LATE / (rate * period)) * rate * period, dtype)


def _combine(weights: Sequence[float], stack: PyTree) -> PyTree:
    """A weighted sum along the leading axis of all leaves."""
    return jax.tree.map(lambda leaf: jnp.tensordot(jnp.array(weights), leaf, 1), stack)


def _mean(stack: PyTree, axis: int) -> PyTree:
    return jax.tree.map(lambda leaf: leaf.mean(axis), stack)


def zero_where_still(gradients: PyTree, derivative: PyTree) -> PyTree:
    """A derivative of velocities, 0 where it is no number and no step has a gradient.

    An eps beside a root, as of Adam, makes the derivative 0 times infinity there.
    """

    def cleaned(gradient: Array, leaf: Array) -> Array:
        still = (gradient == 0).all(0) & jnp.isnan(leaf)
        return jnp.where(still, 0.0, leaf)

    return jax.tree.map(cleaned, gradients, derivative)


def _before(steps: PyTree) -> PyTree:
    """Sums of the velocities of all steps before each."""
    return jax.tree.map(lambda leaf: jnp.cumsum(leaf, 0) - leaf, steps)


def _column(values: Array, like: Array) -> Array:
    return values.reshape(-1, *(1,) * (like.ndim - 1))


def _and(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
