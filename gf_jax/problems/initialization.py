"""Random starting points, drawn from shapes alone, and balanced ones of linear networks."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gf_jax.problems.networks import Params, Shapes

Distribution = Callable[[Array, tuple[int, int]], Array]


def xavier_uniform(key: Array, shapes: Shapes, *, scale: float = 1.0) -> Params:
    """Xavier (Glorot) uniform weights and zero biases, times an overall scale.

    A weight is uniform on [-a, a] with a = sqrt(6 / (fan_in + fan_out)); for a
    convolution kernel both fans include its 25 taps.

    Args:
      key: JAX random key.
      shapes: ``{layer: {kind: shape}}``, weights as (outputs, inputs, ...).
      scale: factor on every parameter; below one starts nearer to zero.

    Source: Glorot & Bengio, AISTATS 2010, equation 16.

    Example:
      >>> network = gf_jax.problems.fully_connected((2, 3, 10))
      >>> params = gf_jax.problems.xavier_uniform(jax.random.key(0), network.shapes)
      >>> params["dense_1"]["weight"].shape
      (3, 2)
    """
    draw = jax.nn.initializers.glorot_uniform(in_axis=1, out_axis=0)
    keys = iter(jax.random.split(key, len(shapes)))
    return {
        layer: {
            kind: scale * draw(layer_key, shape, jnp.float32)
            if kind == "weight"
            else jnp.zeros(shape, jnp.float32)
            for kind, shape in kinds.items()
        }
        for layer_key, (layer, kinds) in zip(keys, shapes.items(), strict=True)
    }


def balanced(matrix: Float[Array, "outputs inputs"], sizes: Sequence[int]) -> Params:
    """Balanced weights of a linear network whose product is a given matrix.

    With the singular value decomposition A = U Σ Vᵀ, W_n is U Σ^(1/n), W_1 is Σ^(1/n) Vᵀ
    and every layer between them Σ^(1/n), all padded with zeros. So W_n ... W_1 = A, and
    W_{j+1}ᵀ W_{j+1} = W_j W_jᵀ for every j.

    Args:
      matrix: A, of rank at most min(sizes). Singular values below 10 max(outputs, inputs)
        ulps of the largest are rounding, and count as zero.
      sizes: layer sizes d_0, ..., d_n from the inputs to the outputs, at least two.

    Returns:
      ``{dense_j: {weight: (d_j, d_{j-1})}}`` for j = 1, ..., n, in the matrix's precision.
      Where sizes leave no room for all singular values, the smallest, which are zero, go.

    Raises:
      ValueError: on sizes or a shape that are not accepted, and on a matrix that is not
        finite or of too high a rank. Under ``jax.vmap`` and ``jax.jit`` values are not known
        and not checked.

    Source: Elkabetz & Cohen, NeurIPS 2021, procedure 1, steps (ii) and (iii).

    Example:
      >>> start = gf_jax.problems.balanced(jnp.array([[3.0, 4.0]]), (2, 2, 1))
      >>> start["dense_1"]["weight"].shape, start["dense_2"]["weight"].shape
      ((2, 2), (1, 2))
    """
    matrix = jnp.asarray(matrix)
    shape = _matrix_shape(sizes)
    if matrix.shape != shape:
        raise ValueError(f"matrix: shape {matrix.shape}; layer sizes {tuple(sizes)} take {shape}")
    u, values, vt = jnp.linalg.svd(matrix, full_matrices=False)
    if not isinstance(values, jax.core.Tracer):
        _check_rank(values, shape, sizes)
    return _balance(u, values, vt, sizes)


def gaussian(key: Array, shape: tuple[int, int]) -> Array:
    """A matrix of independent Gaussian entries, whose expected squared norm is one."""
    return jax.random.normal(key, shape) / jnp.sqrt(shape[0] * shape[1])


def random_balanced(
    key: Array, sizes: Sequence[int], *, scale: float = 1.0, distribution: Distribution = gaussian
) -> Params:
    """Random balanced start of a linear network.

    Args:
      key: JAX random key.
      sizes: layer sizes d_0, ..., d_n from the inputs to the outputs, at least two.
      scale: factor on the end-to-end matrix, whose Frobenius norm it is, about; near zero
        for a small one.
      distribution: maps a key and a shape (d_n, d_0) to a matrix, Gaussian by default. Of
        what it draws the nearest matrix of rank min(sizes) is taken: the matrix itself,
        unless a hidden layer is narrower than both inputs and outputs.

    Returns:
      As ``balanced``; float64 where that is enabled, if the distribution draws it. May be
      mapped over keys by ``jax.vmap``.

    Raises:
      ValueError: on sizes that are not accepted.

    Source: Elkabetz & Cohen, NeurIPS 2021, procedure 1.

    Example:
      >>> start = gf_jax.problems.random_balanced(jax.random.key(0), (5, 2, 1), scale=0.01)
      >>> gf_jax.theory.end_to_end(start).shape
      (1, 5)
    """
    matrix = scale * distribution(key, _matrix_shape(sizes))
    u, values, vt = jnp.linalg.svd(matrix, full_matrices=False)
    return _balance(u, values, vt, sizes)


def _balance(u: Array, values: Array, vt: Array, sizes: Sequence[int]) -> Params:
    """Step (iii) for the leading singular values, as many as the narrowest layer has units."""
    depth, rank = len(sizes) - 1, min(sizes)
    roots = jnp.diag(values[:rank] ** (1 / depth))
    blocks = [roots] * depth
    blocks[0] = roots @ vt[:rank]
    blocks[-1] = u[:, :rank] @ blocks[-1]  # with a single layer, the matrix itself
    return {
        f"dense_{j + 1}": {
            "weight": jnp.pad(
                block, ((0, sizes[j + 1] - block.shape[0]), (0, sizes[j] - block.shape[1]))
            )
        }
        for j, block in enumerate(blocks)
    }


def _matrix_shape(sizes: Sequence[int]) -> tuple[int, int]:
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(f"sizes: got {tuple(sizes)}; accepted are two or more positive integers")
    return sizes[-1], sizes[0]


def _check_rank(values: Array, shape: tuple[int, int], sizes: Sequence[int]) -> None:
    if not jnp.isfinite(values).all():
        raise ValueError("matrix: has entries that are not finite")
    # A computed singular value errs by a few ulps of the largest; numpy counts ranks likewise.
    floor = 10 * max(shape) * np.finfo(values.dtype).eps * values[0]
    rank = int((values > floor).sum())
    if rank > min(sizes):
        raise ValueError(
            f"matrix: is of rank {rank}; layer sizes {tuple(sizes)} take up to {min(sizes)}"
        )
