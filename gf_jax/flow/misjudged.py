"""How far rounding moves runs of a loss with kinks, as chance has it.

Where a step begins so near to a kink that rounding decides on which side of it, its gradient is off
by the jump there, and the step by its length times the jump. Such steps are few. One run meets
some and the next run none, so that no run in float64 tells what rounding did to another one; but
how likely they are can be told. A kink variable that passes zero with speed v in steps of length s
is misjudged at one of them with probability E|δ| / (s v), if δ is its rounding error. So squared
distances add up to the sum of (s ‖jump‖)² E|δ| / (s v) over all crossings: they fall with s. So
do those of the loss, of which s ∇f·jump takes the place of s ‖jump‖.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from gf_jax.flow.problem import FlowProblem, Progress
from gf_jax.program.compiling import jit
from gf_jax.program.kinks import step

PyTree = Any

MOVES = jnp.add, jnp.subtract
SAMPLES = 2  # of random signs in front of the jumps, whose sum has the norm of all in the mean


class Misjudged(NamedTuple):
    """Root mean squares of what misjudged kinks do to a run.

    Attributes:
      moved: how far they move it.
      loss: by how much they change its loss.
    """

    moved: Float[np.ndarray, " times"]
    loss: Float[np.ndarray, " times"]


def misjudged(
    problem: FlowProblem,
    points: PyTree,
    like: PyTree,
    step_size: float,
    progress: Progress | None = None,
) -> Misjudged:
    """What misjudged kinks are expected to do to a run.

    How the flow magnifies it, or makes it smaller, is left out.

    Args:
      problem: a loss with kinks, the starting point, and times.
      points: a trajectory at these times, leaves of shape (times, ...).
      like: parameters whose leaves have the dtypes of the run.
      step_size: of the run.
      progress: is told the share that is done.
    """
    gated_with, pure = problem.gated_of, problem.pure
    dtypes = [np.dtype(leaf.dtype) for leaf in jax.tree.leaves(like)]

    def squared(
        data: list[Array], one: PyTree, other: PyTree, time: Array, size: Array, key: Array
    ) -> tuple[Array, Array]:
        gated = gated_with(data, other)
        kinks = gated.kinks(other)
        gates = [step(kink) for kink in kinks]
        leaves, structure = jax.tree.flatten(other)
        rounded = jax.tree.unflatten(structure, map(jax.lax.convert_element_type, leaves, dtypes))
        narrow, _, _ = pure.gated(data, rounded)
        weights = []
        for before, kink, short in zip(
            gated_with(data, one).kinks(one), kinks, narrow((data, rounded)), strict=True
        ):
            crossed = before.z * kink.z < 0
            error = jnp.mean(jnp.abs(kink.z - short.z))
            each = jnp.abs(kink.z - before.z) * size / time  # what z moves by in a step
            chance = jnp.minimum(error / jnp.where(crossed, each, 1.0), 1.0)
            weights.append(jnp.where(crossed, size * jnp.sqrt(chance), 0.0))

        def gradient(gates: list[Array]) -> PyTree:
            return jax.grad(lambda point: gated.both(point, gates)[0])(other)

        slope = gradient(gates)

        def sample(key: Array) -> tuple[Array, Array]:
            keys = jax.random.split(key, len(weights))
            signs = [
                jax.random.rademacher(key, weight.shape, weight.dtype)
                for key, weight in zip(keys, weights, strict=True)
            ]
            jumps = [sign * weight for sign, weight in zip(signs, weights, strict=True)]
            # Linear in each gate, but not in those of two layers, which cancels.
            above, below = (gradient(jax.tree.map(move, gates, jumps)) for move in MOVES)
            moved = jax.tree.map(lambda a, b: (a - b) / 2, above, below)
            return optax.tree.norm(moved) ** 2, optax.tree.vdot(moved, slope) ** 2

        squares = jax.lax.map(sample, jax.random.split(key, SAMPLES))
        return jax.tree.map(jnp.mean, squares)

    with problem.numbers.context():
        solve = pure.once(
            ("misjudged", problem.numbers.dtype, *map(str, dtypes)),
            lambda: jit(squared, speed=pure.flow_speed),
        )
        one, begin = problem.numbers.cast(problem.params), 0.0
        found = []
        for slot, time in enumerate(problem.times):
            other = problem.numbers.cast(jax.tree.map(lambda leaf, at=slot: leaf[at], points))
            key = jax.random.key(slot)
            args = problem.data, one, other, time - begin, step_size, key
            found.append(jax.device_get(solve(*args)))
            one, begin = other, time
            if progress is not None:
                progress((slot + 1) / len(problem.times))
    return Misjudged(*np.sqrt(np.cumsum(found, axis=0)).T)
