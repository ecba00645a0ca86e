"""Solves of smooth flows: adaptive, of high order, with an error from a second solve."""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from gf_jax.comparison import distance
from gf_jax.flow_problem import FlowProblem, Progress, Statistics

PyTree = Any

MOST_STEPS = 100_000
HIGH_ORDER = diffrax.Dopri8()
FEW_STAGES = diffrax.Tsit5()


class Method(NamedTuple):
    """How a flow is solved.

    Attributes:
      velocity: maps (arguments, state) to the state's derivative in time.
      solver: a Runge–Kutta method whose last stage is the next step's first.
      norm: of a state's error, kept below the tolerance in every step.
      cost: of a velocity, in gradients.
      looser: tolerance of the second solve, which tells the error, over that of the first.
      parts: 1 if the state is a pytree like params; else it is a tuple of so many.
    """

    velocity: Callable[[Any, PyTree], PyTree]
    solver: diffrax.Dopri8 | diffrax.Tsit5
    norm: Callable[[PyTree], Array]
    cost: int
    looser: float
    parts: int = 1


class Solution(NamedTuple):
    """A solve's states, leaves (times, ...), the error of each part, and what it took."""

    state: Any
    error: list[np.ndarray]
    statistics: Statistics


def solve_twice(
    problem: FlowProblem,
    method: Method,
    start: PyTree,
    arguments: list[Any],
    progress: Progress | None,
) -> list[Solution]:
    """Solves at the tolerance and at a looser one, by one compiled program.

    Args:
      problem: the problem.
      method: how it is solved.
      start: state at time 0.
      arguments: of the velocity; one for each solution wanted.
      progress: is told the share of all solves done.

    Returns:
      The tighter solutions, with the distance from the looser ones as errors, one for
      each part of the state.
    """

    @jax.jit
    def solve(argument: Any, start: PyTree, tolerance: float, done: float, share: float) -> Any:
        return diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, state, argument: method.velocity(argument, state)),
            method.solver,
            t0=0.0,
            t1=problem.times[-1],
            dt0=None,
            y0=start,
            args=argument,
            saveat=diffrax.SaveAt(ts=jnp.asarray(problem.times)),
            stepsize_controller=diffrax.PIDController(
                rtol=0.0,
                atol=1.0,  # the norm does the scaling
                norm=lambda error: method.norm(error) / tolerance,
                pcoeff=0.2,
                icoeff=0.4,
            ),
            max_steps=MOST_STEPS,
            throw=False,
            progress_meter=_Meter(progress, done, share)
            if progress is not None
            else diffrax.NoProgressMeter(),
        )

    default = 1e-8 if problem.numbers.dtype == "float64" else 1e-6
    tolerance = problem.tolerance or default
    share = 1 / (2 * len(arguments))
    solutions = []
    with problem.numbers.context():
        for number, argument in enumerate(arguments):
            rough, fine = (
                jax.device_get(
                    solve(argument, start, tolerance * factor, 2 * number * share + at, share)
                )
                for factor, at in ((method.looser, 0.0), (1.0, share))
            )
            whole = (rough.ys, fine.ys)
            pairs = [whole] if method.parts == 1 else zip(*whole, strict=True)
            errors = [np.asarray(distance(a, b, stack_axes=1)) for a, b in pairs]
            reached = jax.tree.map(lambda leaf: np.where(np.isfinite(leaf), leaf, np.nan), fine.ys)
            solutions.append(Solution(reached, errors, _statistics(method, fine, rough)))
    return solutions


def _statistics(method: Method, fine: Any, rough: Any) -> Statistics:
    # Each step evaluates all stages but the first, known from the step before it, if any.
    stages = len(method.solver.tableau.b_sol) - 1
    evaluations = [
        method.cost * (int(solution.stats["num_steps"]) * stages + 1) for solution in (fine, rough)
    ]
    return Statistics(
        steps=int(fine.stats["num_accepted_steps"]),
        rejected_steps=int(fine.stats["num_rejected_steps"]),
        gradient_evaluations=evaluations[0],
        complete=bool(fine.result == diffrax.RESULTS.successful),
        checking_evaluations=evaluations[1],
    )


class _Meter(diffrax.AbstractProgressMeter):
    """Tells how much is solved, a hundred times."""

    report: Progress = eqx.field(static=True)
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
