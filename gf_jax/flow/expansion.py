"""The first order of an optimiser's expansion, solved along its limit.

Beside the limit z and its deviation e two more are solved: q' = DF F, which is the velocity itself
unless something jumps; and the modified flow of a small step size s, z' = F + s (G − ½ DF F) from
z(0) + s e(0) and the second order of the transient, whose distance from z + s e, over s², tells how
good the first order is.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from gf_jax.comparison import precise_distance
from gf_jax.flow import smooth
from gf_jax.flow.flow import PRODUCT, tree_norm
from gf_jax.flow.problem import FlowProblem, Progress, part
from gf_jax.flow.slopes import Slopes, slopes_of
from gf_jax.optimizers.limit import Given, Limit, Point
from gf_jax.optimizers.search import Start
from gf_jax.program.compiling import jit

PyTree = Any

TOLERANCE = 1e-6
RELATIVE = 100.0  # tolerance of e relative to its norm, over that of the limit
LOOSER = 10.0
EARLY = 10.0  # first steps that no modified flow follows where a count corrects averages
BEGINNING = 0.1  # share of the whole time, likewise, so that it is of second order from then on
SMALL = 0.1  # step size of the modified flow, over the largest
NEGLIGIBLE = 1e-9  # e, over params per time and velocity
ROUNDING = 1e-15  # of numbers, relative, beyond which nothing is asked for
TINY = 1e-300  # so that nothing over nothing is nothing
ALWAYS = ("start", "statistics")  # of an expansion, the same at all times


class Expansion(NamedTuple):
    """The limit of an optimiser and its first order, at the times asked for.

    Attributes:
      start: the limit from its start.
      params: z, leaves (times, ...), in double precision like all that follows.
      e: the deviation at the ends of periods, likewise.
      offsets: what is added to e within a period, leaves (times, period, ...).
      error: estimated error of z.
      e_error: of e.
      rest: norm of what z + h e leaves out, over h², as far as it is known.
      jumps: how far the velocity is from what its Jacobian makes of it, over its norm at first.
      statistics: what the solve took.
    """

    start: Start
    params: PyTree
    e: PyTree
    offsets: PyTree
    error: Float[np.ndarray, " times"]
    e_error: Float[np.ndarray, " times"]
    rest: Float[np.ndarray, " times"]
    jumps: Float[np.ndarray, " times"]
    statistics: Any

    def at(self, rows: np.ndarray) -> "Expansion":
        """The same at some of its times alone."""
        of_times = {name: each for name, each in self._asdict().items() if name not in ALWAYS}
        return self._replace(**jax.tree.map(lambda leaf: leaf[rows], of_times))

    def error_at(self, step_sizes: np.ndarray) -> np.ndarray:
        """The error of z + h e at all times, of step sizes that broadcast with them."""
        return step_sizes * self.e_error + step_sizes**2 * self.rest

    def apart(self, steps: Sequence[int]) -> PyTree:
        """How far a run stands from the limit after so many steps, over its step size."""
        behind = self.start.behind(steps)
        phases = np.asarray(steps) % self.start.limit.period
        rows = np.arange(len(phases))
        return jax.tree.map(
            lambda e, inner, late: e + inner[rows, phases] + late, self.e, self.offsets, behind
        )


def expand(
    problem: FlowProblem,
    start: Start,
    largest: float,
    budget: int | None,
    progress: Progress | None,
    relative: float = RELATIVE,
) -> Expansion:
    """The limit with its first order.

    Args:
      problem: a smooth loss whose gradient can be differentiated, start, and times.
      start: the limit of an optimiser from there.
      largest: of the step sizes that it is compared with.
      budget: gradients beyond which it is given up.
      progress: is told the share that is done.
      relative: tolerance of e relative to its norm, over that of the limit.
    """
    limit, pure, small = start.limit, problem.pure, SMALL * largest
    slopes, all_data = slopes_of(problem)

    def velocity(arguments: Any, state: Any) -> Any:
        data, given, small, *_ = arguments
        (*z, e, e_slow, _, _, z_s, slow_s) = state
        behind = Point(e, e_slow, jnp.zeros_like(z[2]))
        f, e_velocity, bend, modified = _beside(
            *(limit, slopes, data, given, small, EARLY * small / SMALL),
            *(Point(*z), behind, Point(z_s, slow_s, z[2])),
        )
        return (*f, *e_velocity[:2], bend.params, bend.slow, *modified[:2])

    def size(arguments: Any, error: Any, state: Any) -> Array:
        _, _, small, relative, floor, rounding, unseen = arguments
        own = size_of_error(error[:2], state[:2])
        allowed = relative * (size_of_error(state[3:5], state[:2]) + floor)
        of_e = size_of_error(error[3:5], state[:2], unseen) / allowed
        apart = jax.tree.map(jnp.subtract, error[7:9], error[:2])  # what they share is no matter
        of_modified = size_of_error(apart, state[:2], small * unseen)
        of_modified /= small * allowed + rounding
        return jnp.maximum(own, jnp.maximum(of_e, of_modified))

    tolerance = problem.tolerance or TOLERANCE
    problem = problem._replace(tolerance=tolerance)
    with problem.numbers.context():

        def first(data: Any, given: Given, point: Point, moment: PyTree) -> Any:
            gradients = slopes.gradients(data, limit.period)
            still = Point(moment, *jax.tree.map(jnp.zeros_like, point[1:]))
            f, along = jax.jvp(lambda p: limit.velocity(given, gradients, p), (point,), (still,))
            return f, along.params

        compiled = pure.once(
            ("limit velocity", limit, slopes), lambda: jit(first, speed=pure.flow_speed)
        )
        f, back = compiled(all_data, start.given, start.point, start.moment)
        z, e = start.point, start.deviation
        second = jax.tree.map(lambda s, b: s - jnp.nan_to_num(b), start.second(largest), back)
        moved, slow = optax.tree.add_scale((z.params, z.slow), small, (e.params, e.slow))
        moved = optax.tree.add_scale(moved, small**2, second)
        begin = jax.device_get((*z, e.params, e.slow, f.params, f.slow, moved, slow))
        steepest, scale = (float(optax.tree.norm(tree)) for tree in (f.params, z.params))
    floor = NEGLIGIBLE * (scale / problem.times[-1] + steepest) + TINY
    cost = 2 + 5 * PRODUCT + (2 * limit.period * PRODUCT if limit.period > 1 else 0)
    system = smooth.System(
        ("expansion", limit, slopes), velocity, smooth.FEW_STAGES, size, cost, LOOSER, parts=9
    )
    rounding = ROUNDING * scale / tolerance
    # Slow leaves are seen to move over tiny steps, and what is curved in that is of their square.
    unseen = ROUNDING * float(problem.times[-1]) / float(start.given.step_size) ** 2
    others = small, relative, floor, rounding, unseen
    fine, rough = ([(all_data, given, *others)] for given in (start.given, start.rough))
    most = smooth.most_steps(system, budget)
    (solution,) = smooth.solve_twice(
        from_start(problem, start), system, begin, fine, progress, most, rough
    )
    params, slow, time, e_params, _, q, _, z_s, _ = solution.state

    def along(data: Any, given: Given, points: Point) -> tuple[PyTree, PyTree, Array]:
        gradients = slopes.gradients(data, limit.period)

        def one(point: Point) -> tuple[PyTree, PyTree, Array]:
            offsets = limit.offsets(given, gradients, point)
            f = limit.velocity(given, gradients, point)
            bend = jax.jvp(lambda p: limit.velocity(given, gradients, p), (point,), (f,))[1]
            return f.params, offsets, optax.tree.norm(jax.tree.map(jnp.nan_to_num, bend.params))

        return jax.lax.map(one, points)

    with problem.numbers.context():
        compiled = pure.once(
            ("limit along", limit, slopes), lambda: jit(along, speed=pure.flow_speed)
        )
        actual, offsets, bends = jax.device_get(
            compiled(all_data, start.given, Point(params, slow, time))
        )
    linear = jax.tree.map(lambda p, d: p + small * d, params, e_params)
    rates = bends / (tree_norm(actual) + TINY)
    rest = precise_distance(z_s, linear, 1) / small**2
    rest = rest + rates * (tree_norm(e_params) + 2 * _largest(offsets))
    with np.errstate(invalid="ignore"):  # what was not reached is no number
        away = precise_distance(actual, q, 1) - LOOSER * solution.error[5]
        jumps = np.maximum(away, 0) / (steepest or 1.0)
    return Expansion(
        start, params, e_params, offsets, solution.error[0], solution.error[3], rest, jumps,
        solution.statistics,
    )  # fmt: skip


def modified_solutions(
    problem: FlowProblem,
    start: Start,
    step_sizes: list[float],
    budget: int | None,
    progress: Progress | None,
) -> list[smooth.Solution]:
    """The modified flow of every step size; states are those of params alone."""
    limit, (slopes, data) = start.limit, slopes_of(problem)
    # A root of what is positive need not be one at this step size, nor a count's correction: the
    # linear expansion is solved beside it where such may be, see ``_beside``.
    beside = bool(start.point.slow) or limit.timed

    def velocity(arguments: Any, state: Any) -> Any:
        data, given, step_size, until = arguments
        if not beside:
            gradients, products = slopes.gradients(data, limit.period), slopes.products(data)
            f, first, _, _ = limit.expansion(given, gradients, products, Point(*state))
            return tuple(optax.tree.add_scale(f, step_size, first))
        (z_s, slow_s, time, z, slow, e, e_slow) = state
        behind = Point(e, e_slow, jnp.zeros_like(time))
        f, e_velocity, _, modified = _beside(
            *(limit, slopes, data, given, step_size, until),
            *(Point(z, slow, time), behind, Point(z_s, slow_s, time)),
        )
        return (*modified, *f[:2], *e_velocity[:2])

    def size(arguments: Any, error: Any, state: Any) -> Array:
        own = size_of_error(error, state)
        if not beside:
            return own
        small = optax.tree.scale(arguments[2], (error[5], error[6]))
        others = (size_of_error(each, state[3:5]) for each in (error[3:5], small))
        return functools.reduce(jnp.maximum, others, own)

    z, e = start.point, start.deviation
    cost, parts = (2 + 5 * PRODUCT, 7) if beside else (1 + 2 * PRODUCT, 3)
    system = smooth.System(
        ("modified", limit, slopes), velocity, smooth.FEW_STAGES, size, cost, LOOSER, parts=parts
    )
    most, solutions = smooth.most_steps(system, budget), []
    for number, step_size in enumerate(step_sizes):
        with problem.numbers.context():
            moved = tuple(optax.tree.add_scale(z, step_size, e))
            begin = jax.device_get((*moved, *z[:2], *e[:2]) if beside else moved)
        until = max(EARLY * step_size, BEGINNING * problem.times[-1])
        fine, rough = ([(data, given, step_size, until)] for given in (start.given, start.rough))
        told = part(progress, number / len(step_sizes), 1 / len(step_sizes))
        (found,) = smooth.solve_twice(
            from_start(problem, start), system, begin, fine, told, most, rough
        )
        solutions.append(found._replace(state=found.state[0]))
    return solutions


def _beside(
    limit: Limit,
    slopes: Slopes,
    data: Any,
    given: Given,
    step_size: Array,
    until: Array,
    point: Point,
    behind: Point,
    ahead: Point,
) -> tuple[Point, Point, Point, Point]:
    """The limit's velocity, that of its deviation, DF F, and that of the modified flow.

    The last is linear in the deviation where a root of what should be positive is none, and before
    the first steps: there the velocity may change without bounds, as of averages that are
    corrected by a count.

    Args:
      limit: of the optimiser.
      slopes: gradients of its steps.
      data: of the loss.
      given: arrays that the limit takes.
      step_size: of the modified flow.
      until: the time until which it is linear, if velocities depend on time.
      point: of the limit.
      behind: its deviation.
      ahead: of the modified flow.
    """
    gradients, products = slopes.gradients(data, limit.period), slopes.products(data)
    expansion = functools.partial(limit.expansion, given, gradients, products)
    f, first, bend, (along,) = expansion(point, behind)
    e_velocity = optax.tree.add(along, first)
    f_s, first_s, _, _ = expansion(ahead)
    modified = optax.tree.add_scale(f_s, step_size, first_s)
    linear = optax.tree.add_scale(f, step_size, e_velocity)
    early = limit.timed & (point.time < until)
    modified = jax.tree.map(
        lambda a, b: jnp.where(jnp.isfinite(a) & ~early, a, b), modified, linear
    )
    # Time passes as it does along the limit.
    return f, e_velocity, bend, modified._replace(time=f.time)


def _largest(offsets: PyTree) -> np.ndarray:
    """Norm of the largest offset within a period at every time; leaves (times, period, ...)."""
    return precise_distance(offsets, jax.tree.map(np.zeros_like, offsets), 2).max(axis=1)


def from_start(problem: FlowProblem, start: Start) -> FlowProblem:
    """The problem with times counted from the start's own."""
    times = np.maximum(problem.times - float(start.point.time), 0)
    return problem._replace(times=times)


def size_of_error(tree: Any, of: Any, unseen: Any = 0.0) -> Array:
    """Norm of an error of params and slow leaves, the latter as shares of theirs.

    Args:
      tree: errors of both.
      of: whose errors they are.
      unseen: share of a slow leaf that is no error, for rounding hides it.
    """
    squares = optax.tree.norm(tree[0]) ** 2
    for error, leaf in zip(tree[1], of[1], strict=True):
        share = optax.tree.norm(error) / jnp.sqrt(optax.tree.norm(leaf) ** 2 + TINY)
        squares += jnp.maximum(share - unseen, 0) ** 2
    return jnp.sqrt(squares)
