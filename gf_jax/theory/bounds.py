"""Bounds on the distance between descent and its flow, as functions of measured quantities.

The fundamental theorem bounds the distance of the interpolated iterates from the flow by their
defect, the amount by which they fail the flow's equation; the a-priori theorem bounds that
defect by constants of f. Both are of plain descent on all of f: not of momentum, of batches, or of
other optimisers.

Sources: Elkabetz & Cohen, NeurIPS 2021 (a-priori theorem); Hairer, Nørsett & Wanner, Solving
ODEs I, theorem I.10.6 (fundamental theorem).
"""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float
from scipy.special import exprel

from gf_jax.program.arithmetic import flow_arithmetic
from gf_jax.program.compiling import jit
from gf_jax.program.program import Loss, Program, prepare_at_stack

PyTree = Any

FRACTIONS = np.arange(1, 9) / 8  # of a step, at which its defect is measured
FINER = 64  # integration steps between sampling times


def defects(f: Loss | Program, params: PyTree, step_size: float) -> Float[np.ndarray, " points"]:
    """Mean defect of the step of descent from every point of a stack.

    Between two iterates descent is interpolated linearly; its defect at a fraction u of
    the step is ‖∇f(θ - u step_size ∇f(θ)) - ∇f(θ)‖. The mean is taken over eight fractions
    by the trapezoidal rule, which is exact where f is quadratic along the step.

    Args:
      f: maps parameters to a scalar loss.
      params: stacked parameters, leaves of shape (points, ...).
      step_size: in time per iteration.

    Raises:
      ValueError: on parameters or an f that are not accepted.

    Example:
      >>> def f(w):
      ...     return jnp.sum((w**2 - 1) ** 2)
      >>> w = jnp.array([0.1, 1.5])
      >>> gf_jax.theory.defects(f, jnp.stack([w, 2 * w]), 0.01).round(3)
      array([ 0.829, 39.673])
    """
    program, params = prepare_at_stack(f, params)
    pure, numbers = program.pure, flow_arithmetic(program.data)

    def mean(data: list[Array], stack: PyTree, step_size: Array) -> Array:
        def one(params: PyTree) -> Array:
            start = pure.gradient(data, params)

            def at(fraction: Array) -> Array:
                there = optax.tree.add_scale(params, -step_size * fraction, start)
                return optax.tree.norm(optax.tree.sub(pure.gradient(data, there), start))

            measured = jax.lax.map(at, jnp.asarray(FRACTIONS))
            return (measured.sum() - measured[-1] / 2) / len(FRACTIONS)

        return jax.lax.map(one, stack)

    with numbers.context():
        solve = pure.once("defects", lambda: jit(mean, speed=pure.flow_speed))
        data, stack = numbers.near(program.data), numbers.cast(params)
        return np.asarray(solve(data, stack, step_size))


def a_posteriori_bound(
    step_size: float,
    iterations: ArrayLike,
    mean_defects: Float[ArrayLike, " samples"],
    lambda_min: Float[ArrayLike, " samples"],
) -> Float[np.ndarray, " samples"]:
    """Bound on the distance ‖θ_k - θ(k step_size)‖ between descent and its flow.

    The fundamental theorem bounds it by ∫₀ᵗ exp(∫_{t'}^t m) δ(t') dt', with δ the
    defect and m(t) at least -lambda_min of the Hessian at every point of the segment
    between flow and descent at time t. It is a proven bound if iterations are all
    from 0 on, f is quadratic along every step, and lambda_min is that infimum. What is replaced by
    samples is: the infimum over the segment, by the points at which the caller measured;
    and m and δ at iterations that were not sampled, by linear interpolation. So on a
    network the number is the theorem evaluated on measurements, not a proof; the
    Hessian's delta functions at kinks are not in it.

    Args:
      step_size: in time per iteration.
      iterations: iterations sampled, ascending from 0.
      mean_defects: mean defect of the step that begins there, see ``defects``. Within a
        step it is taken to grow linearly from 0, as it does where f is quadratic.
      lambda_min: smallest eigenvalue of the Hessian there; positive ones count too.

    Returns:
      The bound at the sampled iterations; infinite where it overflows.

    Raises:
      ValueError: on iterations that do not ascend from 0.

    Example:
      >>> found, ones = [0.05, 0.04, 0.03], [1.0, 1.0, 1.0]
      >>> gf_jax.theory.a_posteriori_bound(0.1, [0, 1, 2], found, ones).round(4)
      array([0.    , 0.0048, 0.0082])
    """
    sampled = np.asarray(iterations)
    if sampled.ndim != 1 or not len(sampled) or sampled[0] != 0 or (np.diff(sampled) <= 0).any():
        raise ValueError(f"iterations: got {iterations}; accepted are ascending ones from 0")
    steps = np.arange(sampled[-1])
    # Within a step m is that of its middle, and δ grows linearly to twice its mean.
    exponents = -step_size * np.interp(steps + 0.5, sampled, np.asarray(lambda_min, np.float64))
    peaks = 2 * np.interp(steps, sampled, np.asarray(mean_defects, np.float64))
    return _accumulate(exponents, step_size * peaks * _second_phi(exponents))[sampled]


class AllowedStepSize(NamedTuple):
    """The largest step size that the a-priori theorem allows, and its constants.

    Attributes:
      step_size: in time per iteration; 0 if the exponential overflows.
      time: time at which the infimum is attained.
      beta: smoothness constant of f used.
      gamma: Lipschitz constant of f used.
      growth: exp of the integral of max(m, 0) over all time.
      integral: ∫₀ᵗ exp(∫_{t'}^t m) dt' at that time.

    Example:
      >>> lambda_min, constants = [0.5, 0.5], {"beta": 2.0, "gamma": 1.0}
      >>> allowed = gf_jax.theory.allowed_step_size(0.01, [0, 1], lambda_min, **constants)
      >>> allowed.time, allowed.growth
      (1.0, 1.0)
    """

    step_size: float
    time: float
    beta: float
    gamma: float
    growth: float
    integral: float


def allowed_step_size(
    epsilon: float,
    times: Float[ArrayLike, " samples"],
    lambda_min: Float[ArrayLike, " samples"],
    *,
    beta: float,
    gamma: float,
) -> AllowedStepSize:
    """Step size for which the a-priori theorem keeps descent within epsilon of the flow.

    It is the infimum over t of epsilon / (β γ ∫₀ᵗ exp(∫_{t'}^t m) dt'). The theorem wants
    every constant for the whole tube of width epsilon around the flow; what is given here
    decides whether the answer is the theorem's (bounds that hold in the tube) or its value
    on the flow's samples. Between samples lambda_min is interpolated linearly.

    Args:
      epsilon: accuracy wanted, a Euclidean distance.
      times: sampling times, ascending from 0.
      lambda_min: lower bound on the smallest eigenvalue in the tube at those times.
      beta: bound on the Hessian's spectral norm in the tube.
      gamma: bound on the gradient's norm in the tube.

    Raises:
      ValueError: on times or numbers that are not accepted.

    Example:
      >>> lambda_min, constants = [0.5, 0.5], {"beta": 2.0, "gamma": 1.0}
      >>> gf_jax.theory.allowed_step_size(0.01, [0, 1], lambda_min, **constants).step_size
      0.0063537352063419966
    """
    times = np.asarray(times, np.float64)
    if times.ndim != 1 or len(times) < 2 or times[0] != 0 or not (np.diff(times) > 0).all():
        raise ValueError(f"times: got {times.tolist()}; accepted are ascending times from 0")
    for name, value in {"epsilon": epsilon, "beta": beta, "gamma": gamma}.items():
        if not (np.isfinite(value) and value > 0):
            raise ValueError(f"{name}: got {value}; accepted is a positive finite number")
    fine = [np.linspace(*pair, FINER, endpoint=False) for pair in itertools.pairwise(times)]
    grid = np.concatenate([*fine, times[-1:]])
    m = -np.interp(grid, times, np.asarray(lambda_min, np.float64))
    exponents, grows = np.diff(grid) * (m[1:] + m[:-1]) / 2, np.maximum(m, 0)
    integrals = _accumulate(exponents, np.diff(grid) * exprel(exponents))
    worst = int(integrals.argmax())
    with np.errstate(over="ignore"):
        growth = np.exp(np.trapezoid(grows, grid))
    return AllowedStepSize(
        step_size=float(epsilon / (beta * gamma * integrals[worst])),
        time=float(grid[worst]),
        beta=beta,
        gamma=gamma,
        growth=float(growth),
        integral=float(integrals[worst]),
    )


def _accumulate(exponents: np.ndarray, added: np.ndarray) -> np.ndarray:
    """B = 0, then B ← exp(exponent) B + added; infinite where it overflows."""
    with np.errstate(over="ignore"):
        growth = np.exp(exponents)
    bounds = itertools.accumulate(
        zip(growth.tolist(), added.tolist(), strict=True),
        lambda bound, step: step[0] * bound + step[1],
        initial=0.0,
    )
    return np.fromiter(bounds, np.float64)


def _second_phi(x: np.ndarray) -> np.ndarray:
    """∫₀¹ exp(x (1 - u)) u du = (exp(x) - 1 - x) / x², by its series where that cancels."""
    series = 0.5 + x / 6 + x**2 / 24 + x**3 / 120
    return np.where(np.abs(x) > 1e-2, (np.expm1(x) - x) / np.where(x == 0, 1.0, x) ** 2, series)
