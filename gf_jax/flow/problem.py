"""What every solver of a flow works on, and what it reports."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from gf_jax import stacks
from gf_jax.program.arithmetic import Arithmetic, flow_arithmetic
from gf_jax.program.compiling import jit
from gf_jax.program.kinks import Gated
from gf_jax.program.program import Batched, Loss, Program, prepare, prepare_batches
from gf_jax.program.pure import Pure

PyTree = Any
Progress = Callable[[float], None]

QUICK = 5_000  # gradients, as a flow may take; where they cost next to nothing it takes seconds


class Statistics(NamedTuple):
    """What a solve took.

    Attributes:
      steps: steps accepted.
      rejected_steps: steps tried and taken again with a smaller size.
      gradient_evaluations: work of the solve in gradients of f; a Hessian-vector
        product counts as two, a forward pass as a third.
      complete: whether it reached its last time, and stayed finite. Beyond the point
        where it did not, all results are NaN.
      checking_evaluations: work of the coarser solves that tell the error, likewise.

    Example:
      >>> def f(w):
      ...     return jnp.sum((w**2 - 1) ** 2)
      >>> w = jnp.array([0.1, 1.5])
      >>> flow = gf_jax.gradient_flow(f, w, [0.1, 0.2])
      >>> flow.statistics.gradient_evaluations > flow.statistics.steps
      True
    """

    steps: int
    rejected_steps: int
    gradient_evaluations: int
    complete: bool
    checking_evaluations: int


class FlowProblem(NamedTuple):
    """A loss, its start and sampling times, in the arithmetic that flows are solved in.

    Attributes:
      program: the loss, prepared.
      params: the initial point.
      times: ascending sampling times.
      tolerance: what was asked for; None leaves it to the solver.
      numbers: the arithmetic.
      batched: the losses of the batches that steps go through in turn; None is the loss itself.
    """

    program: Program
    params: PyTree
    times: Float[np.ndarray, " times"]
    tolerance: float | None
    numbers: Arithmetic
    batched: Batched | None = None

    @property
    def pure(self) -> Pure:
        """The loss as a function of (data, params)."""
        return self.program.pure

    @property
    def data(self) -> list[Array]:
        """What the loss is a loss on."""
        return self.program.data

    def with_batches(self, loss: Any, number: Any) -> "FlowProblem":
        """The same with the losses of batches, see ``prepare_batches``."""
        made = prepare_batches(self.program, self.program.shapes, loss, number)
        near = made.program._replace(data=self.numbers.near(made.program.data))
        return self._replace(batched=made._replace(program=near))

    @property
    def gated(self) -> Gated:
        """The gated form of the loss, a function of the pair (data, params)."""
        with self.numbers.context():
            return self.pure.gated(self.data, self.params)

    @property
    def has_kinks(self) -> bool:
        """Whether the loss is only piecewise smooth."""
        return self.gated.size > 0

    @property
    def gated_of(self) -> Callable[[list[Array], PyTree], Gated]:
        """Maps data to the gated form as a function of the parameters alone."""
        pure = self.pure

        def with_data(data: list[Array], params: PyTree) -> Gated:
            kinks, both, size = pure.gated(data, params)
            return Gated(
                lambda point: kinks((data, point)),
                lambda point, gates: both((data, point), gates),
                size,
            )

        return with_data

    def losses(self, stack: PyTree, *, stack_axes: int) -> np.ndarray:
        """The loss of every point of a stack, one after another."""
        loss = self.pure.loss

        def along(data: list[Array], stack: PyTree, axes: int) -> Array:
            if axes == 0:
                return loss(data, stack)
            return jax.lax.map(lambda points: along(data, points, axes - 1), stack)

        with self.numbers.context():
            speed = self.pure.flow_speed
            solve = self.pure.once("losses", lambda: jit(along, speed=speed, static_argnums=2))
            return stacks.along(
                lambda block: np.asarray(solve(self.data, block, stack_axes)), stack
            )


@dataclasses.dataclass(frozen=True)
class BetweenSolves:
    """A progress that small problems tell after every solve, and large ones meanwhile too.

    A compiled program that calls Python is compiled anew in every process; JAX's cache keeps the
    others. Where a solve takes seconds, that is worth more than to hear of it meanwhile.

    Attributes:
      tell: takes the share of the work that is done.
    """

    tell: Progress

    def __call__(self, share: Any) -> None:
        """Tells a share of the work."""
        self.tell(share)


def tells_meanwhile(progress: Progress | None, program: Program) -> bool:
    """Whether compiled solves of a program tell this progress while they run."""
    brief = isinstance(progress, BetweenSolves) and program.pure.cheap >= QUICK
    return progress is not None and not brief


def tell_after_solve(progress: Progress | None, share: float) -> None:
    """Tells the share that is done when a solve has ended, if the progress asks for it."""
    if isinstance(progress, BetweenSolves):
        progress(share)


def part(progress: Progress | None, begin: float, length: float) -> Progress | None:
    """Progress of a part of the work, of some length, that begins at a share of the whole."""
    if progress is None:
        return None

    def tell(share: Any) -> None:
        progress(begin + length * float(share))

    return BetweenSolves(tell) if isinstance(progress, BetweenSolves) else tell


class Telling:
    """Tells the progress of whatever is solved at the moment.

    Compiled programs hold it, so that they need not be compiled anew for every progress.
    """

    progress: Progress | None = None

    def __call__(self, share: Any) -> None:
        """Tells a share of the work."""
        if self.progress is not None:
            self.progress(share)


def flow_problem(
    f: Loss | Program, params: PyTree, times: ArrayLike, tolerance: float | None
) -> FlowProblem:
    """Checks and prepares a problem.

    Raises:
      ValueError: on times, tolerance, parameters or an f that are not accepted.
    """
    if tolerance is not None and not (np.isfinite(tolerance) and tolerance > 0):
        raise ValueError(f"tolerance: got {tolerance}; accepted is a positive finite number")
    checked = np.atleast_1d(np.asarray(times, np.float64))
    if not (
        checked.ndim == 1
        and checked.size
        and np.isfinite(checked).all()
        and (np.diff(checked) > 0).all()
        and checked[0] >= 0 < checked[-1]
    ):
        raise ValueError(f"times: got {times}; accepted are ascending times from 0, the last above")
    program = prepare(f, params)
    params = program.moving(params)
    numbers = flow_arithmetic(program.data)
    program = program._replace(data=numbers.near(program.data))
    with numbers.context():
        # From the host, so that it stands on no device or mesh but where data take it.
        params = numbers.cast(jax.tree.map(np.asarray, params))
    return FlowProblem(program, params, checked, tolerance, numbers)
