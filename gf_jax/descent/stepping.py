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

from gf_jax.descent.schedule import Schedule
from gf_jax.program.arithmetic import Arithmetic
from gf_jax.program.program import Program, trace
from gf_jax.program.pure import Pure

PyTree = Any

PLAIN = optax.identity()  # plain descent


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
    """How lanes step; it holds no arrays, so that what is compiled of it serves other data.

    Attributes:
      pure: maps (data, params) to the loss.
      of_batch: maps (data, (params, index)) to that of a batch; None without batches.
      batches: number of batches, 0 without.
      lanes: the ratios, ascending from 1.
      numbers: the arithmetic.
      transformation: makes directions of gradients.
    """

    pure: Pure
    of_batch: Pure | None
    batches: int
    lanes: tuple[int, ...]
    numbers: Arithmetic
    transformation: optax.GradientTransformation


class Data(NamedTuple):
    """What the loss and the loss of a batch are losses on; the latter empty without batches."""

    whole: list[Array]
    batched: list[Array]


class Lanes(NamedTuple):
    """What a step of all lanes changes; every leaf has a lane axis.

    Attributes:
      params: the weights.
      residual: what rounding has dropped of them, None where it is not kept.
      optimizer_state: state of the transformation.
      batch: index of the batch that comes next, None without batches.
    """

    params: PyTree
    residual: PyTree
    optimizer_state: PyTree
    batch: Int[Array, " lanes"] | None


def rule(
    program: Program,
    point: PyTree,
    schedule: Schedule,
    numbers: Arithmetic,
    transformation: optax.GradientTransformation | None,
    batches: Batches | None,
) -> tuple[Rule, Data]:
    """The rule, and the data of its losses.

    Raises:
      ValueError: if the loss of a batch is not a scalar loss of params at this point, there is
        no batch, or the transformation makes steps instead of directions.
    """
    if transformation is None:
        transformation = PLAIN
    _check_direction(transformation, point)
    lanes = schedule.lanes
    if batches is None:
        rule = Rule(program.pure, None, 0, lanes, numbers, transformation)
        return rule, Data(program.data, [])
    number, loss, index = batches.number, batches.loss, np.int32(0)
    if not (isinstance(number, int) and 1 <= number < 2**31):
        raise ValueError(f"batches: number is {number!r}; accepted is a positive integer")
    of_batch = trace(
        lambda pair: loss(program.model(pair[0]), pair[1]),
        (point, index),
        products=numbers.products,
    )
    rule = Rule(program.pure, of_batch.pure, number, lanes, numbers, transformation)
    return rule, Data(program.data, of_batch.data)


def _check_direction(transformation: optax.GradientTransformation, point: PyTree) -> None:
    """Refuses a transformation that, as optax's optimisers, makes steps against the gradient."""
    if transformation is PLAIN:
        return
    probe = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), point)
    direction, _ = transformation.update(probe, transformation.init(probe), probe)
    if sum(float(jnp.sum(leaf)) for leaf in jax.tree.leaves(direction)) < 0:
        raise ValueError(
            "transformation: its updates point against the gradient, as those of optax's "
            "optimisers with a learning rate do; accepted is what makes directions, to which "
            "-step_size is applied: optax.trace(0.9), optax.scale_by_adam(), or "
            "optax.chain(optimizer, optax.scale(-1 / learning_rate))"
        )


def advance(
    rule: Rule, data: Data, sizes: Float[Array, " lanes"], lanes: Lanes, gradient: PyTree
) -> Lanes:
    """One base iteration of all lanes.

    Args:
      rule: how they step.
      data: of the rule.
      sizes: step size of every lane.
      lanes: all lanes where they are compared.
      gradient: of f there; the first step follows it, unless there are batches.
    """

    def more_steps(lanes: Lanes, sizes: Array, steps: int) -> Lanes:
        def step(lanes: Lanes, _: None) -> tuple[Lanes, None]:
            return _descend(rule, lanes, _gradient(rule, data, lanes), sizes), None

        return lax.scan(step, lanes, length=steps)[0]

    first = gradient if rule.of_batch is None else _gradient(rule, data, lanes)
    lanes = _descend(rule, lanes, first, sizes)
    arrived = []
    for lane, steps in enumerate(np.diff(rule.lanes).tolist(), start=1):
        arrived.append(jax.tree.map(lambda leaf: leaf[:1], lanes))
        lanes = jax.tree.map(lambda leaf: leaf[1:], lanes)
        lanes = more_steps(lanes, sizes[lane:], steps)
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *arrived, lanes)


def _gradient(rule: Rule, data: Data, lanes: Lanes) -> PyTree:
    """The gradient that the next step of every lane follows."""
    of_batch = rule.of_batch
    if of_batch is None:
        return jax.vmap(jax.grad(lambda params: rule.pure.loss(data.whole, params)))(lanes.params)
    slope = jax.grad(lambda params, index: of_batch.loss(data.batched, (params, index)))
    return jax.vmap(slope)(lanes.params, lanes.batch)


def _descend(rule: Rule, lanes: Lanes, gradient: PyTree, sizes: Array) -> Lanes:
    """One step of every lane."""
    update = jax.vmap(rule.transformation.update)
    direction, state = update(gradient, lanes.optimizer_state, lanes.params)
    params, residual = rule.numbers.add(lanes.params, lanes.residual, _updates(direction, sizes))
    batch = None if lanes.batch is None else (lanes.batch + 1) % rule.batches
    return Lanes(params, residual, state, batch)


def _updates(direction: PyTree, sizes: Float[Array, " lanes"]) -> PyTree:
    """What one step of every lane adds to its weights."""

    def update(slope: Array) -> Array:
        return -sizes.astype(slope.dtype).reshape(-1, *(1,) * (slope.ndim - 1)) * slope

    return jax.tree.map(update, direction)
