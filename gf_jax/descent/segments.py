"""One compiled function for a segment of descent, called until all of them are done.

See ``gf_jax.descent.descent`` for the schedule, the starts and the devices.
"""

import functools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from gf_jax.comparison import Metrics, measure
from gf_jax.descent import stepping
from gf_jax.descent.batches import Batches, Turn, check_draws, first_turn
from gf_jax.descent.placement import Memory, copy_to, fetch, memory_needed, place
from gf_jax.descent.schedule import Clock, Schedule
from gf_jax.descent.stepping import Data, Lanes, Rule
from gf_jax.optimizers.momentum import time_scale
from gf_jax.optimizers.steps import Optimizer
from gf_jax.program.arithmetic import arithmetic as get_arithmetic
from gf_jax.program.compiling import Speed, jit
from gf_jax.program.program import Loss, Program, one_of, prepare, prepare_at_stack

PyTree = Any


class Trajectory(NamedTuple):
    """All lanes over consecutive base iterations, as NumPy arrays.

    Attributes:
      iterations: base iterations recorded, 0 being the initial point.
      metrics: losses, distances and gradient norms, each (iterations, lanes); from many
        starts (iterations, starts, lanes), and from draws likewise.
      snapshot_iterations: base iterations of the snapshots.
      snapshots: stacked parameters, leaves of shape (snapshots, lanes, ...); from many
        starts (snapshots, starts, lanes, ...), and from draws likewise.
      clock: what times and step sizes are computed from; None where it is not known, as of
        arrays that were stored without it.

    Example:
      >>> def f(w):
      ...     return jnp.sum((w**2 - 1) ** 2)
      >>> w = jnp.array([0.1, 1.5])
      >>> run = gf_jax.gradient_descent(f, w, step_size=0.01, ratios=(2,), iterations=10)
      >>> run.snapshot_iterations
      array([ 1,  2,  3,  4,  5,  6,  7,  8,  9, 10])
      >>> run.snapshots.shape  # snapshots, lanes, parameters
      (10, 2, 2)
      >>> run.snapshot_times[:3].round(2), run.step_sizes
      (array([0.01, 0.02, 0.03]), array([0.01 , 0.005]))
    """

    iterations: Int[np.ndarray, " iterations"]
    metrics: Metrics
    snapshot_iterations: Int[np.ndarray, " snapshots"]
    snapshots: PyTree
    clock: Clock | None = None

    @property
    def times(self) -> Float[np.ndarray, " iterations"]:
        """Time of every base iteration."""
        return self._clock.times(self.iterations)

    @property
    def snapshot_times(self) -> Float[np.ndarray, " snapshots"]:
        """Time of every snapshot."""
        return self._clock.times(self.snapshot_iterations)

    @property
    def step_sizes(self) -> Float[np.ndarray, " lanes"]:
        """Step size of every lane, the largest first."""
        return self._clock.step_sizes

    @property
    def _clock(self) -> Clock:
        if self.clock is None:
            raise ValueError("trajectory: its step size is not known; give it a clock")
        return self.clock


class _State(NamedTuple):
    """Carried from one base iteration to the next; every leaf has a lane axis.

    From many starts the axis of starts precedes it.
    """

    params: PyTree
    residual: PyTree
    loss: Float[Array, "*starts lanes"]
    gradient: PyTree
    optimizer_state: PyTree
    turn: Turn | None

    def measure(self, initial_params: PyTree) -> Metrics:
        return measure(
            self.params, self.loss, self.gradient, initial_params, residual=self.residual
        )


def resumable_segments(
    f: Loss | Program,
    params: PyTree,
    schedule: Schedule,
    *,
    arithmetic: str = "compensated",
    optimizer: Optimizer | None = None,
    batches: Batches | None = None,
    starts: bool = False,
    draws: int | None = None,
    sharding: NamedSharding | None = None,
    check_memory: Callable[[Memory], None] | None = None,
    resume_from: tuple[int, Sequence[Array | np.ndarray]] | None = None,
) -> Iterator[tuple[Trajectory, list[Array]]]:
    """``descent_segments``, each with the state behind it, from which the run can go on.

    A state is a list of arrays without a meaning outside. It lies on the device until the
    next segment takes its place there, so copy what is to be kept.

    ``resume_from`` are the base iterations that are done, and the state behind them; all else
    is as in ``descent_segments``. The segments that follow are, to the last bit, those of the
    run that was not interrupted, if nothing else differs, device and compiler included.

    Raises:
      ValueError, FloatingPointError: as ``gradient_descent``, and ValueError if
        ``resume_from`` is of no run like this one.

    Example:
      >>> def f(w):
      ...     return jnp.sum((w**2 - 1) ** 2)
      >>> w, schedule = jnp.array([0.1, 1.5]), gf_jax.Schedule(0.01, (2,), 10, segments=2)
      >>> part, state = next(gf_jax.resumable_segments(f, w, schedule))
      >>> kept = [np.array(leaf) for leaf in state]
      >>> rest = gf_jax.resumable_segments(f, w, schedule, resume_from=(5, kept))
      >>> [part.iterations.tolist() for part, _ in rest]
      [[6, 7, 8, 9, 10]]
    """
    numbers, scale = get_arithmetic(arithmetic), time_scale(optimizer)
    if draws is not None:
        check_draws(draws, batches, starts)
    if starts:
        program, params = prepare_at_stack(f, params, products=numbers.products)
    else:
        program = prepare(f, params, products=numbers.products)
        params = program.moving(params)
    with numbers.context():  # entered anew at each call, so that it is never a consumer's
        params = numbers.cast(params)
        point = one_of(params) if starts else params
        if draws is not None:  # many runs from one start are runs from many
            starts, params = True, repeat(params, draws)
        rule, data = stepping.rule(program, point, schedule, numbers, optimizer, batches)
        if sharding is not None:
            constants, params = place([*data.whole, *data.batched], params, sharding)
            data = Data(constants[: len(data.whole)], constants[len(data.whole) :])
        stack = _stack_shape(params, schedule, starts)
        turn = None if batches is None else first_turn(batches, schedule.lanes, stack)
        shapes = _state_shapes(rule, data, point, stack, sharding, turn)
        sizes = np.array(schedule.step_sizes)
        evaluations = schedule.gradient_evaluations * math.prod(stack[:-1])
        evaluations *= 1 if rule.sampling is None else rule.sampling.gradients
        losses = [rule.pure] if rule.of_batch is None else [rule.pure, rule.of_batch]
        speed = min(loss.speed(evaluations) for loss in losses)
        run_segment: Any = _compiled(rule, schedule, starts, sharding, speed)
        if check_memory is not None:
            slots, _ = schedule.snapshot_slots(0)
            lowered = run_segment.lower(data, shapes, params, sizes, slots, True)
            run_segment = lowered.compile()
            check_memory(memory_needed(run_segment, schedule, stack, point, sharding))
        recorded, state = _state_at(resume_from, schedule, shapes, turn)
    length = schedule.segment_length
    while recorded < schedule.iterations:
        slots, kept = schedule.snapshot_slots(recorded)
        with numbers.context():
            state, start, metrics, snapshots = run_segment(
                data, state, params, sizes, slots, recorded == 0
            )
            start, metrics, snapshots = fetch((start, metrics, snapshots))
        part = Trajectory(
            iterations=np.arange(recorded + 1, recorded + length + 1),
            metrics=metrics,
            snapshot_iterations=kept,
            snapshots=jax.tree.map(operator.itemgetter(slice(len(kept))), snapshots),
            clock=schedule.clock(scale),
        )
        yield part if recorded else _with_start(part, start), jax.tree.leaves(state)
        recorded += length


def _state_at(
    resume_from: tuple[int, Sequence[Array | np.ndarray]] | None,
    schedule: Schedule,
    shapes: _State,
    turn: Turn | None,
) -> tuple[int, _State]:
    """Base iterations done, and the state that the next segment takes."""
    wanted, structure = jax.tree.flatten(shapes)
    if resume_from is None:
        zeros = jax.tree.map(lambda w: np.zeros(w.shape, w.dtype), shapes)._replace(turn=turn)
        return 0, jax.tree.map(lambda leaf, w: jax.device_put(leaf, w.sharding), zeros, shapes)
    recorded, leaves = resume_from
    if not 0 < recorded <= schedule.iterations or recorded % schedule.segment_length:
        raise ValueError(
            f"resume_from: {recorded} iterations are done; accepted is the end of a segment, a "
            f"multiple of {schedule.segment_length} up to {schedule.iterations}"
        )
    if [(leaf.shape, leaf.dtype) for leaf in leaves] != [(w.shape, w.dtype) for w in wanted]:
        raise ValueError(
            "resume_from: the state is of another run; accepted is one of the same parameters, "
            "ratios and arithmetic"
        )
    copies = [copy_to(leaf, like.sharding) for leaf, like in zip(leaves, wanted, strict=True)]
    return recorded, jax.tree.unflatten(structure, copies)


def _with_start(part: Trajectory, start: Metrics) -> Trajectory:
    """The first segment, preceded by the initial point."""
    return part._replace(
        iterations=np.concatenate([[0], part.iterations]),
        metrics=jax.tree.map(lambda a, b: np.concatenate([a[None], b]), start, part.metrics),
    )


def _compiled(
    rule: Rule, schedule: Schedule, starts: bool, sharding: NamedSharding | None, speed: Speed
) -> Callable:
    """The function of one segment, kept with the loss that it is of."""
    capacity, unbound = schedule.snapshot_capacity, rule._replace(pure=None)  # type: ignore[arg-type]
    name = ("segment", unbound, capacity, starts, sharding, speed)
    return rule.pure.once(name, lambda: _jit(_segment(rule, capacity, starts), sharding, speed))


def _segment(rule: Rule, capacity: int, starts: bool) -> Callable:
    """Builds the function of one segment; the number of slots is its length."""
    # What follows is written for one start; the schedule is the same for all.
    each_start: Callable[[Callable], Callable] = jax.vmap if starts else lambda function: function

    def run(
        data: Data,
        state: _State,
        initial_params: PyTree,
        sizes: Float[Array, " lanes"],
        slots: Int[Array, " length"],
        is_first: bool,
    ) -> tuple[_State, Metrics, Metrics, PyTree]:
        start_all = each_start(functools.partial(_start, rule, data, sizes))
        advance = each_start(functools.partial(_advance, rule, data, sizes))
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


def _jit(segment: Callable, sharding: NamedSharding | None, speed: Speed) -> Callable:
    """Compiles a segment; all that is stacked comes out placed as it went in."""
    options: dict[str, Any] = {}
    if sharding is not None:
        rows = NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))
        options["out_shardings"] = (sharding, sharding, rows, rows)
    return jit(segment, speed=speed, donate_argnums=1, **options)


def _start(rule: Rule, data: Data, sizes: Array, params: PyTree, blank: _State) -> _State:
    """All lanes at an initial point, from one evaluation."""
    loss, gradient = jax.value_and_grad(lambda point: rule.pure.loss(data.whole, point))(params)
    residual = rule.numbers.residual(params)
    first = jax.vmap(lambda size: rule.initial(size, params))(sizes)
    return jax.tree.map(
        lambda leaf, like: jnp.broadcast_to(leaf, like.shape),
        _State(params, residual, loss, gradient, first, blank.turn),
        blank,
    )


def _advance(rule: Rule, data: Data, sizes: Array, state: _State) -> _State:
    """One base iteration of all lanes."""
    lanes = Lanes(state.params, state.residual, state.optimizer_state, state.turn)
    lanes = stepping.advance(rule, data, sizes, lanes, state.gradient)
    evaluate = jax.vmap(jax.value_and_grad(lambda point: rule.pure.loss(data.whole, point)))
    return _State(lanes.params, lanes.residual, *evaluate(lanes.params), *lanes[2:])


def _stack_shape(params: PyTree, schedule: Schedule, starts: bool) -> tuple[int, ...]:
    """Length of every axis that precedes those of the parameters."""
    lanes = len(schedule.lanes)
    return (jax.tree.leaves(params)[0].shape[0], lanes) if starts else (lanes,)


def _state_shapes(
    rule: Rule,
    data: Data,
    point: PyTree,
    stack: tuple[int, ...],
    sharding: NamedSharding | None,
    turn: Turn | None,
) -> _State:
    """Shapes of the state, and where it lies; the first segment fills it.

    The turn is that of all runs before their first step.
    """

    def of_one(params: PyTree, turn: Turn | None) -> _State:
        first = rule.initial(jnp.asarray(1.0), params)
        residual, loss = rule.numbers.residual(params), rule.pure.loss(data.whole, params)
        return _State(params, residual, loss, params, first, turn)

    of_run = jax.tree.map(lambda leaf: leaf[(0,) * len(stack)], turn)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((*stack, *leaf.shape), leaf.dtype, sharding=sharding),
        jax.eval_shape(of_one, point, of_run),
    )


def repeat(params: PyTree, times: int) -> PyTree:
    """A stack of one point so many times."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (times, *leaf.shape)), params)
