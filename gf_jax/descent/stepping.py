"""The steps of descent: which gradient is taken, what is made of it, how it is added.

A step adds an update to the weights, in the chosen arithmetic: what the optimiser of the lane's
step size makes of the gradient, which is −step_size times it in plain descent. The gradient is
that of f, or of a batch of examples.
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
from gf_jax.optimizers.steps import Optimizer, check_steps
from gf_jax.program.arithmetic import Arithmetic
from gf_jax.program.program import Program, prepare_batches
from gf_jax.program.pure import Pure

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
    """How lanes step; it holds no arrays, so that what is compiled of it serves other data.

    Attributes:
      pure: maps (data, params) to the loss.
      of_batch: maps (data, (params, index)) to that of a batch; None without batches.
      batches: number of batches, 0 without.
      lanes: the ratios, ascending from 1.
      numbers: the arithmetic.
      optimizer: makes updates of gradients, of every lane's own step size.
    """

    pure: Pure
    of_batch: Pure | None
    batches: int
    lanes: tuple[int, ...]
    numbers: Arithmetic
    optimizer: Optimizer

    def at(self, step_size: Array, params: PyTree) -> optax.GradientTransformation:
        """The optimiser of a step size, which has the precision of params."""
        dtype = jnp.result_type(*jax.tree.leaves(params))
        return self.optimizer(step_size.astype(dtype))

    def initial(self, step_size: Array, params: PyTree) -> PyTree:
        """The optimiser's state before the first step."""
        return jax.tree.map(jnp.asarray, self.at(step_size, params).init(params))

    def update(
        self, gradient: PyTree, state: PyTree, params: PyTree, step_size: Array
    ) -> tuple[PyTree, PyTree]:
        """Updates and state of a step, in the precision of params and state."""
        updates, after = self.at(step_size, params).update(gradient, state, params)
        return jax.tree.map(_as, updates, params), jax.tree.map(_as, after, state)


class Data(NamedTuple):
    """What the loss and the loss of a batch are losses on; the latter empty without batches."""

    whole: list[Array]
    batched: list[Array]


class Lanes(NamedTuple):
    """What a step of all lanes changes; every leaf has a lane axis.

    Attributes:
      params: the weights.
      residual: what rounding has dropped of them, None where it is not kept.
      optimizer_state: state of the optimiser.
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
    optimizer: Optimizer | None,
    batches: Batches | None,
) -> tuple[Rule, Data]:
    """The rule, and the data of its losses.

    Raises:
      ValueError: if the loss of a batch is not a scalar loss of params at this point, there is
        no batch, or the optimiser is no function or cannot step.
    """
    optimizer = optax.sgd if optimizer is None else optimizer
    check_steps(optimizer, point)
    lanes = schedule.lanes
    if batches is None:
        rule = Rule(program.pure, None, 0, lanes, numbers, optimizer)
        return rule, Data(program.data, [])
    of_batch, number = prepare_batches(program, point, batches.loss, batches.number)
    rule = Rule(program.pure, of_batch.pure, number, lanes, numbers, optimizer)
    return rule, Data(program.data, of_batch.data)


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
    updates, state = jax.vmap(rule.update)(gradient, lanes.optimizer_state, lanes.params, sizes)
    params, residual = rule.numbers.add(lanes.params, lanes.residual, updates)
    batch = None if lanes.batch is None else (lanes.batch + 1) % rule.batches
    return Lanes(params, residual, state, batch)


def _as(value: Any, like: Array) -> Array:
    return jnp.asarray(value, like.dtype)
