"""The steps of descent: which gradient is taken, what is made of it, how it is added.

A step adds an update to the weights, in the chosen arithmetic: what the optimiser of the lane's
step size makes of the gradient, which is −step_size times it in plain descent. The gradient is
that of f, or of a batch of examples.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float

from gf_jax.descent.batches import Batches, Sampling, Turn, sampling_of, take
from gf_jax.descent.grouping import Group, groups
from gf_jax.descent.schedule import Schedule
from gf_jax.optimizers.steps import Optimizer, check_steps
from gf_jax.program.arithmetic import Arithmetic
from gf_jax.program.program import Program, prepare_batches
from gf_jax.program.pure import Pure

PyTree = Any


class Rule(NamedTuple):
    """How lanes step; it holds no arrays, so that what is compiled of it serves other data.

    Attributes:
      pure: maps (data, params) to the loss.
      of_batch: maps (data, (params, index)) to that of a batch; None without batches.
      sampling: how batches are taken; None without.
      lanes: the ratios, ascending from 1.
      numbers: the arithmetic.
      optimizer: makes updates of gradients, of every lane's own step size.
    """

    pure: Pure
    of_batch: Pure | None
    sampling: Sampling | None
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
      turn: where every run stands among its batches, None without batches.
    """

    params: PyTree
    residual: PyTree
    optimizer_state: PyTree
    turn: Turn | None


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
      ValueError: if the loss of a batch is not a scalar loss of params at this point, batches
        cannot be taken so, or the optimiser is no function or cannot step.
    """
    optimizer = optax.sgd if optimizer is None else optimizer
    check_steps(optimizer, point)
    lanes = schedule.lanes
    if batches is None:
        rule = Rule(program.pure, None, None, lanes, numbers, optimizer)
        return rule, Data(program.data, [])
    of_batch, _ = prepare_batches(program, point, batches.loss, batches.number)
    rule = Rule(program.pure, of_batch.pure, sampling_of(batches), lanes, numbers, optimizer)
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
    if rule.of_batch is None:
        lanes = _descend(rule, lanes, gradient, sizes)
    else:
        lanes = _step(rule, data, sizes, lanes)
    arrived, ahead = [], 0
    for group in groups(rule.lanes):
        arrived.append(jax.tree.map(lambda leaf, n=group.first - ahead: leaf[:n], lanes))
        lanes = jax.tree.map(lambda leaf, n=group.first - ahead: leaf[n:], lanes)
        lanes, ahead = _together(rule, data, sizes[group.first :], lanes, group), group.first
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *arrived, lanes)


def _together(rule: Rule, data: Data, sizes: Array, lanes: Lanes, group: Group) -> Lanes:
    """The steps of a group, of its lanes and those behind them; who has arrived waits."""
    more = jnp.array(rule.lanes[group.first :], jnp.int32) - rule.lanes[group.first - 1]

    def step(lanes: Lanes, _: None) -> tuple[Lanes, None]:
        return _step(rule, data, sizes, lanes), None

    def step_of_some(carry: tuple[Lanes, Array], _: None) -> tuple[tuple[Lanes, Array], None]:
        before, taken = carry
        after, _ = step(before, None)
        return (jax.tree.map(functools.partial(_where, taken < more), after, before), taken + 1), _

    if group.first == group.last:
        return lax.scan(step, lanes, length=group.steps)[0]
    first = lanes, jnp.zeros((), jnp.int32)
    return lax.scan(step_of_some, first, length=group.steps)[0][0]


def _where(lanes: Array, new: Array, old: Array) -> Array:
    """The new leaf in some lanes, the old one in all others."""
    return jnp.where(lanes.reshape(-1, *(1,) * (new.ndim - 1)), new, old)


def _step(rule: Rule, data: Data, sizes: Array, lanes: Lanes) -> Lanes:
    """One step of every lane, or the smaller ones that stand for it."""
    parts = 1 if rule.sampling is None else rule.sampling.svag
    if parts == 1:
        gradient, turn = _gradient(rule, data, lanes)
        return _descend(rule, lanes._replace(turn=turn), gradient, sizes)
    more = math.sqrt(2 * parts - 1)

    def small(lanes: Lanes, _: None) -> tuple[Lanes, None]:
        first, turn = _gradient(rule, data, lanes)
        second, turn = _gradient(rule, data, lanes._replace(turn=turn))
        gradient = jax.tree.map(lambda a, b: (1 + more) / 2 * a + (1 - more) / 2 * b, first, second)
        return _descend(rule, lanes._replace(turn=turn), gradient, sizes / parts), None

    return lax.scan(small, lanes, length=parts)[0]


def _gradient(rule: Rule, data: Data, lanes: Lanes) -> tuple[PyTree, Turn | None]:
    """The gradient that the next step of every lane follows, and the turns after it."""
    of_batch, sampling = rule.of_batch, rule.sampling
    if of_batch is None or sampling is None:
        slope = jax.grad(lambda params: rule.pure.loss(data.whole, params))
        return jax.vmap(slope)(lanes.params), None

    def loss(params: PyTree, batch: Array) -> Array:
        if batch.ndim == 0:
            return of_batch.loss(data.batched, (params, batch))
        # One gradient of the mean, not one for each of them.
        return jax.vmap(lambda index: loss(params, index))(batch).mean()

    batch, turn = jax.vmap(lambda turn: take(sampling, turn))(lanes.turn)
    return jax.vmap(jax.grad(loss))(lanes.params, batch), turn


def _descend(rule: Rule, lanes: Lanes, gradient: PyTree, sizes: Array) -> Lanes:
    """One update of every lane."""
    updates, state = jax.vmap(rule.update)(gradient, lanes.optimizer_state, lanes.params, sizes)
    params, residual = rule.numbers.add(lanes.params, lanes.residual, updates)
    return Lanes(params, residual, state, lanes.turn)


def _as(value: Any, like: Array) -> Array:
    return jnp.asarray(value, like.dtype)
