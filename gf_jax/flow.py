"""Gradient flow, its first-order deviation, and the modified flow.

Gradient flow is dθ/dt = −∇f(θ) from θ(0) = params. Descent with step size s stands
at time k s after k iterations, at

    θ(k s) + s e(k s) + O(s²),   e' = −∇²f(θ) e − ½ ∇²f(θ) ∇f(θ),   e(0) = 0,

and stays within O(s²) of the modified flow θ' = −∇f − (s/2) ∇²f ∇f. All of them are
solved by an adaptive high-order Runge–Kutta method whose errors are measured, and
whose tolerances are set, in the Euclidean norm over all parameters; in float64 where
the device has it.

Sources: Elkabetz & Cohen, NeurIPS 2021; Barrett & Dherin, ICLR 2021 (modified flow);
Hairer, Nørsett & Wanner, Solving ODEs I, section II.8 (expansion of the error).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float

from gf_jax.arithmetic import ARITHMETICS, Arithmetic
from gf_jax.comparison import distance
from gf_jax.tracing import Loss, check_loss, hoist_constants

PyTree = Any
Progress = Callable[[float], None]

PRODUCT = 2  # a Hessian-vector product, in gradients
E_TOLERANCE = 1e3  # that of e, per norm of the first gradient, over that of params
LOOSER = 10.0  # tolerance of the second solve, that tells the error, over that of the first
MOST_STEPS = 100_000


class Statistics(NamedTuple):
    """What a solve took.

    Attributes:
      steps: steps accepted.
      rejected_steps: steps tried and taken again with a smaller size.
      gradient_evaluations: work of the solve in gradients of f; a Hessian-vector
        product counts as two.
      complete: whether it reached its last time. Beyond the point where it did not,
        all results are NaN.
      checking_evaluations: work of the second solve that tells the error, likewise.
    """

    steps: int
    rejected_steps: int
    gradient_evaluations: int
    complete: bool
    checking_evaluations: int


class Flow(NamedTuple):
    """A flow at the times asked for, as NumPy arrays.

    Attributes:
      times: times, ascending.
      params: stacked parameters, leaves of shape (times, ...).
      loss: f there.
      error: estimated Euclidean distance from the exact flow.
      statistics: what the solve took.
    """

    times: Float[np.ndarray, " times"]
    params: PyTree
    loss: Float[np.ndarray, " times"]
    error: Float[np.ndarray, " times"]
    statistics: Statistics


class Deviation(NamedTuple):
    """Gradient flow and how descent leaves it, for every step size at once.

    Attributes:
      flow: the flow.
      coherent: e, stacked as ``flow.params``: descent with a small step size s stands
        at flow.params + s e, up to what kinks add at random.
      coherent_norm: Euclidean norm of e.
      random_norm: root mean square, per step size, of the random part that kinks
        add: zero for a smooth f.
      error: estimated Euclidean error of e.
    """

    flow: Flow
    coherent: PyTree
    coherent_norm: Float[np.ndarray, " times"]
    random_norm: Float[np.ndarray, " times"]
    error: Float[np.ndarray, " times"]

    def gap(self, step_size: float, other: float = 0.0) -> Float[np.ndarray, " times"]:
        """Predicted distance between descent with two step sizes, at equal times.

        Args:
          step_size: of one run, in time per iteration.
          other: of the other run; 0 is the flow itself.
        """
        if step_size == other:
            return np.zeros_like(self.coherent_norm)
        coherent = (step_size - other) * self.coherent_norm
        random = np.hypot(step_size, other) * self.random_norm
        return np.hypot(coherent, random)


def gradient_flow(
    f: Loss,
    params: PyTree,
    times: Float[ArrayLike, " times"],
    *,
    tolerance: float | None = None,
    progress: Progress | None = None,
) -> Flow:
    """Gradient flow of f from params, at all times in one solve.

    Args:
      f: maps parameters to a scalar loss; differentiable by JAX.
      params: initial point, a pytree of floating-point arrays.
      times: ascending times from 0, the last above 0; time is iteration * step_size.
      tolerance: largest Euclidean error per step, over all parameters. None is 1e-8
        in float64, and 1e-6 where the device has only float32.
      progress: is called now and then with the share of the time span solved.

    Returns:
      The flow, with an error from a second solve at ten times the tolerance.

    Raises:
      ValueError: on times, tolerance, parameters or an f that are not accepted.
    """
    setup = _set_up(f, params, times, tolerance or _default_tolerance())
    return _solve_flow(setup, lambda gradient, _: gradient, 1, progress)


def modified_flow(
    f: Loss,
    params: PyTree,
    times: Float[ArrayLike, " times"],
    step_size: float,
    *,
    tolerance: float | None = None,
    progress: Progress | None = None,
) -> Flow:
    """The modified flow of descent with a step size: θ' = −∇f − (step_size/2) ∇²f ∇f.

    It is the gradient flow of f + (step_size/4) ‖∇f‖² and stays within O(step_size²)
    of descent. Arguments, result and errors as ``gradient_flow``.

    Source: Barrett & Dherin, Implicit Gradient Regularization, ICLR 2021.
    """
    setup = _set_up(f, params, times, tolerance or _default_tolerance())

    def slope(gradient: PyTree, product: Callable[[PyTree], PyTree]) -> PyTree:
        return optax.tree.add_scale(gradient, step_size / 2, product(gradient))

    return _solve_flow(setup, slope, 1 + PRODUCT, progress)


def deviation(
    f: Loss,
    params: PyTree,
    times: Float[ArrayLike, " times"],
    *,
    tolerance: float | None = None,
    progress: Progress | None = None,
) -> Deviation:
    """Gradient flow and the first-order deviation of descent from it, in one solve.

    One solve predicts the gap between descent at any two step sizes, see
    ``Deviation.gap``.

    Args, raises: as ``gradient_flow``; the default tolerance is 1e-6, and that of e
      the same relative to the norm of the gradient at the start, times 1000.
    """
    setup = _set_up(f, params, times, tolerance or 1e-6)
    with setup.numbers.context():
        scale = optax.tree.norm(jax.grad(lambda p: setup.f(setup.constants, p))(setup.params))

    def velocity(constants: list[Array], state: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
        params, e = state
        gradient, product = _gradient(setup.f, constants, params)
        forward = optax.tree.add_scale(e, 0.5, gradient)
        return jax.tree.map(jnp.negative, (gradient, product(forward)))

    def norm(state: tuple[PyTree, PyTree]) -> Array:
        return jnp.maximum(
            optax.tree.norm(state[0]), optax.tree.norm(state[1]) / (E_TOLERANCE * scale)
        )

    start = (setup.params, jax.tree.map(jnp.zeros_like, setup.params))
    solver = diffrax.Tsit5()
    (params, e), (error, e_error), statistics = _solve_twice(
        setup, velocity, start, norm, solver, 1 + PRODUCT, progress
    )
    length = np.asarray(distance(e, jax.tree.map(np.zeros_like, setup.params), stack_axes=1))
    flow = _flow(setup, params, error, statistics)
    return Deviation(flow, e, length, np.zeros_like(length), e_error)


class _Setup(NamedTuple):
    """A validated problem in the arithmetic that flows are solved in."""

    f: Callable[[list[Array], PyTree], Array]
    constants: list[Array]
    params: PyTree
    times: np.ndarray
    tolerance: float
    numbers: Arithmetic


def _set_up(f: Loss, params: PyTree, times: ArrayLike, tolerance: float) -> _Setup:
    if not (np.isfinite(tolerance) and tolerance > 0):
        raise ValueError(f"tolerance: got {tolerance}; accepted is a positive finite number")
    checked = np.atleast_1d(np.asarray(times, np.float64))
    if not (
        checked.ndim == 1
        and np.isfinite(checked).all()
        and (np.diff(checked) > 0).all()
        and checked[0] >= 0 < checked[-1]
    ):
        raise ValueError(f"times: got {times}; accepted are ascending times from 0, the last above")
    numbers = _numbers()
    with numbers.context():
        params = jax.tree.map(numbers.cast, params)
        check_loss(f, params)
        pure, constants = hoist_constants(f, params)
    return _Setup(pure, constants, params, checked, tolerance, numbers)


def _numbers() -> Arithmetic:
    """float64 where the device computes in it; a TPU does not."""
    return ARITHMETICS["float32" if jax.default_backend() == "tpu" else "float64"]


def _default_tolerance() -> float:
    return 1e-8 if _numbers().dtype == "float64" else 1e-6


def _gradient(
    f: Callable, constants: list[Array], params: PyTree
) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
    """The gradient, and the product of the Hessian with a vector."""
    return jax.linearize(lambda p: jax.grad(f, argnums=1)(constants, p), params)


def _solve_flow(setup: _Setup, slope: Callable, cost: int, progress: Progress | None) -> Flow:
    """Solves θ' = −slope(gradient, Hessian product)."""

    def velocity(constants: list[Array], params: PyTree) -> PyTree:
        return jax.tree.map(jnp.negative, slope(*_gradient(setup.f, constants, params)))

    params, error, statistics = _solve_twice(
        setup, velocity, setup.params, optax.tree.norm, diffrax.Dopri8(), cost, progress
    )
    return _flow(setup, params, error, statistics)


def _flow(setup: _Setup, params: PyTree, error: np.ndarray, statistics: Statistics) -> Flow:
    with setup.numbers.context():
        losses = jax.jit(
            lambda constants, params: jax.lax.map(lambda p: setup.f(constants, p), params)
        )(setup.constants, params)
    return Flow(setup.times, params, np.asarray(losses), error, statistics)


def _solve_twice(
    setup: _Setup,
    velocity: Callable[[list[Array], PyTree], PyTree],
    start: PyTree,
    norm: Callable[[PyTree], Array],
    solver: diffrax.AbstractERK,
    cost: int,
    progress: Progress | None,
) -> tuple[PyTree, Any, Statistics]:
    """Solves at the tolerance and at a looser one, by one compiled program.

    Args:
      velocity: maps (constants, state) to the state's derivative in time.
      start: state at time 0; a pytree like params, or a tuple of such.
      norm: of a state's error, to be kept below the tolerance in every step.
      cost: of a velocity, in gradients.

    Returns:
      The tighter solution, its distance from the looser one, for every member of
      the tuple if the state is one, and what they took.
    """

    @jax.jit
    def solve(constants: list[Array], start: PyTree, tolerance: float, part: float) -> Any:
        return diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, state, constants: velocity(constants, state)),
            solver,
            t0=0.0,
            t1=setup.times[-1],
            dt0=None,
            y0=start,
            args=constants,
            saveat=diffrax.SaveAt(ts=jnp.asarray(setup.times)),
            stepsize_controller=diffrax.PIDController(
                rtol=0.0, atol=1.0, norm=lambda error: norm(error) / tolerance, pcoeff=0.2, icoeff=0.4
            ),
            max_steps=MOST_STEPS,
            throw=False,
            progress_meter=diffrax.NoProgressMeter()
            if progress is None
            else _Meter(progress, part),
        )

    with setup.numbers.context():
        rough, fine = (
            solve(setup.constants, start, setup.tolerance * factor, part)
            for factor, part in ((LOOSER, 0.0), (1.0, 0.5))
        )
        states = jax.device_get((rough.ys, fine.ys))
        members = zip(*states, strict=True) if isinstance(start, tuple) else [states]
        errors = [np.asarray(distance(a, b, stack_axes=1)) for a, b in members]
    counts = jax.device_get(fine.stats)
    # An explicit method of this kind reuses its last stage as the next step's first.
    evaluations = [
        cost * (int(s.stats["num_steps"]) * (solver.tableau.num_stages - 1) + 2)
        for s in (fine, rough)
    ]
    statistics = Statistics(
        steps=int(counts["num_accepted_steps"]),
        rejected_steps=int(counts["num_rejected_steps"]),
        gradient_evaluations=evaluations[0],
        complete=bool(fine.result == diffrax.RESULTS.successful),
        checking_evaluations=evaluations[1],
    )
    finite = jax.tree.map(lambda leaf: np.where(np.isfinite(leaf), leaf, np.nan), states[1])
    return finite, errors if isinstance(start, tuple) else errors[0], statistics


class _Meter(diffrax.AbstractProgressMeter):
    """Tells how much is solved, a hundred times."""

    report: Progress = eqx.field(static=True)
    part: Any

    def init(self) -> Array:
        return jnp.zeros(())

    def step(self, state: Array, progress: Any) -> Array:
        def tell(progress: Array) -> Array:
            jax.debug.callback(lambda p, part: self.report(part + p / 2), progress, self.part)
            return progress

        return jax.lax.cond(progress > state + 0.01, tell, lambda _: state, progress)

    def close(self, state: Array) -> None:
        pass
