"""Descent and gradient flow of a piecewise smooth loss, in macro steps.

ReLU and max-pooling make the gradient jump where a kink variable z crosses zero. A
high-order method has no high order there, and a Hessian misses the jumps. A macro
step of length h instead takes every crossing into account, by the share of the step
that each kink is open. It stands for m = h/s steps of descent with step size s, or,
with s = 0, for the flow: with the gated form F, z of the loss, see ``kinks``,

    tau_i    = share of the step after which z_i changes sign, if it does; else 1
    c_i      = ceil(m tau_i) / m, the share of the m gradients taken before that
               (flow: tau_i; on average over the phase of the steps: tau_i + 1/(2m))
    gates_i  = H(z_i at the beginning) c_i + H(z_i at the end) (1 - c_i)
    middle   = the mean of the m iterates: half of h - s along the path
    params  <- params - h dF(middle, gates)

where the path within a step is the parabola of the last two gradients. An error of
order h² remains. Descent is followed with the actual phase of its steps, so that those
kinks are met, too, that a run with one step size passes and one with another does not:
near a repelling kink, where the two sides lead apart, there is no expansion in the
step size. Which side a run takes may there hang on less than the error of a macro
step, and nothing but descent itself decides it.

With the average phase, macro steps follow the modified flow of a piecewise smooth
loss, and their derivative in s at s = 0 is the first-order deviation with its jumps:
e gains Δg (½ − n·e / v) where a kink with normal n is crossed at speed v and the
gradient jumps by Δg (the saltation of a discontinuous flow).

Source: own work; saltation: di Bernardo et al., Piecewise-smooth Dynamical Systems,
2008, section 2.5.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gf_jax.flow import ties
from gf_jax.flow.problem import (
    FlowProblem,
    Progress,
    Statistics,
    Telling,
    tell_after_solve,
    tells_meanwhile,
)
from gf_jax.program.compiling import jit
from gf_jax.program.kinks import Gated, Kink, step

PyTree = Any
Tell = Callable[[Array], None]

MOST_MACRO_STEPS = 2**14
GRADING = 20  # early macro steps are short: no more than time over this,
SHORTEST = 5  # down to the longest over this
# By what macro steps are "halved": were it two, all solutions would meet a kink that lies between
# the points of the first at one phase, and might agree by chance.
HALF = 2.3
MORE_CROSSINGS, FEW_CROSSINGS = 1.4, 10  # when all macro steps are halved: what slides has more
COST = 7 / 3  # of a macro step in gradients: two of them, and a forward pass


class MacroSteps(NamedTuple):
    """A division of time, padded so that divisions of one size share a program.

    Attributes:
      number: of macro steps.
      lengths: length of every macro step, in time.
      slots: for each, the index of the sampling time at which it ends, or the number
        of sampling times if it ends at none.
    """

    number: int
    lengths: Float[np.ndarray, " padded"]
    slots: Int[np.ndarray, " padded"]


def divide(
    times: Float[np.ndarray, " times"], longest: float, *, unit: float = 0.0
) -> MacroSteps | None:
    """Divides time from 0 so that macro steps end at all sampling times.

    Args:
      times: ascending sampling times.
      longest: no macro step is longer, unless the unit is. Near time 0, where a flow
        is fastest, they are shorter.
      unit: lengths are multiples of it, and so must the times be; 0 for any length.

    Returns:
      None if there are more than MOST_MACRO_STEPS.
    """
    lengths: list[float] = []
    slots: list[int] = []
    now = 0.0
    for slot, time in enumerate(times):
        while time - now > 1e-9 * time:
            wanted = min(longest, max(longest / SHORTEST, now / GRADING))
            parts = max(1, int(np.ceil((time - now) / wanted - 1e-9)))
            length = (time - now) / parts
            if unit:
                length = unit * max(1, int(length / unit + 1e-9))
            now += length
            lengths.append(length)
            slots.append(len(times))
            if len(lengths) > MOST_MACRO_STEPS:
                return None
        if lengths and time > 0:
            slots[-1], now = slot, float(time)
    rest = MOST_MACRO_STEPS - len(lengths)
    return MacroSteps(
        len(lengths),
        np.array(lengths + [1.0] * rest),
        np.array(slots + [len(times)] * rest, np.int32),
    )


class _Lane(NamedTuple):
    """One lane between two macro steps."""

    params: PyTree
    gradient: PyTree
    kinks: list[Array]
    slope: PyTree  # of the gradient in time
    crossings: Array  # of kinks, so far


def follow(
    gated: Gated,
    params: PyTree,
    macro_steps: MacroSteps,
    step_sizes: Float[Array, " lanes"],
    *,
    times: int,
    exact_phase: bool,
    tell: Tell | None = None,
) -> tuple[PyTree, Float[Array, " lanes"]]:
    """Follows descent with every step size, 0 being the flow, all lanes at once.

    Args:
      gated: the loss in gated form.
      params: the common initial point.
      macro_steps: the division of time.
      step_sizes: of the lanes; with an exact phase, every macro step is a multiple.
      times: number of sampling times.
      exact_phase: whether kinks are met at the actual phase of the steps, or at the
        average one.
      tell: is called now and then with the number of macro steps taken.

    Returns:
      Parameters of all lanes at the sampling times, leaves of shape (times, lanes, ...), and how
      many kinks every lane crossed.
    """
    evaluate = jax.grad(gated.both, has_aux=True)

    def macro_step(lane: _Lane, length: Array, step_size: Array) -> _Lane:
        def ahead(distance: Array) -> PyTree:
            """The point that far ahead in time, on the parabola of the last gradients."""
            return jax.tree.map(
                lambda p, g, slope: p - distance * (g + distance / 2 * slope),
                lane.params,
                lane.gradient,
                lane.slope,
            )

        gates = [
            _mean_gates(begin, end, step_size / length, exact_phase)
            for begin, end in zip(lane.kinks, gated.kinks(ahead(length)), strict=True)
        ]
        mean_gradient, _ = evaluate(ahead((length - step_size) / 2), gates)
        params = jax.tree.map(lambda p, g: p - length * g, lane.params, mean_gradient)
        gradient, kinks = evaluate(params, None)
        slope = jax.tree.map(lambda g, before: (g - before) / length, gradient, lane.gradient)
        variables = [kink.z for kink in kinks]
        passed = [jnp.sum(a * b < 0) for a, b in zip(lane.kinks, variables, strict=True)]
        crossings = sum(passed, lane.crossings)
        return _Lane(params, gradient, variables, slope, crossings)

    def advance(number: Array, carry: tuple[Any, ...]) -> tuple[Any, ...]:
        lanes, kept = carry
        length = lengths[number]
        lanes = jax.vmap(macro_step, in_axes=(0, None, 0))(lanes, length, step_sizes)
        # The last row takes what is not asked for.
        kept = jax.tree.map(
            lambda store, leaf: jax.lax.dynamic_update_index_in_dim(store, leaf, slots[number], 0),
            kept,
            lanes.params,
        )
        if tell is not None:
            often = number % (1 + macro_steps.number // 100) == 0
            jax.lax.cond(often, lambda: jax.debug.callback(tell, number), lambda: None)
        return lanes, kept

    lengths, slots = jnp.asarray(macro_steps.lengths), jnp.asarray(macro_steps.slots)
    gradient, kinks = evaluate(params, None)
    variables = [kink.z for kink in kinks]
    flat = jax.tree.map(jnp.zeros_like, params)
    start = _Lane(params, gradient, variables, flat, jnp.zeros((), step_sizes.dtype))
    shape = (len(step_sizes),)
    lanes = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, shape + leaf.shape), start)
    kept = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (times + 1, *leaf.shape)), lanes.params)
    lanes, kept = jax.lax.fori_loop(0, macro_steps.number, advance, (lanes, kept))
    return jax.tree.map(lambda leaf: leaf[:-1], kept), lanes.crossings


def _mean_gates(begin: Array, ahead: Kink, step_share: Array, exact_phase: bool) -> Array:
    """Mean gates of a kink over a macro step, from the kink variable at both ends.

    Args:
      begin: the kink variable at the beginning.
      ahead: the kink at the end; where it stays zero, its gates are those of the kink itself.
      step_share: step size over the length of the macro step; 0 is the flow.
      exact_phase: whether steps begin with the macro step, or anywhere.
    """
    end = ahead.z
    crossed = ((begin < 0) & (end >= 0)) | ((begin > 0) & (end <= 0))
    share = jnp.where(crossed, begin / jnp.where(crossed, begin - end, 1.0), 1.0)
    if exact_phase:
        unit = jnp.where(step_share > 0, step_share, 1.0)
        # A crossing at an iterate itself counts as before it, whatever rounding says.
        whole = jnp.ceil(share / unit - 1e-9) * unit
        share = jnp.where(step_share > 0, whole, share)
    else:
        # May exceed one: the last step then ends beyond the macro step.
        share = jnp.where(crossed, share + step_share / 2, 1.0)
    before = step(ahead._replace(z=jnp.where(begin == 0, end, begin)))
    after = step(ahead._replace(z=jnp.where(end == 0, -begin, end)))
    return before * share + after * (1 - share)


class Halving(NamedTuple):
    """What halving all macro steps has led to.

    Attributes:
      solutions: of the last divisions, three at most, the finest last.
      crossings: how many kinks each lane crossed, with each of these divisions.
      statistics: what it took.
    """

    solutions: list[PyTree]
    crossings: list[np.ndarray]
    statistics: Statistics

    @property
    def solution(self) -> PyTree:
        """That of the finest division."""
        return self.solutions[-1]

    @property
    def slides(self) -> np.ndarray:
        """Whether a lane crosses the more kinks the finer its macro steps are.

        Both sides of a kink then lead to it, and the lane slides along it.
        """
        if len(self.crossings) < 2:
            return np.zeros(len(self.crossings[-1]), bool)
        before, after = self.crossings[-2:]
        return after > MORE_CROSSINGS * before + FEW_CROSSINGS


def halve(
    problem: FlowProblem,
    step_sizes: Float[np.ndarray, " lanes"],
    enough: Callable[[Any, Any], bool],
    *,
    exact_phase: bool,
    longest: float,
    unit: float = 0.0,
    cost: float,
    budget: float | None = None,
    progress: Progress | None,
) -> Halving:
    """Solves with ever smaller macro steps until enough, or until no more fit.

    Args:
      problem: the problem.
      step_sizes: of the lanes, see ``follow``, like exact_phase.
      enough: tells from two solutions, the finer last, whether that is accurate enough; of the
        last three solutions where that costs next to nothing, since two may agree by chance.
      exact_phase: whether kinks are met at the actual phase of the steps.
      longest: length of the first macro steps.
      unit: of all lengths, 0 for any.
      cost: of a macro step, in gradients.
      budget: gradients that all solves may take together, of which there are two in
        any case; None is as many as it takes.
      progress: is told the share of the work done, at most.

    Raises:
      ValueError: if there are too many sampling times.
    """
    divisions: list[MacroSteps] = []
    work, last = 0.0, problem.times[-1]
    # Two divisions are wanted in any case, as only the second tells an error.
    while longest < last and divide(problem.times, max(longest / HALF, unit), unit=unit) is None:
        longest *= 2
    while longest > unit / 2:
        division = divide(problem.times, longest, unit=unit)
        if division is None:
            break
        work += cost * division.number
        if budget is not None and len(divisions) >= 2 and work > budget:
            break
        if not divisions or division.number > divisions[-1].number:
            divisions.append(division)
        longest /= HALF
    if not divisions:
        raise ValueError(
            f"times: more than {MOST_MACRO_STEPS:,} macro steps would have to end at the "
            f"{len(problem.times):,} times; ask for fewer or a shorter time"
        )
    done: list[int] = []
    everything = sum(division.number for division in divisions)
    tells, start = tells_meanwhile(progress, problem.program), ties.start(problem)
    telling, solve = _solver(problem, exact_phase, tells)
    if progress is not None:
        telling.progress = lambda number: progress((sum(done) + float(number)) / everything)
    solutions: list[PyTree] = []
    crossings: list[np.ndarray] = []
    for division in divisions:
        with problem.numbers.context():
            solution, crossed = jax.device_get(
                solve(problem.data, start, step_sizes, division, problem.times)
            )
        solutions, crossings = [*solutions[-2:], solution], [*crossings[-2:], crossed]
        done.append(division.number)
        tell_after_solve(progress, sum(done) / everything)
        pairs = itertools.pairwise(solutions)
        if cost * sum(done) > problem.pure.cheap:
            pairs = itertools.pairwise(solutions[-2:])
        certain = len(done) > 2 or cost * sum(done) > problem.pure.cheap
        if len(done) > 1 and certain and all(itertools.starmap(enough, pairs)):
            break
    evaluations = [round(cost * count) for count in done]
    complete = all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(solutions[-1]))
    statistics = Statistics(
        steps=done[-1],
        rejected_steps=0,
        gradient_evaluations=evaluations[-1],
        complete=bool(complete),
        checking_evaluations=sum(evaluations[:-1]),
    )
    return Halving(solutions, crossings, statistics)


def _solver(problem: FlowProblem, exact_phase: bool, tells: bool) -> tuple[Telling, Callable]:
    """The compiled solver, for all divisions of time, and what it tells its progress to."""
    gated_with = problem.gated_of

    def make() -> tuple[Telling, Callable]:
        telling = Telling()

        def solve(
            data: list[Array],
            params: PyTree,
            step_sizes: Array,
            macro_steps: MacroSteps,
            times: Array,
        ) -> tuple[PyTree, Array]:
            return follow(
                gated_with(data, params),
                params,
                macro_steps,
                step_sizes,
                times=len(times),
                exact_phase=exact_phase,
                tell=telling if tells else None,
            )

        return telling, jit(solve, speed=problem.pure.flow_speed)

    name = ("macro steps", exact_phase, tells, problem.numbers.dtype)
    return problem.pure.once(name, make)
