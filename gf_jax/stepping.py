"""The steps of descent: which gradient is taken, what is made of it, how it is added.

A step adds −step_size × direction to the weights, in the chosen arithmetic. The direction
is what an optax transformation makes of the gradient: the gradient itself in plain descent,
a sum of past gradients with momentum. The gradient is that of f, or of a batch of examples.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int

from gf_jax.arithmetic import Arithmetic
from gf_jax.schedule import Schedule
from gf_jax.tracing import Loss, hoist_constants

PyTree = Any


class Batches(NamedTuple):
    """Parts of a training set that descent goes through in turn.

    Step j of every lane, from 0 on, follows the gradient of batch j mod number. A lane with
    ratio r takes r steps to a step of the base run, so that it has seen r times as many
    batches at equal time. What is compared there is the full objective.

    Attributes:
      loss: maps (params, index) to the loss of one batch, a scalar; the index is a traced
        integer from 0 to number - 1. Their mean is to be the full objective.
      number: how many batches there are.

    Example:
      >>> targets = jnp.array([0.0, 1.0, 2.0, 3.0])
      >>> def f(w):
      ...     return jnp.mean((w - targets) ** 2)
      >>> def loss(w, index):
      ...     return (w - targets[index]) ** 2
      >>> run = gf_jax.gradient_descent(
      ...     f, jnp.array(0.0), step_size=0.01, ratios=(2,), iterations=8,
      ...     batches=gf_jax.Batches(loss, 4))
      >>> run.metrics.loss.shape
      (9, 2)
    """

    loss: Callable[[PyTree, Int[Array, ""]], Array]
    number: int


class Rule(NamedTuple):
    """How lanes step.

    Attributes:
      f: maps (constants, params) to the loss.
      of_batch: maps (constants, params, index) to that of a batch; None without batches.
      batches: number of batches, 0 without.
      schedule: the schedule.
      numbers: the arithmetic.
      transformation: makes directions of gradients.
    """

    f: Callable[[list[Array], PyTree], Array]
    of_batch: Callable[[list[Array], PyTree, Array], Array] | None
    batches: int
    schedule: Schedule
    numbers: Arithmetic
    transformation: optax.GradientTransformation


class Lanes(NamedTuple):
    """What a step of all lanes changes; every leaf has a lane axis.

    Attributes:
      params: the weights.
      residual: what rounding has dropped of them, None where it is not kept.
      memory: state of the transformation.
      batch: index of the batch that comes next, None without batches.
    """

    params: PyTree
    residual: PyTree
    memory: PyTree
    batch: Int[Array, " lanes"] | None


def rule(
    f: Loss,
    point: PyTree,
    schedule: Schedule,
    numbers: Arithmetic,
    transformation: optax.GradientTransformation | None,
    batches: Batches | None,
) -> tuple[Rule, list[Array]]:
    """The rule, and the constants that f and the loss of a batch close over.

    Raises:
      ValueError: if f or the loss of a batch are not scalar losses of params at this point, or
        there is no batch.
    """
    pure, constants = hoist_constants(f, point)
    transformation = optax.identity() if transformation is None else transformation
    if batches is None:
        return Rule(pure, None, 0, schedule, numbers, transformation), constants
    number, loss, index = batches.number, batches.loss, jnp.int32(0)
    if not (isinstance(number, int) and 1 <= number < 2**31):
        raise ValueError(f"batches: number is {number!r}; accepted is a positive integer")
    of_batch, others = hoist_constants(lambda pair: loss(*pair), (point, index))
    known = len(constants)
    stepping = Rule(
        lambda constants, params: pure(constants[:known], params),
        lambda constants, params, index: of_batch(constants[known:], (params, index)),
        number,
        schedule,
        numbers,
        transformation,
    )
    return stepping, constants + others


def advance(rule: Rule, constants: list[Array], lanes: Lanes, gradient: PyTree) -> Lanes:
    """One base iteration of all lanes.

    Args:
      rule: how they step.
      constants: of the rule.
      lanes: all lanes where they are compared.
      gradient: of f there; the first step follows it, unless there are batches.
    """
    sizes = np.array(rule.schedule.step_sizes)

    def more_steps(lanes: Lanes, sizes: np.ndarray, steps: int) -> Lanes:
        def step(lanes: Lanes, _: None) -> tuple[Lanes, None]:
            return _descend(rule, lanes, _gradient(rule, constants, lanes), sizes), None

        return lax.scan(step, lanes, length=steps)[0]

    first = gradient if rule.of_batch is None else _gradient(rule, constants, lanes)
    lanes = _descend(rule, lanes, first, sizes)
    arrived = []
    for lane, steps in enumerate(np.diff(rule.schedule.lanes).tolist(), start=1):
        arrived.append(jax.tree.map(lambda leaf: leaf[:1], lanes))
        lanes = jax.tree.map(lambda leaf: leaf[1:], lanes)
        lanes = more_steps(lanes, sizes[lane:], steps)
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *arrived, lanes)


def _gradient(rule: Rule, constants: list[Array], lanes: Lanes) -> PyTree:
    """The gradient that the next step of every lane follows."""
    of_batch = rule.of_batch
    if of_batch is None:
        return jax.vmap(jax.grad(lambda params: rule.f(constants, params)))(lanes.params)
    slope = jax.grad(lambda params, index: of_batch(constants, params, index))
    return jax.vmap(slope)(lanes.params, lanes.batch)


def _descend(rule: Rule, lanes: Lanes, gradient: PyTree, sizes: np.ndarray) -> Lanes:
    """One step of every lane."""
    update = jax.vmap(rule.transformation.update)
    direction, memory = update(gradient, lanes.memory, lanes.params)
    params, residual = rule.numbers.add(lanes.params, lanes.residual, _updates(direction, sizes))
    batch = None if lanes.batch is None else (lanes.batch + 1) % rule.batches
    return Lanes(params, residual, memory, batch)


def _updates(direction: PyTree, sizes: Float[np.ndarray, " lanes"]) -> PyTree:
    """What one step of every lane adds to its weights."""

    def update(slope: Array) -> Array:
        return -jnp.asarray(sizes, slope.dtype).reshape(-1, *(1,) * (slope.ndim - 1)) * slope

    return jax.tree.map(update, direction)
