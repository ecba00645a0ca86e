"""What every solver of a flow works on, and what it reports."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from gf_jax.arithmetic import Arithmetic, flow_arithmetic
from gf_jax.kinks import Gated, gate
from gf_jax.tracing import Loss, hoist_constants

PyTree = Any
Progress = Callable[[float], None]


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
      f: maps (constants, params) to the loss.
      gated: its gated form, a function of the pair (constants, params).
      constants: the data that the loss closes over.
      params: the initial point.
      times: ascending sampling times.
      tolerance: what was asked for; None leaves it to the solver.
      numbers: the arithmetic.
    """

    f: Callable[[list[Array], PyTree], Array]
    gated: Gated
    constants: list[Array]
    params: PyTree
    times: Float[np.ndarray, " times"]
    tolerance: float | None
    numbers: Arithmetic

    @property
    def has_kinks(self) -> bool:
        """Whether the loss is only piecewise smooth."""
        return self.gated.size > 0

    def gated_with(self, constants: list[Array]) -> Gated:
        """The gated form as a function of the parameters alone."""
        kinks, both, size = self.gated
        return Gated(
            lambda params: kinks((constants, params)),
            lambda params, gates: both((constants, params), gates),
            size,
        )

    def losses(self, stack: PyTree, *, stack_axes: int) -> np.ndarray:
        """The loss of every point of a stack, one after another."""

        def along(constants: list[Array], stack: PyTree, axes: int) -> Array:
            if axes == 0:
                return self.f(constants, stack)
            return jax.lax.map(lambda points: along(constants, points, axes - 1), stack)

        with self.numbers.context():
            return np.asarray(jax.jit(along, static_argnums=2)(self.constants, stack, stack_axes))


def flow_problem(f: Loss, params: PyTree, times: ArrayLike, tolerance: float | None) -> FlowProblem:
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
    numbers = flow_arithmetic()
    with numbers.context():
        params = numbers.cast(params)
        pure, constants = hoist_constants(f, params)
        gated = gate(lambda pair: pure(*pair), (constants, params), given=len(constants))
    return FlowProblem(pure, gated, constants, params, checked, tolerance, numbers)
