"""Predictions of how far descent stands from its flow, and from descent with other steps."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from gf_jax import piecewise
from gf_jax.comparison import distance
from gf_jax.flow import (
    Flow,
    checked_step_sizes,
    deviation,
    first_lane,
    make_flow,
    precise_distance,
)
from gf_jax.flow_problem import FlowProblem, Progress, flow_problem
from gf_jax.kinks import Gated
from gf_jax.tracing import Loss

PyTree = Any

STEP_BY_STEP = 2  # ratio up to which, with kinks, a run costs less that way
MACRO_STEP = 10  # with kinks, in steps of the base run, before they are halved
PREDICTION_CHANGE = 0.05  # below which they are halved no more


class Prediction(NamedTuple):
    """Distances of descent as predicted, as NumPy arrays.

    Attributes:
      flow: the flow as the prediction has it; ``gradient_flow`` is more accurate.
      step_sizes: step sizes of descent, the first of which is the base.
      to_flow: distance of descent from gradient flow.
      to_base: distance of descent from descent with the first step size.
      error: largest relative error of ``to_base``, of the largest distance of each
        step size, as a coarser solve tells it; NaN if no coarser one was possible. What
        the theory leaves out is not in it.
      kinks: number of kinks of f; 0 means that f was taken as smooth.
    """

    flow: Flow
    step_sizes: Float[np.ndarray, " lanes"]
    to_flow: Float[np.ndarray, "times lanes"]
    to_base: Float[np.ndarray, "times lanes"]
    error: float
    kinks: int


def predict(
    f: Loss,
    params: PyTree,
    times: Float[ArrayLike, " times"],
    step_sizes: Float[ArrayLike, " lanes"],
    *,
    progress: Progress | None = None,
) -> Prediction:
    """Predicts how far descent stands from its flow and from descent with other steps.

    For a smooth f, from the first-order deviation. With kinks, the base and a run of
    half its step size are taken step by step, and all others, and the flow, by macro
    steps of up to ten steps of the base, halved until ``error`` is below 0.05, or they
    are single ones: the phase at which every run meets every kink matters, so that no
    expansion in the step size would do. Where runs part at a kink whose sides lead
    apart, the side that each of them takes may be predicted wrongly, and ``error`` does
    not tell.

    Args:
      f: maps parameters to a scalar loss; differentiable by JAX.
      params: initial point, a pytree of floating-point arrays.
      times: ascending times from 0, the last above 0; with kinks, multiples of the
        first step size.
      step_sizes: in time per iteration, the base first; with kinks, that is a multiple
        of every other.
      progress: is called now and then with the share of the work done.

    Raises:
      ValueError: on arguments that are not accepted.
    """
    lanes = checked_step_sizes(step_sizes)
    problem = flow_problem(f, params, times, None)
    if problem.has_kinks:
        return _predict_with_kinks(problem, lanes, progress)
    result = deviation(f, params, times, progress=progress)
    scale = result.norm.max()
    return Prediction(
        flow=result.flow,
        step_sizes=lanes,
        to_flow=np.stack([result.gap(s) for s in lanes], axis=1),
        to_base=np.stack([result.gap(s, lanes[0]) for s in lanes], axis=1),
        error=float(result.error.max() / scale) if scale > 0 else 0.0,
        kinks=0,
    )


def _predict_with_kinks(
    problem: FlowProblem, lanes: np.ndarray, progress: Progress | None
) -> Prediction:
    base = float(lanes[0])
    ratios, counts = base / lanes, problem.times / base
    if not np.allclose(ratios, np.round(ratios), rtol=1e-9) or (ratios < 1 - 1e-9).any():
        raise ValueError(
            f"step_sizes: got {lanes.tolist()}; f has kinks, so accepted are a first step size "
            "and whole fractions of it"
        )
    if not np.allclose(counts, np.round(counts), rtol=0, atol=1e-6):
        raise ValueError(
            f"times: f has kinks, so accepted are multiples of the first step size, {base:g}"
        )

    # Runs with few steps are taken step by step, the others and the flow by macro steps.
    plain = ratios < STEP_BY_STEP + 0.5
    flow_at = int(plain.sum())  # runs step by step come first, then the flow
    positions = np.where(plain, plain.cumsum() - 1, flow_at + (~plain).cumsum())

    def program(
        gated: Gated, macro_steps: piecewise.MacroSteps, tell: piecewise.Tell | None
    ) -> tuple[PyTree, Array, Array]:
        states = piecewise.follow(
            gated,
            problem.params,
            macro_steps,
            jnp.asarray([0.0, *lanes[~plain]]),
            times=len(problem.times),
            exact_phase=True,
            plain=lanes[plain].tolist(),
            tell=tell,
        )
        runs = jax.tree.map(lambda leaf: leaf[:, positions], states)
        flow = jax.tree.map(lambda leaf: leaf[:, flow_at, None], states)
        run = jax.tree.map(lambda leaf: leaf[:, :1], runs)
        gaps = [distance(runs, reference, stack_axes=2) for reference in (flow, run)]
        return first_lane(flow), *gaps

    def change(before: Any, after: Any) -> float:
        largest = after[2].max(axis=0)
        return float((np.abs(after[2] - before[2]) / np.where(largest > 0, largest, 1.0)).max())

    halving = piecewise.halve(
        problem,
        program,
        lambda before, after: change(before, after) < PREDICTION_CHANGE,
        longest=MACRO_STEP * base,
        unit=base,
        cost=piecewise.COST * (1 + (~plain).sum()),
        more=round(counts[-1]) * ratios[plain].sum(),
        progress=progress,
    )
    params, to_flow, to_base = halving.solution
    error, flow_error = np.nan, np.full(len(problem.times), np.nan)  # unknown
    if halving.before is not None:
        error = change(halving.before, halving.solution)
        flow_error = precise_distance(params, halving.before[0], 1)
    return Prediction(
        flow=make_flow(problem, params, flow_error, halving.statistics),
        step_sizes=lanes,
        to_flow=to_flow,
        to_base=to_base,
        error=error,
        kinks=problem.gated.size,
    )
