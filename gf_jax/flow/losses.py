"""The loss of descent where it is predicted to stand."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from gf_jax import stacks
from gf_jax.flow.problem import FlowProblem
from gf_jax.program.compiling import jit

PyTree = Any

ROUNDING = 4.0  # of a loss, in the spacing of its numbers


def losses_of_runs(
    problem: FlowProblem, flow: PyTree, runs: Iterable[PyTree], errors: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The losses of runs of which the params are known with an error.

    An error E of the params changes f by no more than ‖∇f‖ E + ½ λ E², with λ the curvature. It is
    taken from how the gradient changes on the way from the flow to the run.

    Args:
      problem: the loss.
      flow: params of the flow, leaves of shape (times, ...).
      runs: params of one run after another, likewise.
      errors: of their params, shape (times, runs).

    Returns:
      Losses and their errors, both of shape (times, runs).
    """
    pure, numbers = problem.pure, problem.numbers

    def along(data: list[Array], flow: PyTree, run: PyTree, errors: Array) -> tuple[Array, Array]:
        def at(row: tuple[PyTree, PyTree, Array]) -> tuple[Array, Array]:
            flow, run, error = row
            value = jax.value_and_grad(lambda point: pure.loss(data, point))
            loss, gradient = value(run)
            apart, bent = (
                optax.tree.norm(jax.tree.map(jnp.subtract, *pair))
                for pair in ((run, flow), (gradient, value(flow)[1]))
            )
            curvature = jnp.where(apart > 0, bent / apart, 0.0)
            slope = optax.tree.norm(gradient) + curvature * error / 2
            return loss, slope * error + ROUNDING * np.finfo(loss.dtype).eps * jnp.abs(loss)

        return jax.lax.map(at, (flow, run, errors))

    with numbers.context():
        speed = pure.flow_speed
        solve = pure.once("losses of runs", lambda: jit(along, speed=speed))

        def of_block(flow: PyTree, run: PyTree, error: np.ndarray) -> tuple[np.ndarray, ...]:
            places = map(numbers.cast, (flow, run))
            return jax.device_get(solve(problem.data, *places, error))

        pairs = [
            stacks.along(of_block, flow, run, error)
            for run, error in zip(runs, errors.T, strict=True)
        ]
    losses, of_losses = (np.stack(column, axis=1) for column in zip(*pairs, strict=True))
    return losses, of_losses
