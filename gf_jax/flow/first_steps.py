"""The first steps of an optimiser itself, which tell whether its expansion holds there.

An expansion in whole powers of the step size may hold only for far smaller steps than those that
it is asked for: behind a root that is zero at first, as of RMSProp's average, runs stand apart by
the root of h until h is tiny. What an expansion says of its own error then falls with h² as well,
and is wrong. So the optimiser takes some steps from its start, which costs few gradients.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gf_jax.comparison import precise_distance
from gf_jax.flow.expansion import Expansion
from gf_jax.flow.flow import tree_norm
from gf_jax.flow.problem import FlowProblem
from gf_jax.flow.slopes import slopes_of
from gf_jax.flow.smooth import SAFETY
from gf_jax.optimizers.search import Start
from gf_jax.program.compiling import jit

PyTree = Any

FEW, MANY = 32, 128  # steps that are taken with each step size, the latter at most
FORGOTTEN = 1e-5  # what fast state has left of its beginning after the many steps
MOST_SIZES = 8  # step sizes that are tried; what holds of others lies between
EXACT = 1e-12  # error that is none, over the norm of params


class FirstSteps(NamedTuple):
    """Which steps are tried: a few, and so many that averages have forgotten their beginning.

    Attributes:
      sizes: step sizes, each the time of one step, from small to large.
      counts: steps that are taken with each of them.
    """

    sizes: Float[np.ndarray, " sizes"]
    counts: Int[np.ndarray, "2 sizes"]

    @property
    def times(self) -> Float[np.ndarray, "2 sizes"]:
        """When they end."""
        return self.sizes * self.counts

    @property
    def evaluations(self) -> int:
        """Gradients that they take."""
        return int(self.counts[-1].sum())

    def taken(self, problem: FlowProblem, start: Start) -> list[PyTree]:
        """Where the optimiser stands after each of the counts, leaves (sizes, ...), in float64."""
        slopes, data = slopes_of(problem)
        limit, pure = start.limit, problem.pure
        stepper = limit.stepper._replace(powers=(0,) * len(limit.stepper.powers))

        def run(data: Any, params: PyTree, size: Array, counts: Array) -> PyTree:
            gradient = slopes.of_step(data)

            def step(number: Array, carry: tuple[PyTree, list[Array]]) -> Any:
                params, leaves = carry
                updates, leaves = stepper.update(size, gradient(params, number), leaves, params)
                return jax.tree.map(jnp.add, params, updates), leaves

            few = jax.lax.fori_loop(0, counts[0], step, (params, stepper.initial(size, params)))
            return few[0], jax.lax.fori_loop(counts[0], counts[1], step, few)[0]

        with problem.numbers.context():
            compiled = pure.once(
                ("first steps", limit, slopes), lambda: jit(run, speed=pure.flow_speed)
            )
            ends = [
                jax.device_get(compiled(data, problem.params, *of_size))
                for of_size in zip(self.sizes, self.counts.T, strict=True)
            ]
        return [
            jax.tree.map(lambda *rows: np.stack(rows), *each) for each in zip(*ends, strict=True)
        ]

    def corrected(
        self,
        problem: FlowProblem,
        expansion: Expansion,
        times: np.ndarray,
        distance: np.ndarray,
        error: np.ndarray,
        of: np.ndarray,
    ) -> np.ndarray:
        """Errors of an expansion, where first steps show them to be larger than it tells.

        They are larger in proportion at all later times, by twice what is seen; nor is the share of
        the distance that was missed thought to fall later. Of a step size between two that were
        tried, the worse one counts.

        Args:
          problem: the loss, the starting point and times.
          expansion: from there, at times that include those at which the steps end.
          times: of the expansion.
          distance: of runs from the limit, as predicted, shape (times, lanes).
          error: that the expansion tells of them, likewise.
          of: their step sizes.
        """
        above = np.clip(np.searchsorted(self.sizes, of), 0, len(self.sizes) - 1)
        below = np.clip(np.searchsorted(self.sizes, of, side="right") - 1, 0, None)
        found = error
        for number, ends in enumerate(self.taken(problem, expansion.start)):
            at = expansion.at(np.searchsorted(times, self.times[number]))
            apart = jax.tree.map(
                lambda e: self.sizes.reshape(-1, *(1,) * (e.ndim - 1)) * e,
                at.apart(self.counts[number]),
            )
            off = precise_distance(ends, jax.tree.map(np.add, at.params, apart), 1)
            off = np.maximum(off - at.error, 0)  # where the limit itself is, is no matter
            least = EXACT * tree_norm(ends)
            told, predicted = at.error_at(self.sizes), tree_norm(apart)
            factor = np.fmax(SAFETY * off / np.maximum(told, least), 1.0)  # NaN tells nothing
            share = np.where(factor > 1, off / np.maximum(predicted, least), 0.0)
            factor, share = (np.maximum(each[above], each[below]) for each in (factor, share))
            seen = np.maximum(factor * error, share * distance)
            late = problem.times[:, None] >= of * self.counts[number].max() * (number > 0)
            found = np.where(late, seen, found)
        return found


def first_steps(start: Start, step_sizes: np.ndarray, last: float) -> FirstSteps:
    """The first steps that are tried.

    Args:
      start: the limit of an optimiser from a starting point.
      step_sizes: of all runs, each the time of one step.
      last: the whole time, which no run passes.
    """
    sizes = np.unique(step_sizes)
    if len(sizes) > MOST_SIZES:
        wanted = np.geomspace(sizes[0], sizes[-1], MOST_SIZES)
        sizes = np.unique(sizes[np.abs(sizes[:, None] - wanted).argmin(axis=0)])
    slowest = max(start.limit.decays, default=0.0)
    many = math.log(FORGOTTEN) / math.log(slowest) if 0 < slowest < 1 else FEW
    wanted = np.array([[FEW], [min(max(FEW, math.ceil(many)), MANY)]])
    return FirstSteps(sizes, np.minimum(wanted, np.maximum(np.round(last / sizes), 1)).astype(int))
