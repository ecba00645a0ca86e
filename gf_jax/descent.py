"""Gradient descent at several step sizes in one compiled call.

A base run with step size s and runs with step sizes s/r, one per ratio r, start
from the same point. Iterate k of the base run and iterate r k of the run with
ratio r stand at the same time k s, and are compared there. Each run is a *lane*
of a stacked pytree; ``lax.scan`` goes over base iterations.

Schedule. Between two comparison times lane r takes r steps. The lanes are sorted
by ratio: all of them step together, then those with more steps to take go on
without the ones that have arrived, in nested scans over ever smaller vmapped
stacks. So a base iteration costs exactly the sum of all ratios in gradient
evaluations, none of them masked. The gradient at the point compared is evaluated
once, recorded, and used for the next step of every lane.

Starts. All of this may be done from many starting points at once, which are a further
axis of every stack, before that of the lanes.

Devices. Starts never meet, so they may lie on different devices, and so may the examples
of the data that f closes over. The compiler splits the work as its arguments are placed:
by starts without communication, by examples with a sum of each gradient.
"""

import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from gf_jax.arithmetic import Arithmetic
from gf_jax.arithmetic import arithmetic as get_arithmetic
from gf_jax.comparison import Metrics, measure
from gf_jax.placement import Memory, fetch, memory_needed, place
from gf_jax.schedule import Schedule
from gf_jax.tracing import Loss, hoist_constants

PyTree = Any


class Trajectory(NamedTuple):
    """All lanes over consecutive base iterations, as NumPy arrays.

    Attributes:
      iterations: base iterations recorded, 0 being the initial point.
      metrics: losses, distances and gradient norms, each (iterations, lanes); from many
        starts (iterations, starts, lanes).
      snapshot_iterations: base iterations of the snapshots.
      snapshots: stacked parameters, leaves of shape (snapshots, lanes, ...); from many
        starts (snapshots, starts, lanes, ...).

    Example:
      >>> def f(w):
      ...     return jnp.sum((w**2 - 1) ** 2)
      >>> w = jnp.array([0.1, 1.5])
      >>> run = gf_jax.gradient_descent(f, w, step_size=0.01, ratios=(2,), iterations=10)
      >>> run.snapshot_iterations
      array([ 1,  2,  3,  4,  5,  6,  7,  8,  9, 10])
      >>> run.snapshots.shape  # snapshots, lanes, parameters
      (10, 2, 2)
    """

    iterations: Int[np.ndarray, " iterations"]
    metrics: Metrics
    snapshot_iterations: Int[np.ndarray, " snapshots"]
    snapshots: PyTree


class _State(NamedTuple):
    """Carried from one base iteration to the next; every leaf has a lane axis.

    From many starts the axis of starts precedes it.
    """

    params: PyTree
    residual: PyTree
    loss: Float[Array, "*starts lanes"]
    gradient: PyTree

    def measure(self, initial_params: PyTree) -> Metrics:
        return measure(
            self.params, self.loss, self.gradient, initial_params, residual=self.residual
        )


def gradient_descent(
    f: Loss,
    params: PyTree,
    *,
    step_size: float,
    ratios: Sequence[int],
    iterations: int,
    snapshots: int | tuple[int, ...] | None = None,
    segments: int | None = 1,
    arithmetic: str = "compensated",
    starts: bool = False,
    sharding: NamedSharding | None = None,
) -> Trajectory:
    """Gradient descent with step sizes step_size and step_size/r, all runs at once.

    Args:
      f: maps parameters to a scalar loss; differentiable by JAX, and closed over
        data of any form.
      params: initial point, a pytree of floating-point arrays.
      step_size: step size of the base run; time = iteration * step_size.
      ratios: positive integers r, each of which adds a run with step_size/r.
      iterations: iterations of the base run.
      snapshots: how often parameters are kept, see ``Schedule``.
      segments: number of compiled calls, see ``Schedule``.
      arithmetic: "compensated" (the weights' own precision, at least float32, free
        of the rounding of updates), "float32", "float64" or "tf32", see
        ``gf_jax.arithmetic``.
      starts: whether every leaf of params has a leading axis that enumerates starting
        points, from each of which all runs are made. f takes a single point.
      sharding: how params lie on the devices of a mesh: split along the axis of starts,
        or replicated, where the examples are split. Arrays that f closes over stay as
        they are if they lie on the mesh, and are replicated if not. None leaves all to
        the caller's default device.

    Returns:
      The trajectory of all lanes, sorted by ratio, the base run first. A lane
      that diverges has non-finite entries from there on and disturbs no other, nor
      does a start.

    Raises:
      ValueError: on a value outside what ``Schedule`` accepts, on parameters that
        are not floating point, on leaves that differ in their number of starts or do
        not divide among the devices, or if f does not return a floating-point scalar.
      FloatingPointError: if the compiler cancels the compensation.

    Example:
      >>> def f(w):
      ...     return jnp.sum((w**2 - 1) ** 2)
      >>> w = jnp.array([0.1, 1.5])
      >>> run = gf_jax.gradient_descent(f, w, step_size=0.01, ratios=(2,), iterations=10)
      >>> run.metrics.loss[-1].round(3)  # of step sizes 0.01 and 0.005
      array([1.049, 1.058], dtype=float32)
    """
    schedule = Schedule(step_size, tuple(ratios), iterations, snapshots, segments)
    segments_of_run = descent_segments(
        f, params, schedule, arithmetic=arithmetic, starts=starts, sharding=sharding
    )
    return join(list(segments_of_run))


def descent_segments(
    f: Loss,
    params: PyTree,
    schedule: Schedule,
    *,
    arithmetic: str = "compensated",
    starts: bool = False,
    sharding: NamedSharding | None = None,
    check_memory: Callable[[Memory], None] | None = None,
) -> Iterator[Trajectory]:
    """The segments of ``gradient_descent``, each yielded when it is computed.

    The first begins with iteration 0. ``join`` puts any number of consecutive
    segments together, so that a run that is cut short keeps what it has. Every process
    of several gets all of it.

    Args:
      f: as in ``gradient_descent``, like all that follows but the last.
      params: the initial point, or a stack of them.
      schedule: the steps.
      arithmetic: name of the arithmetic.
      starts: whether params are a stack.
      sharding: of params.
      check_memory: called with what the run needs, once it is compiled and before
        anything is computed; it may raise.

    Raises:
      ValueError, FloatingPointError: as ``gradient_descent``.

    Example:
      >>> def f(w):
      ...     return jnp.sum((w**2 - 1) ** 2)
      >>> w = jnp.array([0.1, 1.5])
      >>> schedule = gf_jax.Schedule(0.01, (2,), iterations=10, segments=2)
      >>> [int(part.iterations[-1]) for part in gf_jax.descent_segments(f, w, schedule)]
      [5, 10]
    """
    numbers = get_arithmetic(arithmetic)
    with numbers.context():  # entered anew at each call, so that it is never a consumer's
        params = numbers.cast(params)
        point = _first_start(params) if starts else params
        pure, constants = hoist_constants(f, point)
        if sharding is not None:
            constants, params = place(constants, params, sharding)
        stack = _stack_shape(params, schedule, starts)
        shapes = _state_shapes(f, point, numbers, stack, sharding)
        run_segment: Any = _jit(_segment(pure, schedule, numbers, starts), sharding)
        if check_memory is not None:
            slots, _ = _snapshot_slots(schedule, 0)
            run_segment = run_segment.lower(constants, shapes, params, slots, True).compile()
            check_memory(memory_needed(run_segment, schedule, stack, point, sharding))
        state = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype, device=s.sharding), shapes)
    recorded, length = 0, schedule.segment_length
    while recorded < schedule.iterations:
        slots, kept = _snapshot_slots(schedule, recorded)
        with numbers.context():
            state, start, metrics, snapshots = run_segment(
                constants, state, params, slots, recorded == 0
            )
            start, metrics, snapshots = fetch((start, metrics, snapshots))
        part = Trajectory(
            iterations=np.arange(recorded + 1, recorded + length + 1),
            metrics=metrics,
            snapshot_iterations=kept,
            snapshots=jax.tree.map(operator.itemgetter(slice(len(kept))), snapshots),
        )
        yield part if recorded else _with_start(part, start)
        recorded += length


def join(trajectories: Sequence[Trajectory]) -> Trajectory:
    """Consecutive parts of a trajectory as one.

    Example:
      >>> def f(w):
      ...     return jnp.sum((w**2 - 1) ** 2)
      >>> w = jnp.array([0.1, 1.5])
      >>> schedule = gf_jax.Schedule(0.01, (2,), iterations=10, segments=2)
      >>> run = gf_jax.join(list(gf_jax.descent_segments(f, w, schedule)))
      >>> run.metrics.loss.shape
      (11, 2)
    """
    return jax.tree.map(lambda *parts: np.concatenate(parts), *trajectories)


def _with_start(part: Trajectory, start: Metrics) -> Trajectory:
    """The first segment, preceded by the initial point."""
    return part._replace(
        iterations=np.concatenate([[0], part.iterations]),
        metrics=jax.tree.map(lambda a, b: np.concatenate([a[None], b]), start, part.metrics),
    )


def _segment(
    f: Callable[[list[Array], PyTree], Array],
    schedule: Schedule,
    numbers: Arithmetic,
    starts: bool,
) -> Callable:
    """Builds the function of one segment; the number of slots is its length."""
    capacity = _snapshot_capacity(schedule)
    # What follows is written for one start; the schedule is the same for all.
    each_start: Callable[[Callable], Callable] = jax.vmap if starts else lambda function: function

    def run(
        constants: list[Array],
        state: _State,
        initial_params: PyTree,
        slots: Int[Array, " length"],
        is_first: bool,
    ) -> tuple[_State, Metrics, Metrics, PyTree]:
        evaluate = jax.value_and_grad(lambda params: f(constants, params))
        start_all = each_start(functools.partial(_start, evaluate, numbers))
        advance = each_start(functools.partial(_advance, jax.vmap(evaluate), schedule, numbers))
        measure_all = each_start(_State.measure)
        state = lax.cond(is_first, lambda s: start_all(initial_params, s), lambda s: s, state)

        def base_iteration(
            carry: tuple[_State, PyTree], slot: Array
        ) -> tuple[tuple[_State, PyTree], Metrics]:
            state, kept = carry
            state = advance(state)
            # The last row takes what is not asked for: always writing keeps this in place.
            kept = jax.tree.map(
                lambda store, leaf: lax.dynamic_update_index_in_dim(store, leaf, slot, 0),
                kept,
                state.params,
            )
            return (state, kept), measure_all(state, initial_params)

        kept = jax.tree.map(lambda p: jnp.zeros((capacity + 1, *p.shape), p.dtype), state.params)
        start = measure_all(state, initial_params)
        (state, kept), rows = lax.scan(base_iteration, (state, kept), slots)
        return state, start, rows, jax.tree.map(lambda leaf: leaf[:-1], kept)

    return run


def _jit(segment: Callable, sharding: NamedSharding | None) -> Callable:
    """Compiles a segment; all that is stacked comes out placed as it went in."""
    options: dict[str, Any] = {}
    if sharding is not None:
        rows = NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))
        options["out_shardings"] = (sharding, sharding, rows, rows)
    return jax.jit(segment, donate_argnums=1, **options)


def _start(evaluate: Callable, numbers: Arithmetic, params: PyTree, blank: _State) -> _State:
    """All lanes at an initial point, from one evaluation."""
    loss, gradient = evaluate(params)
    return jax.tree.map(
        lambda leaf, like: jnp.broadcast_to(leaf, like.shape),
        _State(params, numbers.residual(params), loss, gradient),
        blank,
    )


def _advance(evaluate: Callable, schedule: Schedule, numbers: Arithmetic, state: _State) -> _State:
    """One base iteration of all lanes."""
    sizes = np.array(schedule.step_sizes)

    def descend(lanes: tuple[PyTree, PyTree], gradient: PyTree, sizes: np.ndarray) -> Any:
        return numbers.add(*lanes, _updates(gradient, sizes))

    def more_steps(lanes: tuple[PyTree, PyTree], sizes: np.ndarray, steps: int) -> Any:
        def step(lanes: tuple[PyTree, PyTree], _: None) -> tuple[Any, None]:
            _, gradient = evaluate(lanes[0])
            return descend(lanes, gradient, sizes), None

        return lax.scan(step, lanes, length=steps)[0]

    lanes = descend((state.params, state.residual), state.gradient, sizes)
    arrived = []
    for lane, steps in enumerate(np.diff(schedule.lanes).tolist(), start=1):
        arrived.append(jax.tree.map(lambda leaf: leaf[:1], lanes))
        lanes = jax.tree.map(lambda leaf: leaf[1:], lanes)
        lanes = more_steps(lanes, sizes[lane:], steps)
    params, residual = jax.tree.map(lambda *parts: jnp.concatenate(parts), *arrived, lanes)
    return _State(params, residual, *evaluate(params))


def _updates(gradient: PyTree, sizes: Float[np.ndarray, " lanes"]) -> PyTree:
    """What one step of every lane adds to its weights."""

    def update(slope: Array) -> Array:
        return -jnp.asarray(sizes, slope.dtype).reshape(-1, *(1,) * (slope.ndim - 1)) * slope

    return jax.tree.map(update, gradient)


def _first_start(params: PyTree) -> PyTree:
    """Shapes and dtypes of a single start of a stack of them."""
    counts = [leaf.shape[0] if leaf.ndim else 0 for leaf in jax.tree.leaves(params)]
    if len(set(counts)) > 1 or not all(counts):
        raise ValueError(
            f"params: leading axes of lengths {counts}; accepted with starts=True is one length "
            "for all leaves, the number of starts"
        )
    return jax.eval_shape(lambda stack: jax.tree.map(operator.itemgetter(0), stack), params)


def _stack_shape(params: PyTree, schedule: Schedule, starts: bool) -> tuple[int, ...]:
    """Length of every axis that precedes those of the parameters."""
    lanes = len(schedule.lanes)
    return (jax.tree.leaves(params)[0].shape[0], lanes) if starts else (lanes,)


def _state_shapes(
    f: Loss,
    point: PyTree,
    numbers: Arithmetic,
    stack: tuple[int, ...],
    sharding: NamedSharding | None,
) -> _State:
    """Shapes of the state, and where it lies; the first segment fills it."""

    def state() -> _State:
        params = jax.tree.map(lambda leaf: jnp.zeros((*stack, *leaf.shape), leaf.dtype), point)
        loss = jnp.zeros(stack, jax.eval_shape(f, point).dtype)
        return _State(params, numbers.residual(params), loss, params)

    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(state),
    )


def _snapshot_capacity(schedule: Schedule) -> int:
    """Most snapshots that fall into one segment."""
    segments = (schedule.snapshot_iterations - 1) // schedule.segment_length
    return int(np.bincount(segments).max())


def _snapshot_slots(
    schedule: Schedule, recorded: int
) -> tuple[Int[np.ndarray, " length"], Int[np.ndarray, " snapshots"]]:
    """Row into which each iterate of a segment is written, and the iterations kept."""
    wanted, length = schedule.snapshot_iterations, schedule.segment_length
    kept = wanted[(wanted > recorded) & (wanted <= recorded + length)]
    slots = np.full(length, _snapshot_capacity(schedule), np.int32)
    slots[kept - recorded - 1] = np.arange(len(kept))
    return slots, kept
