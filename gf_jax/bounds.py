"""Theorems on descent and its flow, as functions of measured quantities.

Lower bounds on the smallest eigenvalue of the Hessian. A second derivative of the loss
of a network along a direction (D_1, ..., D_n) of its weights is that of a convex function
of its outputs, which is not negative, and for every pair j < k of layers twice the
derivative of the loss by the outputs, applied to W_n ... D_k ... D_j ... W_1. That is at
most twice ‖D_j‖ ‖D_k‖ M_jk, with M_jk the product of what the layers besides j and k can
stretch. So the smallest eigenvalue is at least minus the largest one of the symmetric
matrix M with zeros on its diagonal, and that is at least -(n - 1) max M_jk, which is
what the theorems state.

Bounds on the distance between descent and flow. The fundamental theorem bounds the
distance of the interpolated iterates from the flow by their defect, the amount by which
they fail the flow's equation; the a-priori theorem bounds that defect by constants of f.

Sources: Elkabetz & Cohen, NeurIPS 2021 (lower bounds, a-priori theorem); Hairer, Nørsett
& Wanner, Solving ODEs I, theorem I.10.6 (fundamental theorem).
"""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float

from gf_jax.arithmetic import flow_arithmetic
from gf_jax.tracing import Loss, check_loss, hoist_constants

PyTree = Any

FRACTIONS = np.arange(1, 9) / 8  # of a step, at which its defect is measured
FINER = 64  # integration steps between sampling times


class LowerBound(NamedTuple):
    """Lower bounds on the smallest eigenvalue of the Hessian, at stacked points.

    Attributes:
      theorem: as the theorem states it, -(n - 1) max M_jk for n layers.
      sharpened: minus the largest eigenvalue of M; never below the theorem's.
    """

    theorem: Float[np.ndarray, "*points"]
    sharpened: Float[np.ndarray, "*points"]


def linear_network_bound(
    norms: Float[ArrayLike, "*points layers"],
    gradient_norm: Float[ArrayLike, "*points"],
    *,
    radius: float = 0.0,
    smoothness: float = 0.0,
) -> LowerBound:
    """Lower bound on lambda_min of f(W_1, ..., W_n) = φ(W_n ... W_1) with φ convex.

    Args:
      norms: spectral norms of the weights, from the first layer to the last.
      gradient_norm: Frobenius norm of the gradient of φ at the product.
      radius: the bound holds at all points within this distance in weight space.
      smoothness: Lipschitz constant of the gradient of φ; needed for a positive radius.

    Raises:
      ValueError: on a negative radius, or a positive one without a smoothness.
    """
    widened, slope = _in_tube(norms, gradient_norm, radius, smoothness)
    return _lower_bound(slope[..., None, None] * _others(widened))


def linear_network_smoothness(
    norms: Float[ArrayLike, "*points layers"],
    gradient_norm: Float[ArrayLike, "*points"],
    *,
    smoothness: float,
    radius: float = 0.0,
) -> Float[np.ndarray, "*points"]:
    """Upper bound on the Hessian's spectral norm, args as ``linear_network_bound``.

    The convex part is at most the smoothness of φ times the sum over layers of what all
    others stretch, squared.
    """
    widened, slope = _in_tube(norms, gradient_norm, radius, smoothness)
    layers = widened.shape[-1]
    beside = [np.prod(np.delete(widened, j, axis=-1), axis=-1) ** 2 for j in range(layers)]
    pairs = _lower_bound(slope[..., None, None] * _others(widened)).sharpened
    return smoothness * np.sum(beside, axis=0) - pairs


def homogeneous_network_bound(
    norms: Float[ArrayLike, "*points layers"],
    input_norms: Float[ArrayLike, " examples"],
    gradient_norms: Float[ArrayLike, "*points examples"],
    *,
    slope: float = 1.0,
    biases: Float[ArrayLike, "*points layers"] | None = None,
    overlaps: Float[ArrayLike, " layers"] | None = None,
    positions: Float[ArrayLike, " layers"] | None = None,
    radius: float = 0.0,
    smoothness: float = 0.0,
) -> LowerBound:
    """Lower bound on lambda_min of a network with a homogeneous activation.

    It holds where f, the mean of losses that are convex in the outputs, is
    differentiable. The theorem is for fully connected networks without biases;
    with ``biases``, ``overlaps`` and ``positions`` it is extended to biases (weights of a
    constant input) and to convolutions: one stretches by at most √overlap times
    the spectral norm of its kernel matrix, and so does the convolution by a direction.
    Max-pooling over disjoint windows stretches nothing.

    Args:
      norms: spectral norms of the weights as matrices (outputs, inputs or taps).
      input_norms: Euclidean norm of every example.
      gradient_norms: norm of the gradient of every example's loss by its outputs.
      slope: largest absolute slope of the activation.
      biases: Euclidean norms of the biases, zero for a layer without; None if none has.
      overlaps: most windows that one input of a layer lies in; None is 1, dense layers.
      positions: number of windows of a layer; None is 1, dense layers.
      radius: the bound holds at all points within this distance in weight space.
      smoothness: Lipschitz constant of the gradient of an example's loss by its outputs;
        needed for a positive radius.

    Raises:
      ValueError: on a negative radius, or a positive one without a smoothness.
    """
    _check_radius(radius, smoothness)
    norms, inputs = np.asarray(norms, np.float64), np.asarray(input_norms, np.float64)
    layers = norms.shape[-1]
    spread = np.sqrt(np.ones(layers) if overlaps is None else np.asarray(overlaps, np.float64))
    count = np.sqrt(np.ones(layers) if positions is None else np.asarray(positions, np.float64))
    offsets = None if biases is None else count * np.asarray(biases, np.float64)
    stretch = spread * norms

    def hidden(stretch: np.ndarray, offsets: np.ndarray | None) -> list[np.ndarray]:
        """What the norms of all layers' inputs, and of the outputs, are at most."""
        sizes = [np.broadcast_to(inputs, (*norms.shape[:-1], len(inputs)))]
        for j in range(layers):
            size = stretch[..., j, None] * sizes[-1]
            if offsets is not None:
                size = size + offsets[..., j, None]
            sizes.append((slope if j < layers - 1 else 1.0) * size)
        return sizes

    sizes, slopes = hidden(stretch, offsets), np.asarray(gradient_norms, np.float64)
    if radius > 0:
        stretch = stretch + spread * radius
        offsets = None if offsets is None else offsets + count * radius
        wider = hidden(stretch, offsets)
        slopes = slopes + smoothness * (wider[-1] - sizes[-1])
        sizes = wider
    pairs = np.zeros((*norms.shape, layers))
    for j in range(layers):
        constant = 0.0 if offsets is None else count[j]
        reach = (slopes * np.hypot(spread[j] * sizes[j], constant)).mean(axis=-1)
        for k in range(j + 1, layers):
            between = [stretch[..., i] for i in range(j + 1, layers) if i != k]
            after = np.prod(between, axis=0) * slope ** (layers - 1 - j) * spread[k]
            pairs[..., j, k] = pairs[..., k, j] = reach * after
    return _lower_bound(pairs)


def defects(f: Loss, params: PyTree, step_size: float) -> Float[np.ndarray, " points"]:
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
    """
    numbers = flow_arithmetic()
    with numbers.context():
        stack = numbers.cast(params)
        first = jax.tree.map(lambda leaf: leaf[0], stack)
        check_loss(f, first)
        pure, constants = hoist_constants(f, first)

        @jax.jit
        def mean(constants: list[Array], stack: PyTree) -> Array:
            gradient = jax.grad(lambda params: pure(constants, params))

            def one(params: PyTree) -> Array:
                start = gradient(params)

                def at(fraction: Array) -> Array:
                    there = optax.tree.add_scale(params, -step_size * fraction, start)
                    return optax.tree.norm(optax.tree.sub(gradient(there), start))

                measured = jax.lax.map(at, jnp.asarray(FRACTIONS))
                return (measured.sum() - measured[-1] / 2) / len(FRACTIONS)

            return jax.lax.map(one, stack)

        return np.asarray(mean(constants, stack))


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
    integrals = _accumulate(exponents, np.diff(grid) * _first_phi(exponents))
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


def _check_radius(radius: float, smoothness: float) -> None:
    if radius < 0 or (radius > 0 and not smoothness > 0):
        raise ValueError(
            f"radius, smoothness: got {radius} and {smoothness}; accepted are a radius of 0, or a "
            "positive one with a positive smoothness"
        )


def _in_tube(
    norms: ArrayLike, gradient_norm: ArrayLike, radius: float, smoothness: float
) -> tuple[np.ndarray, np.ndarray]:
    """Spectral norms and the gradient's norm, at most, within a radius of the points."""
    _check_radius(radius, smoothness)
    norms, gradient_norm = np.asarray(norms, np.float64), np.asarray(gradient_norm, np.float64)
    widened = norms + radius
    moved = np.prod(widened, axis=-1) - np.prod(norms, axis=-1)
    return widened, gradient_norm + smoothness * moved


def _others(norms: np.ndarray) -> np.ndarray:
    """For every pair of layers the product of all other norms; 0 on the diagonal."""
    layers = norms.shape[-1]
    products = np.zeros((*norms.shape, layers))
    for j in range(layers):
        for k in range(j + 1, layers):
            product = np.prod(np.delete(norms, (j, k), axis=-1), axis=-1)
            products[..., j, k] = products[..., k, j] = product
    return products


def _lower_bound(pairs: np.ndarray) -> LowerBound:
    layers = pairs.shape[-1]
    theorem = -(layers - 1) * pairs.max(axis=(-2, -1))
    return LowerBound(theorem, np.maximum(theorem, -np.linalg.eigvalsh(pairs)[..., -1]))


def _first_phi(x: np.ndarray) -> np.ndarray:
    """∫₀¹ exp(x (1 - u)) du = (exp(x) - 1) / x."""
    return np.where(x == 0, 1.0, np.expm1(x) / np.where(x == 0, 1.0, x))


def _second_phi(x: np.ndarray) -> np.ndarray:
    """∫₀¹ exp(x (1 - u)) u du = (exp(x) - 1 - x) / x², by its series where that cancels."""
    series = 0.5 + x / 6 + x**2 / 24 + x**3 / 120
    return np.where(np.abs(x) > 1e-2, (np.expm1(x) - x) / np.where(x == 0, 1.0, x) ** 2, series)
