"""Solves of smooth flows: adaptive, of high order, with an error from a second solve."""

import math
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from gf_jax import stacks
from gf_jax.comparison import precise_distance
from gf_jax.flow.in_blocks import Before, Blocks
from gf_jax.flow.problem import (
    FlowProblem,
    Progress,
    Statistics,
    Telling,
    part,
    tells_meanwhile,
)
from gf_jax.program.compiling import jit

PyTree = Any

MOST_STEPS, FEW_STEPS = 2**17, 2**12
SAFETY = 2.0  # of an error over the difference of two solves
FIRST = 1e-6  # step, as a share of the whole time
SHORTEST = 1e-9  # likewise: what jumps is never resolved
HIGH_ORDER = diffrax.Dopri8()
FEW_STAGES = diffrax.Tsit5()


class System(NamedTuple):
    """An ordinary differential equation, and how it is solved.

    Attributes:
      name: of the equation; one loss has one velocity of that name.
      velocity: maps (arguments, state) to the state's derivative in time.
      solver: a Runge–Kutta method whose last stage is the next step's first.
      error: maps (arguments, error, state) to the size of a step's error, in tolerances of 1.
      cost: of a velocity, in gradients.
      looser: tolerance of the second solve, which tells the error, over that of the first.
      parts: 1 if the state is a pytree like params; else it is a tuple of so many.
    """

    name: Hashable
    velocity: Callable[[Any, PyTree], PyTree]
    solver: diffrax.Dopri8 | diffrax.Tsit5
    error: Callable[[Any, PyTree, PyTree], Array]
    cost: int
    looser: float
    parts: int = 1


class Solution(NamedTuple):
    """A solve's states, leaves (times, ...), the error of each part, and what it took."""

    state: Any
    error: list[np.ndarray]
    statistics: Statistics


class _Solved(NamedTuple):
    """What a compiled solve returns."""

    states: PyTree
    stats: dict[str, Any]
    complete: Array
    before: Before | None


class _Controller(diffrax.PIDController):
    """Step sizes by the size of a step's error as the system takes it."""

    measure: Callable = eqx.field(static=True, kw_only=True)

    def adapt_step_size(
        self, t0: Any, t1: Any, y0: Any, y1: Any, args: Any, error: Any, *rest: Any
    ) -> Any:
        """As PIDController, of one number in place of the state.

        A step to where there is no number is far too long: NaN would be the length of the next.
        """
        argument, tolerance = args[:2]
        size = self.measure(argument, error, y1) / tolerance
        size = jnp.where(jnp.isnan(size), jnp.inf, size)
        zero = jnp.zeros_like(size)
        return super().adapt_step_size(t0, t1, zero, zero, args, size, *rest)


class _Remembering(_Controller):
    """The same, which keeps where the solve stood before its last step."""

    def init(self, terms: Any, t0: Any, t1: Any, y0: Any, dt0: Any, *rest: Any) -> Any:
        """As PIDController."""
        end, memory = super().init(terms, t0, t1, y0, dt0, *rest)
        return end, (memory, Before(jnp.asarray(t0), y0, end - t0, memory))

    def adapt_step_size(
        self, t0: Any, t1: Any, y0: Any, y1: Any, args: Any, error: Any, order: Any, state: Any
    ) -> Any:
        """As PIDController."""
        memory, before = state
        keep, *times, after, result = super().adapt_step_size(
            t0, t1, y0, y1, args, error, order, memory
        )
        now = Before(t0, y0, t1 - t0, memory)
        kept = jax.tree.map(lambda new, old: jnp.where(keep, new, old), now, before)
        return keep, *times, (after, kept), result


class Rest(NamedTuple):
    """What a solve of a block of times is told of the others: the last one, and where it stood."""

    last: float
    before: Before


def solve_twice(
    problem: FlowProblem,
    system: System,
    start: PyTree,
    arguments: list[Any],
    progress: Progress | None,
    most_steps: int = MOST_STEPS,
    rough: list[Any] | None = None,
) -> list[Solution]:
    """Solves at the tolerance and at a looser one, by one compiled program.

    Where states are large both go on by a block of times in turn, and those at the looser
    tolerance are not kept.

    Args:
      problem: the problem.
      system: how it is solved.
      start: state at time 0.
      arguments: of the velocity; one for each solution wanted.
      progress: is told the share of all solves done.
      most_steps: steps beyond which a solve is given up.
      rough: arguments of the looser solves, where their velocity is known less well as well.

    Returns:
      The tighter solutions, with the distance from the looser ones as errors, one for
      each part of the state.
    """
    tells = tells_meanwhile(progress, problem.program)
    telling, solve = _solver(problem, system, most_steps, tells)
    telling.progress = progress
    default = 1e-8 if problem.numbers.dtype == "float64" else 1e-6
    tolerance = problem.tolerance or default
    share, times = 1 / (2 * len(arguments)), problem.times
    blocks, solutions = list(stacks.blocks_of(start, len(times))), []
    begin = Before(0.0, start, FIRST * times[-1], None)

    def once(argument: Any, accepted: float, done: float) -> Blocks:
        def of_block(before: Before, at: np.ndarray, begun: float, more: float) -> Any:
            told = done + begun * share, more * share
            if len(blocks) == 1:
                return solve((argument, accepted), before.state, at, *told, None)
            return solve((argument, accepted), before.state, at, *told, Rest(times[-1], before))

        return Blocks(of_block, begin, times, most_steps, part(progress, done, share))

    with problem.numbers.context():
        for number, argument in enumerate(arguments):
            done = 2 * number * share
            other = argument if rough is None else rough[number]
            coarse = once(other, tolerance * system.looser, done)
            fine = once(argument, tolerance, done + share)
            states, errors = _both(system, coarse, fine, blocks)
            solutions.append(Solution(states, errors, _statistics(system, fine, coarse)))
    return solutions


def _both(
    system: System, coarse: Blocks, fine: Blocks, blocks: list[slice]
) -> tuple[PyTree, list[np.ndarray]]:
    """States of the finer of two solves, and for each part how far those of the other are."""
    kept, errors = None, []
    for at in blocks:
        pair = coarse.states(at), fine.states(at)
        pairs = [pair] if system.parts == 1 else zip(*pair, strict=True)
        of_parts = [SAFETY * precise_distance(a, b, 1) for a, b in pairs]
        reached = jax.tree.map(lambda leaf: np.where(np.isfinite(leaf), leaf, np.nan), pair[1])
        if len(blocks) == 1:
            return reached, of_parts
        if kept is None:
            kept = stacks.empty(stacks.take(reached, 0), blocks[-1].stop)
        stacks.put(kept, at, reached)
        # Of a part without numbers it is a single zero.
        errors.append([np.broadcast_to(each, at.stop - at.start) for each in of_parts])
    return kept, [np.concatenate(column) for column in zip(*errors, strict=True)]


def whole(_: Any, error: PyTree, state: PyTree) -> Array:
    """The norm of a step's error over all parameters."""
    return optax.tree.norm(error)


def most_steps(system: System, budget: int | None) -> int:
    """Steps that a solve may take within a budget of gradients: thousands in any case."""
    if budget is None:
        return MOST_STEPS
    stages = len(system.solver.tableau.b_sol) - 1
    wanted = max(FEW_STEPS, budget / (system.cost * stages))
    return min(MOST_STEPS, 2 ** math.ceil(math.log2(wanted)))


def _solver(
    problem: FlowProblem, system: System, most_steps: int, tells: bool
) -> tuple[Telling, Callable]:
    """The compiled solver, and what it tells its progress to."""

    def make() -> tuple[Telling, Callable]:
        telling = Telling()

        def solve(
            arguments: Any,
            start: PyTree,
            times: Array,
            done: float,
            share: float,
            rest: Rest | None,
        ) -> Any:
            options: dict[str, Any] = {}
            last: Any = times[-1]
            begin: Any = 0.0
            first: Any = FIRST * times[-1]
            if rest is not None:
                last, begin, first = rest.last, rest.before.time, rest.before.step
                options["event"] = diffrax.Event(lambda t, y, args, **_: t >= args[2])
                arguments = (*arguments, times[-1])
            # One vector: what diffrax does to every leaf is most of what is compiled.
            vector, unravel = ravel_pytree(start)
            if rest is not None and rest.before.memory is not None:
                before = rest.before._replace(state=vector)
                options["controller_state"] = (before.memory, before)

            def velocity(_: Any, state: Array, args: Any) -> Array:
                return ravel_pytree(system.velocity(args[0], unravel(state)))[0]

            def size(argument: Any, *states: Array) -> Array:
                return system.error(argument, *map(unravel, states))

            found = diffrax.diffeqsolve(
                diffrax.ODETerm(velocity),
                system.solver,
                t0=begin,
                t1=last,
                dt0=first,
                y0=vector,
                args=arguments,
                saveat=diffrax.SaveAt(ts=times, controller_state=rest is not None),
                stepsize_controller=(_Controller if rest is None else _Remembering)(
                    rtol=0.0,
                    atol=1.0,  # the measure does the scaling
                    pcoeff=0.2,
                    icoeff=0.4,
                    dtmin=SHORTEST * last,
                    force_dtmin=False,
                    measure=size,
                ),
                max_steps=most_steps,
                throw=False,
                adjoint=diffrax.ForwardMode(),  # nothing differentiates it: less is traced
                progress_meter=_Meter(telling, done, share) if tells else diffrax.NoProgressMeter(),
                **options,
            )
            complete, ended = found.result == diffrax.RESULTS.successful, None
            if rest is not None:
                complete |= found.result == diffrax.RESULTS.event_occurred
                ended = found.controller_state[1]
                ended = ended._replace(state=unravel(ended.state))
            return _Solved(jax.vmap(unravel)(found.ys), found.stats, complete, ended)

        return telling, jit(solve, speed=problem.pure.flow_speed)

    return problem.pure.once((system.name, most_steps, tells, problem.numbers.dtype), make)


def _statistics(system: System, fine: Blocks, rough: Blocks) -> Statistics:
    # Each step evaluates all stages but the first, known from the step before it, if any.
    stages = len(system.solver.tableau.b_sol) - 1
    evaluations = [
        system.cost * (solve.counts["num_steps"] * stages + solve.calls) for solve in (fine, rough)
    ]
    return Statistics(
        steps=fine.counts["num_accepted_steps"],
        rejected_steps=fine.counts["num_rejected_steps"],
        gradient_evaluations=evaluations[0],
        complete=fine.complete,
        checking_evaluations=evaluations[1],
    )


class _Meter(diffrax.AbstractProgressMeter):
    """Tells how much is solved, a hundred times."""

    report: Telling = eqx.field(static=True)
    done: Any
    share: Any

    def init(self) -> Array:
        return jnp.zeros(())

    def step(self, state: Array, progress: Any) -> Array:
        def tell(progress: Array) -> Array:
            jax.debug.callback(self.report, self.done + progress * self.share)
            return progress

        return jax.lax.cond(progress > state + 0.01, tell, lambda _: state, progress)

    def close(self, state: Array) -> None:
        pass
