"""Solves the equations of ``diffusion`` along the flow, on the grids of ``noise``.

The steps are of order four, the noise, and so the whole, of order two in the covariance: a mode
of curvature λ has tanh(x)/x of its variance, x half of λ times the step. D²g[δ, δ] is taken at
the ends of steps, by the trapezoidal rule. So what both grids differ by tells what is left, and
most of it is taken off.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from gf_jax.flow import diffusion, noise
from gf_jax.flow.diffusion import Moving, Sums
from gf_jax.flow.problem import FlowProblem, Progress, Telling, tell_after_solve, tells_meanwhile
from gf_jax.program.compiling import jit

PyTree = Any

# The classical method of Runge and Kutta: where each stage stands, and its weight.
AHEAD, WEIGHTS = (0.0, 0.5, 0.5, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6)
ROUNDS = 30  # of the power iteration
# Gradients of a sample: of a stage, two products and noise; of D²g; of what a step remembers.
COST, BEND, MEMORY = 5, 4, 6


class Solved(NamedTuple):
    """Both grids, the coarse one first, and what they took in gradients.

    Leaves of the sums are (times, solves, ...): one solve holds for all step sizes where the noise
    is white; shuffled, every step size has its own.
    """

    coarse: Sums
    fine: Sums
    shuffled: bool
    evaluations: int


class _Factors(NamedTuple):
    """Numbers that a solve takes besides data, start, key and grid.

    Attributes:
      of_batch: of random signs whose gradient is a batch's noise.
      of_step: of H g in the equation of m.
      of_shift: of m in what makes the spread.
      begin, part: share of the work done before, and in this solve.
    """

    of_batch: Any
    of_step: Any
    of_shift: Any
    begin: Any
    part: Any


def solve(
    problem: FlowProblem,
    along: PyTree,
    batches: Any,
    step_sizes: np.ndarray,
    samples: int,
    seed: int,
    progress: Progress | None,
) -> Solved:
    """Solves the equations of all samples, on both grids.

    Args:
      problem: a smooth loss with its parts, start, and times.
      along: the flow at these times.
      batches: drawn with replacement, or shuffled.
      step_sizes: of descent.
      samples: how many.
      seed: of the noise.
      progress: is told the share that is done.

    Raises:
      ValueError: if batches are shuffled and a time is between two steps.
    """
    batched = problem.batched
    assert batched is not None
    data = (problem.data, batched.program.data)
    number, size, shuffled = batched.number, batches.size, batches.order == noise.SHUFFLED
    of_batch, of_step = 1 / np.sqrt(number * size), 1 / (2 * batches.svag)
    telling, run = _solver(problem, samples, tells_meanwhile(progress, problem.program))
    telling.progress = progress
    with problem.numbers.context():
        curvature = _curvature(problem, along)
        grids, of_shifts = [noise.white_grids(problem.times, curvature, of_batch)], [0.0]
        if shuffled:
            of_shifts = np.sqrt(step_sizes).tolist()
            grids = [
                noise.shuffled_grids(problem.times, curvature, step_size, number, size)
                for step_size in step_sizes.tolist()
            ]
        steps, longest = sum(_steps(pair) for pair in grids), noise.longest_of(grids)
        found, done = [], 0.0
        for pair, of_shift in zip(grids, of_shifts, strict=True):
            for grid in pair:
                share = int(grid.counts.sum()) / max(steps, 1)
                factors = _Factors(of_batch, of_step, of_shift, done, share)
                padded = grid.padded(longest)
                sums = run(data, problem.params, _key(seed), padded, factors)
                found.append(jax.device_get(sums))
                done += share
                tell_after_solve(progress, done)
    coarse, fine = (
        jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *found[first::2]) for first in (0, 1)
    )
    each = len(AHEAD) * (2 + COST * samples) + BEND * samples
    each += MEMORY * samples if shuffled else 0
    return Solved(coarse, fine, shuffled, steps * each)


def _steps(grids: tuple[noise.Grid, noise.Grid]) -> int:
    """Of both grids."""
    return int(sum(grid.counts.sum() for grid in grids))


def _key(seed: int) -> Array:
    """The same whatever the user's default generator is."""
    return jax.random.key(np.uint32(seed), impl="threefry2x32")


def _curvature(problem: FlowProblem, along: PyTree) -> float:
    """The largest absolute eigenvalue of H at the start and along the flow."""
    pure = problem.pure

    def largest(data: list[Array], points: PyTree) -> Array:
        def at(point: PyTree) -> Array:
            flat, unravel = ravel_pytree(point)
            _, product = pure.linearize(data, point)

            def once(vector: Array, _: None) -> tuple[Array, Array]:
                image = ravel_pytree(product(unravel(vector)))[0]
                norm = jnp.linalg.norm(image)
                return image / jnp.where(norm > 0, norm, 1.0), norm

            first = jax.random.normal(_key(0), flat.shape, flat.dtype)
            return lax.scan(once, first / jnp.linalg.norm(first), length=ROUNDS)[1][-1]

        return lax.map(at, points)

    find = pure.once("largest curvature", lambda: jit(largest, speed=pure.flow_speed))
    points = jax.tree.map(lambda p, z: jnp.concatenate([p[None], z]), problem.params, along)
    return float(np.nanmax(find(problem.data, points)))  # a flow may end before


def _solver(problem: FlowProblem, samples: int, tells: bool) -> tuple[Telling, Callable]:
    """The compiled solver of one grid, and what it tells its progress to."""
    batched, pure = problem.batched, problem.pure
    assert batched is not None
    of_part, number = batched.program.pure, batched.number

    def make() -> tuple[Telling, Callable]:
        telling = Telling()

        def run(data: Any, start: PyTree, key: Array, grid: noise.Grid, factors: _Factors) -> Sums:
            like = jnp.zeros((samples, number), jnp.result_type(*jax.tree.leaves(start)))
            steps_key, times_key = jax.random.split(key)

            def step(at: Array, carry: tuple[Moving, PyTree, PyTree]) -> Any:
                state, slopes, bends = carry
                length = grid.lengths[at]
                weights = grid.noise.weights(steps_key, at, length, like)
                state = diffusion.kicked(state, bends, length)
                drift = None
                if isinstance(grid.noise, noise.Shuffled):
                    lag, missed = grid.noise.memory(at, number)
                    drift = diffusion.remembered(
                        pure, of_part, data, state, slopes, weights, lag, missed
                    )

                def stage(slopes: tuple[Any, Any], row: tuple[Array, Array]) -> tuple[Any, None]:
                    ahead, weight = row
                    point = optax.tree.add_scale(state, ahead * length, slopes[0])
                    slope = diffusion.velocity(
                        pure, of_part, data, point, weights, factors.of_step, drift
                    )
                    return (slope, optax.tree.add_scale(slopes[1], weight, slope)), None

                none = optax.tree.zeros_like(state)
                rows = jnp.array(AHEAD, like.dtype), jnp.array(WEIGHTS, like.dtype)
                (_, mean), _ = lax.scan(stage, (none, none), rows)
                state = optax.tree.add_scale(state, length, mean)
                slopes, bends = diffusion.along(pure, data[0], state)
                return diffusion.kicked(state, bends, length), slopes, bends

            def to_time(carry: tuple[Any, Array], row: Any) -> tuple[Any, Sums]:
                moving, at = carry
                share, count = row
                moving = lax.fori_loop(at, at + count, step, moving)
                if tells:
                    jax.debug.callback(telling, factors.begin + share * factors.part)
                after = at + count
                signs = noise.centred_signs(jax.random.fold_in(times_key, after), like)
                return (moving, after), diffusion.sums_of(
                    pure, of_part, data, moving[0], factors.of_batch * signs, factors.of_shift
                )

            zeros = jax.tree.map(lambda p: jnp.zeros((samples, *p.shape), p.dtype), start)
            shares = jnp.cumsum(grid.counts) / jnp.maximum(grid.counts.sum(), 1)
            begin = (Moving(start, zeros, zeros), zeros, zeros), jnp.zeros((), grid.counts.dtype)
            return lax.scan(to_time, begin, (shares, grid.counts))[1]

        return telling, jit(run, speed=pure.flow_speed)

    return pure.once(("diffusion", of_part, number, samples, tells, problem.numbers.dtype), make)
