"""Gradient descent at several step sizes in one compiled call.

A base run with step size s and runs with step sizes s/r, one per ratio r, start
from the same point. Iterate k of the base run and iterate r k of the run with
ratio r stand at the same time k s, and are compared there. Each run is a *lane*
of a stacked pytree; ``lax.scan`` goes over base iterations.

Schedule. Between two comparison times lane r takes r steps. The lanes are sorted
by ratio: all of them step together, then those with more steps to take go on
without the ones that have arrived, in nested scans over ever smaller vmapped
stacks. So a base iteration costs exactly the sum of all ratios in gradient
evaluations, none of them masked up to thirteen lanes, and few of more, see ``grouping``. The
gradient at the point compared is evaluated once, recorded, and used for the next step of
every lane.

Starts. All of this may be done from many starting points at once, which are a further
axis of every stack, before that of the lanes. Independent draws of batches are the same axis,
with one point many times.

Devices. Starts never meet, so they may lie on different devices, and so may the examples
of the data that f closes over. The compiler splits the work as its arguments are placed:
by starts without communication, by examples with a sum of each gradient.
"""

from collections.abc import Callable, Iterator, Sequence

from jax.sharding import NamedSharding

from gf_jax.descent.batches import Batches
from gf_jax.descent.gathering import Gathering
from gf_jax.descent.placement import Memory
from gf_jax.descent.schedule import Schedule
from gf_jax.descent.segments import PyTree, Trajectory, resumable_segments
from gf_jax.optimizers.steps import Optimizer
from gf_jax.program.program import Loss, Program


def gradient_descent(
    f: Loss | Program,
    params: PyTree,
    *,
    step_size: float,
    ratios: Sequence[int],
    iterations: int,
    snapshots: int | tuple[int, ...] | None = None,
    segments: int | None = 1,
    arithmetic: str = "compensated",
    optimizer: Optimizer | None = None,
    batches: Batches | None = None,
    starts: bool = False,
    draws: int | None = None,
    sharding: NamedSharding | None = None,
) -> Trajectory:
    """Gradient descent with step sizes step_size and step_size/r, all runs at once.

    Args:
      f: maps parameters to a scalar loss; differentiable by JAX, and closed over
        data of any form.
      params: initial point, a pytree whose floating-point arrays move, see ``compare``.
      step_size: step size of the base run; time = iteration * step_size, and with momentum
        that times its time scale. The trajectory tells both: ``times``, ``step_sizes``.
      ratios: positive integers r, each of which adds a run with step_size/r.
      iterations: iterations of the base run.
      snapshots: how often parameters are kept, see ``Schedule``.
      segments: number of compiled calls, see ``Schedule``.
      arithmetic: "compensated" (the weights' own precision, at least float32, free
        of the rounding of updates), "float32", "float64" or "tf32", see
        ``gf_jax.program.arithmetic``.
      optimizer: maps a step size, that of a lane, to the optax transformation that makes its
        updates of gradients: ``optax.adam``, ``lambda h: optax.sgd(h, momentum=0.9)``, or
        ``gf_jax.heavy_ball(0.9)``, which has a time scale; that of others is 1. None is plain
        descent, which ``optax.sgd`` is.
      batches: what the steps follow the gradients of, see ``Batches``. Metrics are those
        of f, at the price of an evaluation of f per base iteration and lane. None is f.
      starts: whether every leaf of params has a leading axis that enumerates starting
        points, from each of which all runs are made. f takes a single point.
      draws: of batches that are drawn, how many independent runs are made with every step size,
        all from params: an axis in the place of that of starts. None is one run, without the
        axis.
      sharding: how params lie on the devices of a mesh: split along the axis of starts,
        or replicated, where the examples are split. Arrays that f closes over stay as
        they are if they lie on the mesh, and are replicated if not. None leaves all to
        the caller's default device.

    Returns:
      The trajectory of all lanes, sorted by ratio, the base run first. A lane
      that diverges has non-finite entries from there on and disturbs no other, nor
      does a start.

    Raises:
      ValueError: on a value outside what ``Schedule`` or ``Batches`` accepts, on draws of what
        is not drawn or beside starts, on parameters of which none is floating point, on
        leaves that differ in their number of starts or do not divide among the devices, or
        if f does not return a floating-point scalar.
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
        f,
        params,
        schedule,
        arithmetic=arithmetic,
        optimizer=optimizer,
        batches=batches,
        starts=starts,
        draws=draws,
        sharding=sharding,
    )
    return Gathering(schedule, segments_of_run).trajectory()


def descent_segments(
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
      optimizer: makes updates of gradients.
      batches: what the gradients are of.
      starts: whether params are a stack.
      draws: number of independent runs.
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
    segments = resumable_segments(
        f,
        params,
        schedule,
        arithmetic=arithmetic,
        optimizer=optimizer,
        batches=batches,
        starts=starts,
        draws=draws,
        sharding=sharding,
        check_memory=check_memory,
    )
    yield from (part for part, _ in segments)
