"""Lower bounds on the smallest eigenvalue of the Hessian of a network's loss.

A second derivative of the loss of a network along a direction (D_1, ..., D_n) of its weights is
that of a convex function of its outputs, which is not negative, and for every pair j < k of
layers twice the derivative of the loss by the outputs, applied to W_n ... D_k ... D_j ... W_1.
That is at most twice ‖D_j‖ ‖D_k‖ M_jk, with M_jk the product of what the layers besides j and k
can stretch. So the smallest eigenvalue is at least minus the largest one of the symmetric
matrix M with zeros on its diagonal, and that is at least -(n - 1) max M_jk, which is
what the theorems state.

Source: Elkabetz & Cohen, NeurIPS 2021.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Float


class LowerBound(NamedTuple):
    """Lower bounds on the smallest eigenvalue of the Hessian, at stacked points.

    Attributes:
      theorem: as the theorem states it, -(n - 1) max M_jk for n layers.
      sharpened: minus the largest eigenvalue of M; never below the theorem's.

    Example:
      >>> bound = gf_jax.theory.linear_network_bound([1.0, 2.0, 1.0], 0.5)
      >>> bound.theorem, bound.sharpened.round(3)
      (np.float64(-2.0), np.float64(-1.366))
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

    It holds everywhere for a network of dense layers without biases and without activations,
    under the mean over examples of any loss that is convex in the outputs: cross-entropy as
    well as squared loss. Per example these have a gradient with Lipschitz constant ½ and 1;
    times ‖X‖² / N, with X the N inputs and ‖·‖ the spectral norm, it is φ's ``smoothness``.

    Args:
      norms: spectral norms of the weights, from the first layer to the last.
      gradient_norm: Frobenius norm of the gradient of φ at the product.
      radius: the bound holds at all points within this distance in weight space.
      smoothness: Lipschitz constant of the gradient of φ; needed for a positive radius.

    Raises:
      ValueError: on a negative radius, or a positive one without a smoothness.

    Example:
      >>> gf_jax.theory.linear_network_bound([1.0, 2.0, 1.0], 0.5).theorem
      np.float64(-2.0)
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

    Example:
      >>> gf_jax.theory.linear_network_smoothness([1.0, 2.0, 1.0], 0.5, smoothness=1.0).round(3)
      np.float64(10.366)
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

    The activation is σ(z) = a min(z, 0) + b max(z, 0), such as ReLU; for tanh, GELU or SiLU
    the bound may fail, as it may with connections past layers. It holds where f is
    differentiable, the mean over examples of any loss that is convex in the outputs:
    cross-entropy as well as squared loss. The theorem is for fully connected networks without
    biases; with ``biases``, ``overlaps`` and ``positions`` it is extended to biases (weights of a
    constant input) and to convolutions: one stretches by at most √overlap times
    the spectral norm of its kernel matrix, and so does the convolution by a direction.
    Max-pooling over disjoint windows stretches nothing.

    Args:
      norms: spectral norms of the weights as matrices (outputs, inputs or taps).
      input_norms: Euclidean norm of every example.
      gradient_norms: norm of the gradient of every example's loss by its outputs.
      slope: largest absolute slope of the activation, max(|a|, |b|).
      biases: Euclidean norms of the biases, zero for a layer without; None if none has.
      overlaps: most windows that one input of a layer lies in; None is 1, dense layers.
      positions: number of windows of a layer; None is 1, dense layers.
      radius: the bound holds at all points within this distance in weight space.
      smoothness: Lipschitz constant of the gradient of an example's loss by its outputs, ½
        for the cross-entropy and 1 for half the squared distance; needed for a positive
        radius.

    Raises:
      ValueError: on a negative radius, or a positive one without a smoothness.

    Example:
      >>> gf_jax.theory.homogeneous_network_bound([1.0, 2.0], [1.0, 3.0], [0.5, 0.5]).theorem
      np.float64(-1.0)
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
