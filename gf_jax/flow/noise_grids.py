"""Solves the equations of ``diffusion`` along the flow, with noise that is constant over a step.

The grid is taken twice, the second time with steps half as long and the same noise. The steps are
of order four, the noise, and so the whole, of order two in the covariance: a mode of curvature λ
has tanh(x)/x of its variance, x half of λ times the step. D²g[δ, δ] is taken at the ends of
steps, by the trapezoidal rule. So what they differ by tells what is left, and most of it is taken
off.
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

from gf_jax.flow import diffusion
from gf_jax.flow.diffusion import Moving, Sums
from gf_jax.flow.problem import FlowProblem, Progress, Telling, tell_after_solve, tells_meanwhile
from gf_jax.program.compiling import jit

PyTree = Any

STEP = 0.5  # of the coarse grid, times the largest curvature
# The classical method of Runge and Kutta: where each stage stands, and its weight.
AHEAD, WEIGHTS = (0.0, 0.5, 0.5, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6)
ROUNDS = 30  # of the power iteration
COST, BEND = 5, 4  # gradients of a sample: of a stage, two products and noise; of D²g


class Solved(NamedTuple):
    """Both grids, the coarse one first, and what they took in gradients."""

    coarse: Sums
    fine: Sums
    evaluations: int


class _Grid(NamedTuple):
    """What a solve takes besides data, start and key.

    Attributes:
      lengths: time from each sampling time to the next.
      counts: steps there.
      coarse: whether each step has the noise of two.
      of_noise, of_step: factors of the noise and of H g in the equation of m.
      begin, part: share of the work done before, and in this solve.
    """

    lengths: Any
    counts: Any
    coarse: Any
    of_noise: Any
    of_step: Any
    begin: Any
    part: Any


def solve(
    problem: FlowProblem,
    along: PyTree,
    size: int,
    svag: int,
    samples: int,
    seed: int,
    progress: Progress | None,
) -> Solved:
    """Solves the equations of all samples, on both grids.

    Args:
      problem: a smooth loss with its parts, start, and times.
      along: the flow at these times.
      size: parts in a batch.
      svag: small steps that stand for one.
      samples: how many.
      seed: of the noise.
      progress: is told the share that is done.
    """
    batched = problem.batched
    assert batched is not None
    data = (problem.data, batched.program.data)
    telling, run = _solver(problem, samples, tells_meanwhile(progress, problem.program))
    telling.progress = progress
    with problem.numbers.context():
        counts = _counts(problem.times, _curvature(problem, along))
        lengths = np.diff(problem.times, prepend=0.0)
        scales = 1 / np.sqrt(batched.number * size), 1 / (2 * svag)

        def on_grid(halves: int, begin: float, end: float) -> Sums:
            grid = _Grid(
                lengths, halves * counts, np.bool(halves == 1), *scales, begin, end - begin
            )
            found = jax.device_get(run(data, problem.params, _key(seed), grid))
            tell_after_solve(progress, end)
            return found

        coarse, fine = on_grid(1, 0.0, 1 / 3), on_grid(2, 1 / 3, 1.0)
    each = len(AHEAD) * (2 + COST * samples) + BEND * samples
    evaluations = int(3 * counts.sum()) * each
    return Solved(coarse, fine, evaluations)


def _key(seed: int) -> Array:
    """The same whatever the user's default generator is."""
    return jax.random.key(np.uint32(seed), impl="threefry2x32")


def _counts(times: np.ndarray, curvature: float) -> np.ndarray:
    """Steps of the coarse grid up to each time from the one before."""
    lengths = np.diff(times, prepend=0.0)
    return np.maximum(np.ceil(lengths * curvature / STEP), lengths > 0).astype(np.int64)


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

        def run(data: Any, start: PyTree, key: Array, grid: _Grid) -> Sums:
            dtype = jnp.result_type(*jax.tree.leaves(start))

            steps_key, times_key = jax.random.split(key)

            def signs(at: Array, key: Array = steps_key) -> Array:
                own = jax.random.fold_in(key, at)
                drawn = jax.random.rademacher(own, (samples, number), dtype)
                return grid.of_noise * (drawn - drawn.mean(axis=1, keepdims=True))

            def of_two(at: Array) -> Array:
                return (signs(2 * at) + signs(2 * at + 1)) / np.sqrt(2)

            def step(at: Array, carry: tuple[Moving, PyTree, Array]) -> Any:
                state, bends, length = carry
                noise = lax.cond(grid.coarse, of_two, signs, at) / jnp.sqrt(length)
                state = diffusion.kicked(state, bends, length)

                def stage(slopes: tuple[Any, Any], row: tuple[Array, Array]) -> tuple[Any, None]:
                    ahead, weight = row
                    point = optax.tree.add_scale(state, ahead * length, slopes[0])
                    slope = diffusion.velocity(pure, of_part, data, point, noise, grid.of_step)
                    return (slope, optax.tree.add_scale(slopes[1], weight, slope)), None

                none = optax.tree.zeros_like(state)
                rows = jnp.array(AHEAD, dtype), jnp.array(WEIGHTS, dtype)
                (_, mean), _ = lax.scan(stage, (none, none), rows)
                state = optax.tree.add_scale(state, length, mean)
                _, bends = diffusion.along(pure, data[0], state)
                return diffusion.kicked(state, bends, length), bends, length

            def to_time(carry: tuple[Moving, PyTree, Array], row: Any) -> tuple[Any, Sums]:
                state, bends, at = carry
                share, length, count = row
                each = length / jnp.maximum(count, 1)
                state, bends, _ = lax.fori_loop(at, at + count, step, (state, bends, each))
                if tells:
                    jax.debug.callback(telling, grid.begin + share * grid.part)
                after = at + count
                return (state, bends, after), diffusion.sums_of(
                    pure, of_part, data, state, signs(after, times_key)
                )

            zeros = jax.tree.map(lambda p: jnp.zeros((samples, *p.shape), p.dtype), start)
            shares = jnp.arange(1, len(grid.counts) + 1) / len(grid.counts)
            begin = Moving(start, zeros, zeros), zeros, jnp.zeros((), grid.counts.dtype)
            return lax.scan(to_time, begin, (shares, grid.lengths, grid.counts))[1]

        return telling, jit(run, speed=pure.flow_speed)

    return pure.once(("diffusion", of_part, number, samples, tells, problem.numbers.dtype), make)
