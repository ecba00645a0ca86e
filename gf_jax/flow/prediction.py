"""Predictions of where descent stands: how far from its flow and other steps, and how low."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float

from gf_jax.comparison import precise_distance
from gf_jax.flow import piecewise
from gf_jax.flow.deviation import Deviation, deviation
from gf_jax.flow.expansion import expand
from gf_jax.flow.first_steps import first_steps
from gf_jax.flow.flow import Flow, check_twice, checked_step_sizes, make_flow, tree_norm
from gf_jax.flow.limit_flow import is_plain, limit_from
from gf_jax.flow.losses import losses_of_runs
from gf_jax.flow.macro_steps import FIRST_MACRO_STEPS, error_of_changes, first_lane
from gf_jax.flow.problem import (
    FlowProblem,
    Progress,
    Telling,
    flow_problem,
    part,
    tell_after_solve,
    tells_meanwhile,
)
from gf_jax.optimizers.momentum import OfTime, time_scale
from gf_jax.optimizers.steps import Optimizer
from gf_jax.program.compiling import jit
from gf_jax.program.program import Loss, Program

PyTree = Any

STEP_BY_STEP = 2  # ratio up to which, with kinks, a run costs less that way
MACRO_STEP = 10  # with kinks, in steps of the base run, before they are halved
PREDICTION_CHANGE = 0.05  # below which they are halved no more
CHEAP_CHANGE = 0.005  # likewise, where all runs are taken step by step
LIMIT_TOLERANCE, DEVIATION_TOLERANCE = 1e-5, 1e-4  # of an optimiser; gaps are of the latter alone
JUMP = 1e-3  # of the gradient, over its norm at the start, that a smooth f does not make


class Prediction(NamedTuple):
    """Distances and losses of descent as predicted, as NumPy arrays.

    Attributes:
      flow: the flow as the prediction has it; ``gradient_flow`` is more accurate.
      step_sizes: step sizes of descent, the first of which is the base.
      to_flow: distance of descent from gradient flow.
      to_base: distance of descent from descent with the first step size.
      to_flow_error, to_base_error: estimated errors of both, of the same shapes: of the solve,
        and for a smooth f of the orders that are left out. NaN where nothing tells.
      loss: f of descent; less ``flow.loss`` it is what finite steps change.
      loss_error: by how much ``loss`` less ``flow.loss`` may be wrong, as params are by
        ``to_flow_error``.
      slides: whether the flow, or any run, slides along a kink.
      jumps: whether something in f jumps that was not seen, so that nothing here holds.
      kinks: number of kinks of f; 0 means that f was taken as smooth.

    Example:
      >>> def f(w):
      ...     return jnp.sum((w**2 - 1) ** 2)
      >>> w = jnp.array([0.1, 1.5])
      >>> found = gf_jax.predict(f, w, [0.1, 0.2], [0.01, 0.005])
      >>> found.to_base.round(4), found.kinks
      (array([[0.    , 0.0066],
             [0.    , 0.0039]]), 0)
    """

    flow: Flow
    step_sizes: Float[np.ndarray, " lanes"]
    to_flow: Float[np.ndarray, "times lanes"]
    to_base: Float[np.ndarray, "times lanes"]
    to_flow_error: Float[np.ndarray, "times lanes"]
    to_base_error: Float[np.ndarray, "times lanes"]
    loss: Float[np.ndarray, "times lanes"]
    loss_error: Float[np.ndarray, "times lanes"]
    slides: bool
    jumps: bool
    kinks: int

    @property
    def error(self) -> float:
        """Largest error of ``to_base``, over the largest distance of each step size."""
        largest = self.to_base.max(axis=0)
        return float((self.to_base_error / np.where(largest > 0, largest, 1.0)).max())


def predict(
    f: Loss | Program,
    params: PyTree,
    times: Float[ArrayLike, " times"],
    step_sizes: Float[ArrayLike, " lanes"],
    *,
    optimizer: Optimizer | None = None,
    batches: Any = None,
    budget: int | None = None,
    progress: Progress | None = None,
) -> Prediction:
    """Predicts how far descent stands from its flow and from descent with other steps.

    For a smooth f, from the deviation of the first two orders. With kinks, the base and a run
    of half its step size are taken step by step, and so are all others where that costs next
    to nothing; else these, and always the flow, by macro steps of up to ten steps of the base,
    halved until ``error`` is below 0.05, or they can be halved no more: the phase at which
    every run meets every kink matters, so that no expansion in the step size would do. Where
    runs part at a kink whose sides lead apart, the side that each of them takes may be
    predicted wrongly, and ``error`` does not tell.

    With an optimiser other than descent, for a smooth f only, from the first order of its own
    expansion, see ``gf_jax.optimizers.limit``; the second order is estimated for the errors.

    Args:
      f: maps parameters to a scalar loss; differentiable by JAX.
      params: initial point, a pytree whose floating-point arrays move, see ``compare``.
      times: ascending times from 0, the last above 0; with kinks, multiples of the
        first step size.
      step_sizes: in time per iteration, the base first; with kinks, that is a multiple
        of every other.
      optimizer: of the runs, as in ``gradient_descent``; None is plain descent. Time per
        iteration is the step size, times the optimiser's time scale if it has one.
      batches: what the steps follow the gradients of in turn, ``gf_jax.Batches`` as in
        ``gradient_descent``, of a smooth f; None is f.
      budget: gradients beyond which the solve of a smooth f is given up.
      progress: is called now and then with the share of the work done.

    Raises:
      ValueError: on arguments that are not accepted, and on an optimiser without a continuous
        limit.

    Example:
      >>> def f(w):
      ...     return jnp.sum((w**2 - 1) ** 2)
      >>> w = jnp.array([0.1, 1.5])
      >>> gf_jax.predict(f, w, [0.1, 0.2], [0.01, 0.005]).to_flow.round(4)
      array([[0.0128, 0.0063],
             [0.0078, 0.0039]])
    """
    lanes = checked_step_sizes(step_sizes)
    problem = flow_problem(f, params, times, None)
    if batches is not None:
        if batches.order != "cyclic":
            raise ValueError(
                f"batches: their order is {batches.order!r}, and runs are random; accepted is "
                "'cyclic', or gf_jax.predict_ensemble for what many runs do together"
            )
        problem = problem.with_batches(batches.loss, batches.number)
        optimizer = optax.sgd if optimizer is None else optimizer
    if optimizer is not None and is_plain(problem, optimizer):
        optimizer = None
    if problem.has_kinks and optimizer is not None:
        raise ValueError(
            "optimizer: f has kinks; accepted with an optimizer or batches is a smooth f"
        )
    if problem.has_kinks:
        return _predict_with_kinks(problem, lanes, budget, progress)
    if optimizer is not None:
        check_twice(problem)
        return _predict_with_optimizer(problem, lanes, optimizer, budget, progress)
    result = deviation(problem.program, params, times, budget=budget, progress=progress)
    base, error = lanes[0], _columns(lambda s: result.gap_error(s), lanes)
    loss, loss_error = losses_of_runs(problem, result.flow.params, map(result.run, lanes), error)
    return Prediction(
        flow=result.flow,
        step_sizes=lanes,
        to_flow=_columns(lambda s: result.gap(s), lanes),
        to_base=_columns(lambda s: result.gap(s, base), lanes),
        to_flow_error=error,
        to_base_error=_columns(lambda s: result.gap_error(s, base), lanes),
        loss=loss,
        loss_error=loss_error,
        slides=False,
        jumps=_jumps(result),
        kinks=0,
    )


def _columns(of_step_size: Callable[[float], np.ndarray], lanes: np.ndarray) -> np.ndarray:
    return np.stack([of_step_size(float(step_size)) for step_size in lanes], axis=1)


def _jumps(result: Deviation) -> bool:
    """Whether the gradient left what its Jacobian makes of it, or no step was short enough."""
    return not (result.flow.statistics.complete and (result.jumps <= JUMP).all())


def _predict_with_optimizer(
    problem: FlowProblem,
    lanes: np.ndarray,
    optimizer: Optimizer,
    budget: int | None,
    progress: Progress | None,
) -> Prediction:
    """From the first order of the expansion in the step size, of any optimiser.

    A run stands at z + h (e + what the first steps lack of it), with an error of the second order.
    """
    per_iteration = lanes * time_scale(optimizer)
    start = limit_from(problem, OfTime(optimizer), float(per_iteration.min()))
    first = first_steps(start, per_iteration, float(problem.times[-1]))
    times = np.union1d(problem.times, first.times)
    expansion = expand(
        problem._replace(times=times, tolerance=LIMIT_TOLERANCE),
        start,
        float(per_iteration.max()),
        budget,
        progress,
        DEVIATION_TOLERANCE / LIMIT_TOLERANCE,
    )
    found = expansion.at(np.searchsorted(times, problem.times))
    counts = np.round(problem.times[:, None] / per_iteration).astype(int)
    runs = [
        jax.tree.map(lambda leaf, h=h: h * leaf, found.apart(steps))
        for h, steps in zip(per_iteration, counts.T, strict=True)
    ]
    to_flow = np.stack([tree_norm(run) for run in runs], axis=1)
    error = first.corrected(
        *(problem, expansion, times, to_flow),
        *(found.error_at(per_iteration[:, None]).T, per_iteration),
    )
    places = (jax.tree.map(np.add, found.params, run) for run in runs)
    loss, loss_error = losses_of_runs(problem, found.params, places, error)
    checking = found.statistics.checking_evaluations + first.evaluations
    statistics = found.statistics._replace(checking_evaluations=checking)
    return Prediction(
        flow=make_flow(problem, found.params, found.error, statistics),
        step_sizes=lanes,
        to_flow=to_flow,
        to_base=np.stack([precise_distance(run, runs[0], 1) for run in runs], axis=1),
        to_flow_error=error,
        to_base_error=np.maximum(error, error[:, :1]),
        loss=loss,
        loss_error=loss_error,
        slides=False,
        jumps=not (found.statistics.complete and (found.jumps <= JUMP).all()),
        kinks=0,
    )


def _predict_with_kinks(
    problem: FlowProblem, lanes: np.ndarray, budget: int | None, progress: Progress | None
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

    # Runs with few steps are taken step by step, once; the others and the flow by macro steps,
    # in which every one of these runs takes a whole number of steps.
    few = counts[-1] * ratios.sum() <= problem.pure.cheap
    plain = np.ones_like(ratios, bool) if few else ratios < STEP_BY_STEP + 0.5
    others = np.round(ratios[~plain]).astype(int)
    unit = base / np.gcd.reduce(others) if len(others) else 0.0
    runs_by_step = int(plain.sum())
    length = 0.5 / max(1, runs_by_step)
    runs = [
        _step_by_step(problem, step_size, counts * ratio, part(progress, at * length, length))
        for at, (step_size, ratio) in enumerate(zip(lanes[plain], ratios[plain], strict=True))
    ]
    positions = np.where(plain, plain.cumsum() - 1, runs_by_step + (~plain).cumsum() - 1)

    def all_runs(states: PyTree) -> PyTree:
        """Every run in the order of the step sizes; the flow stands first among the states."""
        return jax.tree.map(
            lambda lanes, *runs: np.concatenate([np.stack(runs, axis=1), lanes[:, 1:]], axis=1)[
                :, positions
            ],
            states,
            *runs,
        )

    def to_base(states: PyTree) -> np.ndarray:
        stack = all_runs(states)
        return precise_distance(stack, jax.tree.map(lambda leaf: leaf[:, :1], stack), 2)

    def to_flow(states: PyTree) -> np.ndarray:
        flow = jax.tree.map(lambda leaf: leaf[:, :1], states)
        return precise_distance(all_runs(states), flow, 2)

    def change(before: PyTree, after: PyTree) -> np.ndarray:
        return np.abs(to_base(after) - to_base(before))

    def enough(before: PyTree, after: PyTree) -> bool:
        largest = to_base(after).max(axis=0)
        share = change(before, after) / np.where(largest > 0, largest, 1.0)
        if few:  # the flow alone is followed by macro steps
            moved = precise_distance(first_lane(after), first_lane(before), 1)
            share = moved / np.maximum(to_flow(after).min(axis=1), np.finfo(float).tiny)
        return bool((share < (CHEAP_CHANGE if few else PREDICTION_CHANGE)).all())

    longest = MACRO_STEP * base
    if few:  # long ones may all miss that a kink is crossed and crossed back
        longest = min(longest, problem.times[-1] / FIRST_MACRO_STEPS)
    halving = piecewise.halve(
        problem,
        np.array([0.0, *lanes[~plain]]),
        enough,
        exact_phase=True,
        longest=longest,
        unit=unit,
        budget=budget,
        cost=piecewise.COST * (1 + (~plain).sum()),
        progress=part(progress, 0.5, 0.5),
    )
    solution, statistics = halving.solution, halving.statistics
    steps = round(counts[-1] * ratios[plain].sum())
    evaluations = statistics.gradient_evaluations + steps
    statistics = statistics._replace(gradient_evaluations=evaluations)
    flow = first_lane(solution)
    changes = error_of_changes(halving.solutions, 2)  # of the flow, and of the runs by macro steps
    own = np.concatenate([np.zeros((len(problem.times), runs_by_step)), changes[:, 1:]], axis=1)
    own = own[:, positions]
    stack, error = all_runs(solution), own + changes[:, :1]
    places = (jax.tree.map(lambda leaf, at=at: leaf[:, at], stack) for at in range(len(lanes)))
    loss, loss_error = losses_of_runs(problem, flow, places, error)
    return Prediction(
        flow=make_flow(problem, flow, changes[:, 0], statistics),
        step_sizes=lanes,
        to_flow=to_flow(solution),
        to_base=to_base(solution),
        to_flow_error=error,
        to_base_error=own + own[:, :1],
        loss=loss,
        loss_error=loss_error,
        slides=bool(halving.slides.any()),
        jumps=False,
        kinks=problem.gated.size,
    )


def _step_by_step(
    problem: FlowProblem, step_size: float, counts: np.ndarray, progress: Progress | None
) -> PyTree:
    """One run of descent at the sampling times, leaves of shape (times, ...)."""
    steps = np.diff(np.round(counts).astype(int), prepend=0)
    pure, tells = problem.pure, tells_meanwhile(progress, problem.program)
    speed = pure.speed(int(steps.sum()))

    def make() -> tuple[Telling, Callable]:
        telling = Telling()

        def run(data: list[Array], params: PyTree, step_size: Array, steps: Array) -> PyTree:
            def one(_: Array, params: PyTree) -> PyTree:
                gradient = pure.gradient(data, params)
                return jax.tree.map(lambda p, g: p - step_size * g, params, gradient)

            def between_times(params: PyTree, row: tuple[Array, Array]) -> tuple[PyTree, PyTree]:
                number, count = row
                params = jax.lax.fori_loop(0, count, one, params)
                if tells:
                    jax.debug.callback(telling, (number + 1) / len(steps))
                return params, params

            return jax.lax.scan(between_times, params, (jnp.arange(len(steps)), steps))[1]

        return telling, jit(run, speed=speed)

    telling, run = pure.once(("steps", tells, speed, problem.numbers.dtype), make)
    telling.progress = progress
    with problem.numbers.context():
        states = jax.device_get(run(problem.data, problem.params, step_size, steps))
    tell_after_solve(progress, 1.0)
    return states
