"""The continuous limit of any optimiser, and its deviation, solved along the flow.

``gf_jax.optimizers.limit`` makes the equation of a program; here it is solved for a loss. Beside
the limit z and its deviation e two more are solved: q' = DF F, which is the velocity itself
unless something jumps; and the modified flow of a small step size s, z' = F + s (G − ½ DF F) from
z(0) + s e(0), whose distance from z + s e, over s², tells how good the first order is.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float

from gf_jax.comparison import precise_distance
from gf_jax.flow import smooth
from gf_jax.flow.flow import Flow, gradient_flow, make_flow, tree_norm
from gf_jax.flow.problem import FlowProblem, Progress, flow_problem, part
from gf_jax.optimizers.limit import Given, Point
from gf_jax.optimizers.momentum import OfTime, time_scale
from gf_jax.optimizers.search import Start, find_limit
from gf_jax.optimizers.steps import Optimizer, check_optimizer, is_descent
from gf_jax.program.compiling import jit
from gf_jax.program.program import Loss, Program
from gf_jax.program.pure import Pure

PyTree = Any

PRODUCT = 2  # a Hessian-vector product, in gradients
TOLERANCE = 1e-7
RELATIVE = 100.0  # tolerance of e relative to its norm, over that of params
LOOSER = 10.0
SMALL = 0.01  # step size of the modified flow, over the largest
TOGETHER = 10_000_000  # numbers of gradients of batches that are computed at once
NEAR = 1e-6  # length of a difference, over that of params
TYPICAL = 1e-3  # step size, as a share of the whole time
NEGLIGIBLE = 1e-9  # e, over params per time and velocity
TINY = 1e-300  # so that nothing over nothing is nothing


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

    def apart(self, steps: Sequence[int]) -> PyTree:
        """How far a run stands from the limit after so many steps, over its step size."""
        behind = self.start.behind(steps)
        phases = np.asarray(steps) % self.start.limit.period
        rows = np.arange(len(phases))
        return jax.tree.map(
            lambda e, inner, late: e + inner[rows, phases] + late, self.e, self.offsets, behind
        )


def limit_from(problem: FlowProblem, optimizer: Optimizer, step_size: float) -> Start:
    """The limit of an optimiser on a loss from its start.

    Args:
      problem: the loss, start and times.
      optimizer: the function of the step size.
      step_size: the smallest of those that it is compared with.

    Raises:
      LimitError: if there is none.
    """
    pure, time = problem.pure, float(problem.times[-1])
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(problem.params)]
    slopes, data = _slopes(problem)
    start_of = *(leaf.tobytes() for leaf in leaves), slopes
    name = ("start", optimizer, step_size, time, *start_of)
    kept = pure.kept.get(name)
    if kept is not None and all(a is b for a, b in zip(kept[0], data, strict=True)):
        return kept[1]

    def slope(data: Any, params: PyTree) -> PyTree:
        return slopes.gradients(data, slopes.number)(params)

    def derivative(data: Any, params: PyTree, direction: PyTree) -> PyTree:
        """By a difference: not every gradient can be differentiated."""
        length = (optax.tree.norm(params) + NEAR) / (optax.tree.norm(direction) + TINY)
        ahead = optax.tree.add_scale(params, NEAR * length, direction)
        return jax.tree.map(
            lambda b, a: (b - a) / (NEAR * length), slope(data, ahead), slope(data, params)
        )

    with problem.numbers.context():
        find = pure.once(("slope", slopes), lambda: jit(slope, speed=pure.flow_speed))
        change = pure.once(("derivative", slopes), lambda: jit(derivative, speed=pure.flow_speed))
        start = find_limit(
            optimizer,
            problem.params,
            find(data, problem.params),
            lambda direction: change(data, problem.params, direction),
            step_size=step_size,
            time=time,
        )

    def behind(numbers: Sequence[int]) -> PyTree:
        with problem.numbers.context():
            return start.behind(numbers)

    found = start._replace(behind=behind)
    pure.kept.put(name, (data, found))
    return found


def is_plain(problem: FlowProblem, optimizer: Optimizer) -> bool:
    """Whether an optimiser is plain descent; what fails is not, and is told by its limit."""
    check_optimizer(optimizer)
    if problem.batched is not None:
        return False
    with problem.numbers.context(), contextlib.suppress(Exception):
        return is_descent(optimizer, problem.params)
    return False


def limit_in_words(
    f: Loss | Program, params: PyTree, times: np.ndarray, step_size: float, optimizer: Any
) -> str:
    """Which equation an optimiser follows from params; empty for plain descent.

    Args, raises: as ``limit_flow``; step_size is the smallest that the limit is compared with.
    """
    problem = flow_problem(f, params, times, None)
    if is_plain(problem, optimizer):
        return ""
    step_size *= time_scale(optimizer)
    return limit_from(problem, OfTime(optimizer), step_size).limit.words


def limit_flow(
    f: Loss | Program,
    params: PyTree,
    times: Float[ArrayLike, " times"],
    optimizer: Optimizer,
    *,
    step_size: float | None = None,
    tolerance: float | None = None,
    budget: int | None = None,
    progress: Progress | None = None,
) -> Flow:
    """The continuous limit of an optimiser on f, from params: what it follows as h goes to zero.

    For descent, and for momentum at a fixed decay, that is gradient flow, in times of its own.

    Args:
      f: maps parameters to a scalar loss; differentiable by JAX.
      params: initial point, a pytree whose floating-point arrays move, see ``compare``.
      times: ascending times from 0, the last above 0; time is iteration * step_size, times the
        optimiser's time scale if it has one.
      optimizer: maps a step size to an optax transformation, as in ``gradient_descent``.
      step_size: of the order of the smallest that the limit is compared with, which the limit is
        found at; None is a thousandth of the whole time.
      tolerance: as in ``gradient_flow``.
      budget: gradients beyond which the solve is given up.
      progress: as in ``gradient_flow``.

    Raises:
      ValueError: as ``gradient_flow``, and if the optimiser has no continuous limit; names what it
        lacks.

    Source: see ``gf_jax.optimizers.limit``.

    Example:
      >>> import optax
      >>> def f(w):
      ...     return jnp.sum((w**2 - 1) ** 2)
      >>> w = jnp.array([0.1, 1.5])
      >>> flow = gf_jax.limit_flow(f, w, [0.5], lambda h: optax.adam(h, b1=1 - 10 * h, b2=1 - h))
      >>> flow.params.round(2)
      array([[0.65, 1.1 ]])
    """
    problem = flow_problem(f, params, times, tolerance)
    scale = time_scale(optimizer)
    if is_plain(problem, optimizer):
        return gradient_flow(
            problem.program, params, times, tolerance=tolerance, budget=budget, progress=progress
        )
    smallest = TYPICAL * float(problem.times[-1]) if step_size is None else step_size * scale
    start = limit_from(problem, OfTime(optimizer), smallest)
    if start.limit.speed is not None:
        flow = gradient_flow(
            problem.program,
            params,
            start.limit.speed * problem.times,
            tolerance=tolerance,
            budget=budget,
            progress=progress,
        )
        return flow._replace(times=problem.times)
    state, error, statistics = solve_limit(problem, start, budget, progress)
    return make_flow(problem, state, error, statistics)


def solve_limit(
    problem: FlowProblem, start: Start, budget: int | None, progress: Progress | None
) -> tuple[PyTree, np.ndarray, Any]:
    """The limit alone: params, their errors, and statistics."""
    limit, (slopes, data) = start.limit, _slopes(problem)

    def velocity(arguments: Any, state: Any) -> Any:
        data, given = arguments
        gradients = slopes.gradients(data, limit.period)
        return tuple(limit.velocity(given, gradients, Point(*state)))

    def size(arguments: Any, error: Any, state: Any) -> Array:
        return _size(error, state)

    name = ("limit", limit, slopes)
    system = smooth.System(name, velocity, smooth.FEW_STAGES, size, 1, LOOSER, parts=3)
    arguments = [(data, start.given)]
    most = smooth.most_steps(system, budget)
    (solution,) = smooth.solve_twice(
        _from(problem, start), system, tuple(start.point), arguments, progress, most
    )
    return solution.state[0], solution.error[0], solution.statistics


def expand(
    problem: FlowProblem,
    start: Start,
    largest: float,
    budget: int | None,
    progress: Progress | None,
) -> Expansion:
    """The limit with its first order.

    Args:
      problem: a smooth loss whose gradient can be differentiated, start, and times.
      start: the limit of an optimiser from there.
      largest: of the step sizes that it is compared with.
      budget: gradients beyond which it is given up.
      progress: is told the share that is done.
    """
    limit, pure, small = start.limit, problem.pure, SMALL * largest
    slopes, all_data = _slopes(problem)

    def velocity(arguments: Any, state: Any) -> Any:
        data, given, small, _ = arguments
        (*z, e, e_slow, _, _, z_s, slow_s) = state
        point, behind = Point(*z), Point(e, e_slow, jnp.zeros_like(z[2]))
        gradients, products = slopes.gradients(data, limit.period), slopes.products(data)
        expansion = functools.partial(limit.expansion, given, gradients, products)
        f, first, bend, (along,) = expansion(point, behind)
        e_velocity = optax.tree.add(along, first)
        f_s, first_s, _, _ = expansion(Point(z_s, slow_s, point.time))
        modified = optax.tree.add_scale(f_s, small, first_s)
        # Linear where a root of what should be positive is none, and before the first step: there
        # the velocity may change without bounds, as of averages that are corrected by a count.
        linear = optax.tree.add_scale(f, small, e_velocity)
        early = limit.timed & (point.time < small / SMALL)
        modified = jax.tree.map(
            lambda a, b: jnp.where(jnp.isfinite(a) & ~early, a, b), modified, linear
        )
        return (*f, *e_velocity[:2], bend.params, bend.slow, *modified[:2])

    def size(arguments: Any, error: Any, state: Any) -> Array:
        _, _, small, floor = arguments
        own = _size(error[:2], state[:2])
        allowed = RELATIVE * (_size(state[3:5], state[:2]) + floor)
        of_e = _size(error[3:5], state[:2]) / allowed
        apart = jax.tree.map(jnp.subtract, error[7:9], error[:2])  # what they share is no matter
        of_modified = _size(apart, state[:2]) / (small * allowed)
        return jnp.maximum(own, jnp.maximum(of_e, of_modified))

    problem = problem._replace(tolerance=problem.tolerance or TOLERANCE)
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
        moved = optax.tree.add_scale((z.params, z.slow), small, (e.params, e.slow))
        begin = jax.device_get((*z, e.params, e.slow, f.params, f.slow, *moved))
        steepest, scale = (float(optax.tree.norm(tree)) for tree in (f.params, z.params))
        of_transient = optax.tree.norm(
            jax.tree.map(lambda s, b: s - jnp.nan_to_num(b), start.second, back)
        )
    floor = NEGLIGIBLE * (scale / problem.times[-1] + steepest) + TINY
    cost = 2 + 5 * PRODUCT + (2 * limit.period * PRODUCT if limit.period > 1 else 0)
    system = smooth.System(
        ("expansion", limit, slopes), velocity, smooth.FEW_STAGES, size, cost, LOOSER, parts=9
    )
    arguments = [(all_data, start.given, small, floor)]
    most = smooth.most_steps(system, budget)
    (solution,) = smooth.solve_twice(
        _from(problem, start), system, begin, arguments, progress, most
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
    rest = rest + float(of_transient) + rates * (tree_norm(e_params) + 2 * _largest(offsets))
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
    limit, (slopes, data) = start.limit, _slopes(problem)

    def velocity(arguments: Any, state: Any) -> Any:
        data, given, step_size = arguments
        gradients, products = slopes.gradients(data, limit.period), slopes.products(data)
        f, first, _, _ = limit.expansion(given, gradients, products, Point(*state))
        return tuple(optax.tree.add_scale(f, step_size, first))

    def size(arguments: Any, error: Any, state: Any) -> Array:
        return _size(error, state)

    z, e, cost = start.point, start.deviation, 1 + 2 * PRODUCT
    system = smooth.System(
        ("modified", limit, slopes), velocity, smooth.FEW_STAGES, size, cost, LOOSER, parts=3
    )
    most, solutions = smooth.most_steps(system, budget), []
    for number, step_size in enumerate(step_sizes):
        with problem.numbers.context():
            begin = jax.device_get(tuple(optax.tree.add_scale(z, step_size, e)))
        arguments = [(data, start.given, step_size)]
        told = part(progress, number / len(step_sizes), 1 / len(step_sizes))
        (found,) = smooth.solve_twice(_from(problem, start), system, begin, arguments, told, most)
        solutions.append(found._replace(state=found.state[0]))
    return solutions


def _largest(offsets: PyTree) -> np.ndarray:
    """Norm of the largest offset within a period at every time; leaves (times, period, ...)."""
    return precise_distance(offsets, jax.tree.map(np.zeros_like, offsets), 2).max(axis=1)


def _from(problem: FlowProblem, start: Start) -> FlowProblem:
    """The problem with times counted from the start's own."""
    times = np.maximum(problem.times - float(start.point.time), 0)
    return problem._replace(times=times)


def _size(tree: Any, of: Any) -> Array:
    """Norm of an error of params and slow leaves, the latter as shares of theirs."""
    squares = optax.tree.norm(tree[0]) ** 2
    for error, leaf in zip(tree[1], of[1], strict=True):
        squares += optax.tree.norm(error) ** 2 / (optax.tree.norm(leaf) ** 2 + TINY)
    return jnp.sqrt(squares)


class _Slopes(NamedTuple):
    """Gradients of the steps of a period: of the loss, or of its batches in turn.

    Holds no arrays; data are those of the loss and those of the batches.
    """

    pure: Pure
    of_batch: Pure | None
    number: int

    def gradients(self, data: Any, period: int) -> Callable[[PyTree], PyTree]:
        """Maps params to the gradients of all steps, leaves (period, ...)."""

        def gradients(params: PyTree) -> PyTree:
            if self.of_batch is None:
                one = self.pure.field(data[0], params)(params)
                return jax.tree.map(lambda g: jnp.broadcast_to(g, (period, *g.shape)), one)
            together = _together(params)
            indices = jnp.arange(self.number)
            each = jax.lax.map(
                lambda index: self._of(data, params, index), indices, batch_size=together
            )
            return jax.tree.map(lambda g: g[jnp.arange(period) % self.number], each)

        return gradients

    def products(self, data: Any) -> Callable[[PyTree, PyTree], PyTree]:
        """Maps params and directions, one for each step, to derivatives of their gradients."""

        def products(params: PyTree, directions: PyTree) -> PyTree:
            if self.of_batch is None:
                _, product = self.pure.linearize(data[0], params)
                return jax.lax.map(product, directions)

            def along(step: tuple[Array, PyTree]) -> PyTree:
                index, direction = step
                field = functools.partial(self._of, data, index=index % self.number)
                return jax.jvp(field, (params,), (direction,))[1]

            period = jax.tree.leaves(directions)[0].shape[0]
            steps = jnp.arange(period), directions
            return jax.lax.map(along, steps, batch_size=_together(params))

        return products

    def _of(self, data: Any, params: PyTree, index: Array) -> PyTree:
        """The gradient of one batch."""
        assert self.of_batch is not None
        loss, index = self.of_batch.loss, jnp.asarray(index, jnp.int32)
        return jax.grad(lambda point: loss(data[1], (point, index)))(params)


def _together(params: PyTree) -> int:
    """Batches whose gradients are held at a time: many small ones at once are faster."""
    return max(1, TOGETHER // sum(leaf.size for leaf in jax.tree.leaves(params)))


def _slopes(problem: FlowProblem) -> tuple[_Slopes, tuple[list[Array], list[Array]]]:
    """The gradients of steps, and their data."""
    batched = problem.batched
    if batched is None:
        return _Slopes(problem.pure, None, 1), (problem.data, [])
    slopes = _Slopes(problem.pure, batched.program.pure, batched.number)
    return slopes, (problem.data, batched.program.data)
