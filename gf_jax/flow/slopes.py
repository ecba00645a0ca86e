"""Gradients of the steps of a period: of the loss, or of its batches in turn."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from gf_jax.flow.problem import FlowProblem
from gf_jax.program.pure import Pure

PyTree = Any

TOGETHER = 10_000_000  # numbers of gradients of batches that are computed at once


class Slopes(NamedTuple):
    """Gradients of steps as functions of data, of the loss and of the batches; holds no arrays.

    Attributes:
      pure: the loss.
      of_batch: the loss of a batch; None without batches.
      number: of batches, 1 without.
    """

    pure: Pure
    of_batch: Pure | None
    number: int

    def gradients(self, data: Any, period: int) -> Callable[[PyTree], PyTree]:
        """Maps params to the gradients of all steps, leaves (period, ...)."""

        def gradients(params: PyTree) -> PyTree:
            if self.of_batch is None:
                one = self.pure.field(data[0], params)(params)
                return jax.tree.map(lambda g: jnp.broadcast_to(g, (period, *g.shape)), one)
            together = _together(params)
            indices = jnp.arange(self.number)
            each = jax.lax.map(
                lambda index: self._of(data, params, index), indices, batch_size=together
            )
            return jax.tree.map(lambda g: g[jnp.arange(period) % self.number], each)

        return gradients

    def of_step(self, data: Any) -> Callable[[PyTree, Array], PyTree]:
        """Maps params and the number of a step to the gradient of that step."""
        if self.of_batch is None:
            return lambda params, _: self.pure.field(data[0], params)(params)
        return lambda params, number: self._of(data, params, number % self.number)

    def products(self, data: Any) -> Callable[[PyTree, PyTree], PyTree]:
        """Maps params and directions, one for each step, to derivatives of their gradients."""

        def products(params: PyTree, directions: PyTree) -> PyTree:
            if self.of_batch is None:
                _, product = self.pure.linearize(data[0], params)
                return jax.lax.map(product, directions)

            def along(step: tuple[Array, PyTree]) -> PyTree:
                index, direction = step
                field = functools.partial(self._of, data, index=index % self.number)
                return jax.jvp(field, (params,), (direction,))[1]

            period = jax.tree.leaves(directions)[0].shape[0]
            steps = jnp.arange(period), directions
            return jax.lax.map(along, steps, batch_size=_together(params))

        return products

    def _of(self, data: Any, params: PyTree, index: Array) -> PyTree:
        """The gradient of one batch."""
        assert self.of_batch is not None
        loss, index = self.of_batch.loss, jnp.asarray(index, jnp.int32)
        return jax.grad(lambda point: loss(data[1], (point, index)))(params)


def _together(params: PyTree) -> int:
    """Batches whose gradients are held at a time: many small ones at once are faster."""
    return max(1, TOGETHER // sum(leaf.size for leaf in jax.tree.leaves(params)))


def slopes_of(problem: FlowProblem) -> tuple[Slopes, tuple[list[Array], list[Array]]]:
    """The gradients of steps, and their data."""
    batched = problem.batched
    if batched is None:
        return Slopes(problem.pure, None, 1), (problem.data, [])
    slopes = Slopes(problem.pure, batched.program.pure, batched.number)
    return slopes, (problem.data, batched.program.data)
