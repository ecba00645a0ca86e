"""Optimisers that scale every entry of the gradient by what they remember of its square.

Of such an optimiser, RMSProp for one, a step along g and a memory ν is

    ν⁺ = B(ν, g),   w⁺ = w + s A(ν, g),

entry by entry, A odd and B even in g. Let g alternate between g + q and g − q from step to step.
The memory then alternates between ν + σ and ν − σ, with −σ = (∂B/∂ν) σ + (∂B/∂g) q, and on
average both move by the mean of the two steps, in which only the square of every entry of q
counts to leading order: for ν' = c (g² − ν) that is c (g² + q² − ν). What alternates in a step is
−s D q, D diagonal and dependent on q² as ν⁺ is, so that with q = H v the oscillation v neither
grows nor decays where D H v = (2/s) v: D^½ H D^½ is the Hessian in the optimiser's metric.

Source: Cohen, Damian et al., Understanding Optimization in Deep Learning with Central Flows, ICLR
2025, for RMSProp with σ = 0; found from the program here.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from gf_jax.optimizers.steps import Optimizer, check_optimizer, failed, is_descent

PyTree = Any
Vector = Float[Array, " parameters"]

MEMORY, COUNT, HELD = "memory", "count", "held"
TRIED = 8  # params, of an optimiser that is tried beforehand
STEPS = 3  # until the memory is that of some gradient
LEAST = 1e-10  # q² with which derivatives by it are taken, over g² and the memory
SAME = 1e-9  # relative, of results that are to be equal
ACCEPTED = (
    "accepted by the central flow are steps that scale every entry of the gradient by a memory "
    "of its square, those of optax.sgd, optax.rmsprop and optax.adagrad"
)


class Local(NamedTuple):
    """What an optimiser does near a point, a vector for each, entry by entry, of JAX or NumPy.

    Attributes:
      root: square root of the metric, D^½.
      by_memory, by_square: derivatives of log D by the memory and by q².
      moved: of the mean velocity of params by gradient and by q².
      remembered: of that of the memory, likewise.
      rate: at which the memory forgets.
    """

    root: Any
    by_memory: Any
    by_square: Any
    moved: tuple[Any, Any]
    remembered: tuple[Any, Any]
    rate: Any


@dataclasses.dataclass(frozen=True)
class Scaling:
    """An optimiser as it is on average; holds no arrays.

    Attributes:
      optimizer: the function of the step size; None is plain descent.
      kinds: of the leaves of its state.
    """

    optimizer: Optimizer | None = None
    kinds: tuple[str, ...] = ()

    @property
    def remembers(self) -> bool:
        """Whether there is a memory."""
        return MEMORY in self.kinds

    def memory(self, size: float, params: Vector) -> Vector:
        """The memory before the first step; empty if there is none."""
        if self.optimizer is None or not self.remembers:
            return params[:0]
        leaves = jax.tree.leaves(self.optimizer(size).init(params))
        return jnp.asarray(leaves[self.kinds.index(MEMORY)])

    def step(self, size: Any, gradient: Vector, memory: Vector, time: Any) -> tuple[Vector, Vector]:
        """The velocity of params in one step, and the memory after it."""
        if self.optimizer is None:
            return -gradient, memory
        transformation, params = self.optimizer(size), jnp.zeros_like(gradient)
        state = transformation.init(params)
        of_kind = {MEMORY: memory, COUNT: jnp.asarray(time / size)}
        pairs = zip(self.kinds, jax.tree.leaves(state), strict=True)
        leaves = [of_kind.get(kind, leaf) for kind, leaf in pairs]
        state = jax.tree.unflatten(jax.tree.structure(state), leaves)
        updates, after = transformation.update(gradient, state, params)
        if self.remembers:
            memory = jax.tree.leaves(after)[self.kinds.index(MEMORY)]
        return updates / size, memory

    def averaged(
        self, size: Any, gradient: Vector, spread: Vector, memory: Vector, time: Any
    ) -> tuple[Vector, Vector]:
        """Mean velocities of params and memory while every entry of the gradient alternates.

        Args:
          size: step size.
          gradient: its mean.
          spread: q², the square of what alternates.
          memory: its mean.
          time: iteration times step size.
        """
        if not self.remembers:
            return self.step(size, gradient, memory, time)
        ahead, back, _ = self._apart(size, gradient, spread, memory, time)
        velocity, after = jax.tree.map(lambda one, other: (one + other) / 2, ahead, back)
        return velocity, (after - memory) / size

    def metric(
        self, size: Any, gradient: Vector, spread: Vector, memory: Vector, time: Any
    ) -> Vector:
        """D; arguments as of ``averaged``."""
        if not self.remembers:
            return -self.step(size, jnp.ones_like(gradient), memory, time)[0]
        spread = jnp.maximum(spread, LEAST * (gradient**2 + memory))
        ahead, back, apart = self._apart(size, gradient, spread, memory, time)
        found = (back[0] - ahead[0]) / (2 * apart)
        return jnp.where(found > 0, found, 1.0)  # of an entry that never moves

    def local(
        self, size: Any, gradient: Vector, spread: Vector, memory: Vector, time: Any
    ) -> Local:
        """What it does near a point; arguments as of ``averaged``."""
        if not self.remembers:
            return plain(self.metric(size, gradient, spread, memory, time))
        ones, none = jnp.ones_like(gradient), jnp.zeros_like(gradient)

        def log_metric(spread: Vector, memory: Vector) -> Vector:
            return jnp.log(self.metric(size, gradient, spread, memory, time))

        def mean(gradient: Vector, spread: Vector, memory: Vector) -> tuple[Vector, Vector]:
            return self.averaged(size, gradient, spread, memory, time)

        spread = jnp.maximum(spread, LEAST * (gradient**2 + memory))
        logarithm, slope = jax.linearize(log_metric, spread, memory)
        _, change = jax.linearize(mean, gradient, spread, memory)
        by_gradient, by_square = change(ones, none, none), change(none, ones, none)
        moved, remembered = zip(by_gradient, by_square, strict=True)
        rate = -change(none, none, ones)[1]
        found = slope(none, ones), slope(ones, none), moved, remembered, rate
        return Local(jnp.exp(logarithm / 2), *jax.tree.map(_finite, found))

    def _apart(
        self, size: Any, gradient: Vector, spread: Vector, memory: Vector, time: Any
    ) -> tuple[tuple[Vector, Vector], tuple[Vector, Vector], Vector]:
        """Velocity and memory after a step on either side, and q."""
        memory = jnp.maximum(memory, 0.0)  # which a stage of a solver may miss by little
        some = spread > 0
        apart = jnp.where(some, jnp.sqrt(jnp.where(some, spread, 1.0)), 0.0)

        def remembered(gradient: Vector, memory: Vector) -> Vector:
            return self.step(size, gradient, memory, time)[1]

        _, change = jax.linearize(remembered, gradient, memory)
        ones, none = jnp.ones_like(gradient), jnp.zeros_like(gradient)
        answer = -change(ones, none) / (1 + change(none, ones)) * apart
        ahead, back = (
            self.step(size, gradient + s * apart, memory + s * answer, time) for s in (1, -1)
        )
        return ahead, back, apart


def plain(metric: Any) -> Local:
    """Of an optimiser that remembers nothing."""
    none = metric[:0]
    return Local(metric**0.5, none, none, (-metric, none), (none, none), none)


def _finite(leaf: Array) -> Array:
    return jnp.where(jnp.isfinite(leaf), leaf, 0.0)


def check_scaling(optimizer: Optimizer, size: float) -> None:
    """Raises ValueError unless an optimiser is one whose central flow is known."""
    with jax.enable_x64(True):
        scaling_of(optimizer, size, jnp.ones(TRIED))


def scaling_of(optimizer: Optimizer | None, size: float, params: PyTree) -> Scaling:
    """An optimiser as one that scales entries, by trying what it does.

    Args:
      optimizer: the function of the step size; None is plain descent.
      size: step size.
      params: the initial point, in float64.

    Raises:
      ValueError: if it does anything else, with what that is.
    """
    if optimizer is None:
        return Scaling()
    check_optimizer(optimizer)
    if is_descent(optimizer, params):
        return Scaling()
    try:
        return _tried(optimizer, size, params)
    except _OtherError as other:
        raise ValueError(f"optimizer: {other}; {ACCEPTED}") from None
    except Exception as error:  # the optimiser is a program of the user's
        raise ValueError(failed(error)) from error


class _OtherError(Exception):
    """What an optimiser does that is no scaling."""


def _tried(optimizer: Optimizer, size: float, params: PyTree) -> Scaling:
    """The scaling that an optimiser is; _OtherError if it is none."""
    draws = np.random.default_rng(0)
    flat, unravel = ravel_pytree(params)
    transformation = optimizer(size)
    gradients = [jnp.asarray(draws.standard_normal(flat.shape)) for _ in range(STEPS)]

    def step(state: Any, gradient: Vector, point: Vector = flat) -> tuple[Vector, Any]:
        return transformation.update(gradient, state, point)

    def states(gradients: list[Vector]) -> list[Any]:
        found = [transformation.init(flat)]
        for each in gradients:
            found.append(step(found[-1], each)[1])
        return found

    past = states(gradients)
    kinds = _kinds([jax.tree.leaves(state) for state in past], flat)
    found, state = Scaling(optimizer, kinds), past[-1]
    last = jnp.asarray(draws.standard_normal(flat.shape))
    updates, after = step(state, last)
    if not _same(step(state, last, 2 * flat + 1), (updates, after)):
        raise _OtherError("its steps depend on the parameters, as with weight decay")
    back, after_back = step(state, -last)
    if not (_same(back, -updates) and _same(after_back, after)):
        raise _OtherError("its steps do not turn around with the gradient, as with momentum")
    some = jnp.asarray(np.arange(len(flat)) % 2 == 0)
    others = states([jnp.where(some, -2 * each, each) for each in gradients])[-1]
    mixed = step(others, jnp.where(some, -2 * last, last))[0]
    if not _same(jnp.where(some, 0, mixed), jnp.where(some, 0, updates)):
        raise _OtherError("its steps mix entries of the gradient")
    of_tree = optimizer(size).update(unravel(last), optimizer(size).init(params), params)[0]
    if not _same(ravel_pytree(of_tree)[0], step(past[0], last)[0]):
        raise _OtherError("its steps differ from leaf to leaf")
    longer = step(state, 2 * last)[0]
    if not (found.remembers or _same(longer, 2 * updates)):
        raise _OtherError("its steps are not in proportion to the gradient, as if it were clipped")
    if not bool((updates * last < 0).all() and (jnp.abs(longer) > jnp.abs(updates)).all()):
        raise _OtherError("its steps do not grow with the gradient, or lead uphill")
    if found.remembers and bool((jax.tree.leaves(state)[kinds.index(MEMORY)] < 0).any()):
        raise _OtherError("what it remembers is negative, as no square is")
    return found


def _kinds(states: list[list[Array]], flat: Vector) -> tuple[str, ...]:
    """What the leaves of the state are, of which each is seen before and after every step."""
    kinds = []
    for leaves in zip(*states, strict=True):
        values = [np.asarray(leaf) for leaf in leaves]
        if all(np.array_equal(each, values[0]) for each in values):
            kinds.append(HELD)
        elif values[0].shape == () and np.issubdtype(values[0].dtype, np.integer):
            kinds.append(COUNT)
        elif values[0].shape == flat.shape and values[0].dtype == flat.dtype:
            kinds.append(MEMORY)
        else:
            raise _OtherError("its state is more than a number for each parameter")
    if kinds.count(MEMORY) > 1:
        raise _OtherError("it remembers several numbers for each parameter, as with momentum")
    return tuple(kinds)


def _same(one: Any, other: Any) -> bool:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(bool(jnp.allclose(a, b, rtol=SAME, atol=0)) for a, b in pairs)
