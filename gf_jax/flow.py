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

from gf_jax.arithmetic import Arithmetic, flow_arithmetic
from gf_jax.comparison import distance
from gf_jax.tracing import Loss, check_loss, hoist_constants

PyTree = Any
Progress = Callable[[float], None]

PRODUCT = 2  # a Hessian-vector product, in gradients
E_TOLERANCE = 1e3  # that of e, per norm of the first gradient, over that of params
LOOSER = 100.0  # tolerance of the second solve, that tells the error, over that of the first
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
      The flow, with an error from a second solve at a hundred times the tolerance.

    Raises:
      ValueError: on times, tolerance, parameters or an f that are not accepted.
    """
    setup = _set_up(f, params, times, tolerance)

    def velocity(constants: list[Array], params: PyTree) -> PyTree:
        gradient = jax.grad(setup.f, argnums=1)(constants, params)
        return jax.tree.map(jnp.negative, gradient)

    method = _Method(velocity, diffrax.Dopri8(), optax.tree.norm, cost=1)
    (solution,) = _solve_twice(setup, method, setup.params, [setup.constants], progress)
    return _flow(setup, solution.state, solution.error[0], solution.statistics)


def modified_flow(
    f: Loss,
    params: PyTree,
    times: Float[ArrayLike, " times"],
    step_sizes: Float[ArrayLike, " lanes"],
    *,
    tolerance: float | None = None,
    progress: Progress | None = None,
) -> Flow:
    """The modified flow of descent at each step size s: θ' = −∇f − (s/2) ∇²f ∇f.

    It is the gradient flow of f + (s/4) ‖∇f‖² and stays within O(s²) of descent. One
    compiled program solves it for all step sizes in turn.

    Args, raises: as ``gradient_flow``; step_sizes in time per iteration.

    Returns:
      As ``gradient_flow``, with a lane axis behind the times in every array: leaves of
      ``params`` have shape (times, lanes, ...). Statistics are those of all lanes.

    Source: Barrett & Dherin, Implicit Gradient Regularization, ICLR 2021.
    """
    setup = _set_up(f, params, times, tolerance)

    def velocity(arguments: tuple[list[Array], Array], params: PyTree) -> PyTree:
        constants, step_size = arguments
        gradient, product = _gradient(setup.f, constants, params)
        slope = optax.tree.add_scale(gradient, step_size / 2, product(gradient))
        return jax.tree.map(jnp.negative, slope)

    method = _Method(velocity, diffrax.Dopri8(), optax.tree.norm, cost=1 + PRODUCT)
    arguments = [(setup.constants, float(s)) for s in np.atleast_1d(np.asarray(step_sizes))]
    flows = [
        _flow(setup, solution.state, solution.error[0], solution.statistics)
        for solution in _solve_twice(setup, method, setup.params, arguments, progress)
    ]
    params, loss, error = jax.tree.map(
        lambda *lanes: np.stack(lanes, axis=1), *[(w.params, w.loss, w.error) for w in flows]
    )
    steps, rejected, evaluations, complete, checking = zip(
        *[flow.statistics for flow in flows], strict=True
    )
    statistics = Statistics(
        sum(steps), sum(rejected), sum(evaluations), all(complete), sum(checking)
    )
    return Flow(setup.times, params, loss, error, statistics)


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
    setup = _set_up(f, params, times, 1e-6 if tolerance is None else tolerance)
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
    method = _Method(velocity, diffrax.Tsit5(), norm, cost=1 + PRODUCT)
    (solution,) = _solve_twice(setup, method, start, [setup.constants], progress)
    (params, e), (error, e_error) = solution.state, solution.error
    length = np.asarray(distance(e, jax.tree.map(np.zeros_like, setup.params), stack_axes=1))
    flow = _flow(setup, params, error, solution.statistics)
    return Deviation(flow, e, length, np.zeros_like(length), e_error)


class _Setup(NamedTuple):
    """A validated problem in the arithmetic that flows are solved in."""

    f: Callable[[list[Array], PyTree], Array]
    constants: list[Array]
    params: PyTree
    times: np.ndarray
    tolerance: float
    numbers: Arithmetic


def _set_up(f: Loss, params: PyTree, times: ArrayLike, tolerance: float | None) -> _Setup:
    numbers = flow_arithmetic()
    if tolerance is None:
        tolerance = 1e-8 if numbers.dtype == "float64" else 1e-6
    if not (np.isfinite(tolerance) and tolerance > 0):
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
    with numbers.context():
        params = jax.tree.map(numbers.cast, params)
        check_loss(f, params)
        pure, constants = hoist_constants(f, params)
    return _Setup(pure, constants, params, checked, tolerance, numbers)


def _gradient(
    f: Callable, constants: list[Array], params: PyTree
) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
    """The gradient, and the product of the Hessian with a vector."""
    return jax.linearize(lambda p: jax.grad(f, argnums=1)(constants, p), params)


def _flow(setup: _Setup, params: PyTree, error: np.ndarray, statistics: Statistics) -> Flow:
    with setup.numbers.context():
        losses = jax.jit(
            lambda constants, params: jax.lax.map(lambda p: setup.f(constants, p), params)
        )(setup.constants, params)
    return Flow(setup.times, params, np.asarray(losses), error, statistics)


class _Method(NamedTuple):
    """How a flow is solved.

    Attributes:
      velocity: maps (arguments, state) to the state's derivative in time.
      solver: a Runge–Kutta method whose last stage is the next step's first.
      norm: of a state's error, kept below the tolerance in every step.
      cost: of a velocity, in gradients.
    """

    velocity: Callable[[Any, PyTree], PyTree]
    solver: diffrax.Dopri8 | diffrax.Tsit5
    norm: Callable[[PyTree], Array]
    cost: int


class _Solution(NamedTuple):
    """A solve's states, leaves (times, ...), the error of each part, and what it took."""

    state: Any
    error: list[np.ndarray]
    statistics: Statistics


def _solve_twice(
    setup: _Setup,
    method: _Method,
    start: PyTree,
    arguments: list[Any],
    progress: Progress | None,
) -> list[_Solution]:
    """Solves at the tolerance and at a looser one, by one compiled program.

    Args:
      setup: the problem.
      method: how it is solved.
      start: state at time 0; a pytree like params, or a tuple of such parts.
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
            t1=setup.times[-1],
            dt0=None,
            y0=start,
            args=argument,
            saveat=diffrax.SaveAt(ts=jnp.asarray(setup.times)),
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

    share = 1 / (2 * len(arguments))
    solutions = []
    with setup.numbers.context():
        for number, argument in enumerate(arguments):
            rough, fine = (
                jax.device_get(
                    solve(argument, start, setup.tolerance * factor, 2 * number * share + at, share)
                )
                for factor, at in ((LOOSER, 0.0), (1.0, share))
            )
            parts = zip(rough.ys, fine.ys, strict=True)
            pairs = parts if isinstance(start, tuple) else [(rough.ys, fine.ys)]
            errors = [np.asarray(distance(a, b, stack_axes=1)) for a, b in pairs]
            reached = jax.tree.map(lambda leaf: np.where(np.isfinite(leaf), leaf, np.nan), fine.ys)
            solutions.append(_Solution(reached, errors, _statistics(method, fine, rough)))
    return solutions


def _statistics(method: _Method, fine: Any, rough: Any) -> Statistics:
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
