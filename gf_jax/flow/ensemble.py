"""Predictions of what many runs in drawn batches amount to, from the flow alone.

See ``gf_jax.flow.diffusion`` for the equations. Batches drawn with replacement make white noise,
whose one solve holds for every step size. The gradients of a shuffled epoch sum to the same in
every order, and since epochs of small steps are short, every step size has a solve of its own.
Other optimisers than descent have other equations.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float

from gf_jax.ensemble import Ensemble, Estimate, root_of
from gf_jax.flow import noise_grids
from gf_jax.flow.diffusion import losses_of_parts
from gf_jax.flow.flow import Flow, check_twice, checked_step_sizes, gradient_flow
from gf_jax.flow.noise import SHUFFLED
from gf_jax.flow.problem import FlowProblem, Progress, flow_problem, part
from gf_jax.program.compiling import jit
from gf_jax.program.program import Loss, Program

PyTree = Any

SAMPLES = 8
OF_FLOW = 0.1  # share of the work that the flow is, about
SAME = 1e-4  # that two gradients differ by, over their norm; data may be in float32
CANCELLED = 0.01  # of the parts' gradients, that counts where they cancel in the mean
TINY = 1e-300  # so that nothing over nothing is nothing


class EnsemblePrediction(NamedTuple):
    """What many runs in drawn batches are predicted to amount to.

    Attributes:
      flow: the flow.
      step_sizes: step sizes of descent.
      ensemble: the prediction. Standard errors are of the samples of the noise, errors of the
        discretisation and of the order that is left out, as it is estimated.
      gradient_evaluations: work beside that of the flow, in gradients of f.

    Example:
      >>> def f(w):
      ...     return 0.5 * w**2
      >>> def loss(w, index):
      ...     return 0.5 * w**2 + w * (2 * index - 1)
      >>> found = gf_jax.predict_ensemble(
      ...     f, jnp.array(1.0), [1.0, 2.0], [0.1],
      ...     batches=gf_jax.Batches(loss, 2, order="replacement"), samples=500)
      >>> found.ensemble.mean_to_flow.value.round(4)  # s t exp(-t)/2
      array([[0.0184],
             [0.0135]])
    """

    flow: Flow
    step_sizes: Float[np.ndarray, " lanes"]
    ensemble: Ensemble
    gradient_evaluations: int


def predict_ensemble(
    f: Loss | Program,
    params: PyTree,
    times: Float[ArrayLike, " times"],
    step_sizes: Float[ArrayLike, " lanes"],
    *,
    batches: Any,
    samples: int = SAMPLES,
    seed: int = 0,
    progress: Progress | None = None,
) -> EnsemblePrediction:
    """Predicts how plain descent in drawn batches spreads, and what its mean does.

    To leading order, without running descent. Of batches drawn with replacement one solve along the
    flow holds for every step size; of shuffled ones each step size has its own.

    Args:
      f: maps parameters to a scalar loss; smooth, and twice differentiable by JAX.
      params: initial point, a pytree whose floating-point arrays move, see ``compare``.
      times: ascending times from 0, the last above 0; of shuffled batches multiples of every step
        size.
      step_sizes: of descent.
      batches: ``gf_jax.Batches`` in the order "replacement" or "shuffled", as in
        ``gradient_descent``.
      samples: how many samples of the noise are followed; errors are as the root of it.
      seed: of the noise, 0 to 2^32 - 1.
      progress: is called now and then with the share of the work done.

    Raises:
      ValueError: on arguments that are not accepted, batches that are not drawn, and an f with
        kinks.

    Source: Li, Tai & E, ICML 2017; of shuffled batches derived here.

    Example:
      >>> def f(w):
      ...     return 0.5 * w**2
      >>> def loss(w, index):
      ...     return 0.5 * w**2 + w * (2 * index - 1)
      >>> found = gf_jax.predict_ensemble(
      ...     f, jnp.array(1.0), [5.0], [0.1, 0.01],
      ...     batches=gf_jax.Batches(loss, 2, order="replacement"), samples=500)
      >>> bool((abs(found.ensemble.spread.value[-1] ** 2 - [0.05, 0.005]) < [0.01, 0.001]).all())
      True
    """
    lanes = checked_step_sizes(step_sizes)
    problem = flow_problem(f, params, times, None)
    _check(batches, samples, seed)
    problem = problem.with_batches(batches.loss, batches.number)
    if problem.has_kinks:
        raise ValueError("f: has kinks; accepted for predictions of ensembles is a smooth f")
    check_twice(problem)
    _check_parts(problem)
    told = part(progress, 0.0, OF_FLOW)
    flow = gradient_flow(problem.program, problem.params, problem.times, progress=told)
    solved = noise_grids.solve(
        problem,
        flow.params,
        batches,
        lanes,
        samples,
        seed,
        part(progress, OF_FLOW, 1 - OF_FLOW),
    )
    known = np.isfinite(flow.loss)[:, None]
    ensemble = jax.tree.map(lambda leaf: np.where(known, leaf, np.nan), _ensemble(solved, lanes))
    return EnsemblePrediction(flow, lanes, ensemble, solved.evaluations)


def _check(batches: Any, samples: Any, seed: Any) -> None:
    """Raises ValueError on batches that are not predicted, and numbers that are none."""
    if batches.order not in ("replacement", SHUFFLED):
        raise ValueError(
            f"batches: their order is {batches.order!r}: they are not random, and gf_jax.predict "
            f"takes them; accepted are 'replacement' and {SHUFFLED!r}"
        )
    for name, value in (("size", batches.size), ("svag", batches.svag)):
        if not (isinstance(value, int | np.integer) and value >= 1):
            raise ValueError(f"batches: {name} is {value!r}; accepted is a positive integer")
    if batches.order == SHUFFLED and (batches.number % batches.size or batches.svag > 1):
        raise ValueError(
            f"batches: size is {batches.size} and svag {batches.svag}; shuffled, accepted are "
            f"divisors of their number, {batches.number}, and 1"
        )
    if not (isinstance(samples, int | np.integer) and samples >= 2):
        raise ValueError(f"samples: got {samples!r}; accepted is an integer from 2 on")
    if not (isinstance(seed, int | np.integer) and 0 <= seed < 2**32):
        raise ValueError(f"seed: got {seed!r}; accepted is an integer from 0 to 2^32 - 1")


def _check_parts(problem: FlowProblem) -> None:
    """Raises ValueError unless the mean gradient of the parts is that of f, at the start."""
    batched, pure = problem.batched, problem.pure
    assert batched is not None
    of_part, number = batched.program.pure, batched.number

    def both(data: Any, params: PyTree) -> tuple[Array, Array, Array]:
        _, pull = jax.vjp(lambda point: losses_of_parts(of_part, data[1], point, number), params)
        signs = jnp.where(jnp.arange(number) % 2 == 0, 1.0, -1.0)
        (mean,), (others,) = pull(jnp.full(number, 1 / number)), pull(signs / number)
        off = optax.tree.sub(mean, pure.gradient(data[0], params))
        return optax.tree.norm(off), optax.tree.norm(mean), optax.tree.norm(others)

    find = pure.once(("parts", of_part, number), lambda: jit(both, speed=pure.flow_speed))
    with problem.numbers.context():
        data = problem.data, batched.program.data
        off, size, others = map(float, find(data, problem.params))
    if off > SAME * (size + CANCELLED * others):  # where the mean is zero, rounding is not
        raise ValueError(
            f"batches: the mean gradient of the parts is off by {off / (size or 1):.2g} of itself "
            "from that of f; accepted are parts whose mean is f"
        )


def _ensemble(solved: noise_grids.Solved, step_sizes: np.ndarray) -> Ensemble:
    """The numbers of every step size, with what the solve tells of their errors.

    The order that is left out is taken to be smaller than the one before by the step size times
    the sum of three rates: the curvature that the samples meet; the square of the force on them
    that is not linear over that which is; and that of what they change of the noise over the
    noise. On a quadratic in its stationary state the first is twice what it is, and so the last
    is doubled. Shuffled, samples are small where epochs are short, and what a batch's Hessian
    makes of its own noise counts too.
    """
    fine, sizes = solved.fine, step_sizes[None]
    squares, pairs, losses = (
        _extrapolated(getattr(solved.coarse, name), getattr(fine, name))
        for name in ("squares", "pairs", "losses")
    )
    linear, bent, of_mean = np.moveaxis(fine.bends, -1, 0)
    spread, shift = (np.maximum(each.value, 0) for each in (squares, pairs))
    kicks, changes, own = np.moveaxis(fine.noise, -1, 0)
    rate = np.sqrt(linear / (spread + TINY)) + bent / (linear + TINY) + 2 * changes / (kicks + TINY)
    if solved.shuffled:
        rate = rate + np.sqrt(own / (kicks + TINY))
    rate_of_mean = np.maximum(rate, np.sqrt(of_mean / (shift + TINY)))
    left_out, left_out_of_mean = sizes * rate, sizes * rate_of_mean
    sizes_of_losses = fine.shifts.sum(axis=-1)
    return Ensemble(
        spread=_rooted(squares, sizes, left_out / 2),
        mean_to_flow=_rooted(pairs, sizes**2, left_out_of_mean),
        loss_difference=Estimate(
            sizes * losses.value,
            sizes * losses.standard_error,
            sizes * (losses.error + left_out * sizes_of_losses),
        ),
    )


def _extrapolated(coarse: np.ndarray, fine: np.ndarray) -> Estimate:
    """Means over samples as the grid becomes fine, (times, solves), by the second order of both."""
    change = (fine - coarse) / 3
    values = fine + change
    error = values.std(axis=-1, ddof=1) / np.sqrt(values.shape[-1])
    return Estimate(values.mean(axis=-1), error, np.abs(change.mean(axis=-1)))


def _rooted(square: Estimate, factor: np.ndarray, left_out: np.ndarray) -> Estimate:
    """The root of a square times a factor, of which a share is left out."""
    value, of_samples, of_grid = (factor * each for each in vars(square).values())
    root = root_of(value, of_samples, np.zeros_like(value))
    by_grid = root_of(value, of_grid, np.zeros_like(value)).standard_error
    return dataclasses.replace(root, error=by_grid + left_out * root.value)
