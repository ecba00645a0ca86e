"""Convolution and pooling on images whose examples lie along the last axis.

Images are stacks of rows, (rows, channels, columns, examples). A convolution takes windows of
five rows, which are contiguous copies, and multiplies them by a band matrix: the kernel, once
for every one of a few columns of the output. That is about twice the arithmetic of a product
with 5x5 patches, and a fraction of the copies, which cost more.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Windowed = tuple[Float[Array, "rows window examples"], ...]

KERNEL = 5  # rows and columns of every convolution kernel
PADDING = 2  # of images, on every side


def stacked(inputs: Array) -> Float[Array, "rows channels columns examples"]:
    """Inputs (examples, channels, rows, columns) as stacks of rows, in a margin of two zeros."""
    padded = jnp.pad(inputs, ((0, 0), (0, 0), (PADDING, PADDING), (PADDING, PADDING)))
    return padded.transpose(2, 1, 3, 0)


def windows_of(images: Array, *, block: int, stride: int = 1) -> Windowed:
    """Windows of five rows of images (rows, channels, columns, examples), as vectors.

    Args:
      images: the images.
      block: how many columns of the output are computed at once; windows have as many
        columns as that takes.
      stride: of the convolution, along rows and columns.

    Returns:
      For each block of columns an array (rows of the output, window, examples).
    """
    rows, columns = ((images.shape[axis] - KERNEL) // stride + 1 for axis in (0, 2))
    last = stride * (rows - 1) + 1
    windows = []
    for first in range(0, columns, block):
        width = stride * (min(block, columns - first) - 1) + KERNEL
        strip = jax.lax.slice_in_dim(images, stride * first, stride * first + width, axis=2)
        strip = strip.reshape(strip.shape[0], -1, strip.shape[-1])
        taps = [jax.lax.slice_in_dim(strip, i, i + last, stride) for i in range(KERNEL)]
        windows.append(jnp.stack(taps, axis=1).reshape(rows, -1, strip.shape[-1]))
    return tuple(windows)


def convolve(
    layer: dict[str, Array], windows: Windowed, *, stride: int = 1, pool: int = 1
) -> Float[Array, "rows channels columns examples"]:
    """Convolution, maximum over disjoint pool x pool windows, and ReLU."""
    kernel = layer["weight"]
    outputs, inputs = kernel.shape[:2]
    strips = []
    for window in windows:
        width = window.shape[1] // (inputs * KERNEL)
        columns = (width - KERNEL) // stride + 1
        # places[j, x, k] is 1 where tap j of output column x lies on input column k.
        taps = stride * np.arange(columns) + np.arange(KERNEL)[:, None]
        places = (taps[..., None] == np.arange(width)).astype(kernel.dtype)
        band = jnp.einsum("ocij,jxk->oxick", kernel, places)
        # Columns that are pooled lie in stacks of their own.
        band = band.reshape(outputs, columns // pool, pool, -1).transpose(2, 0, 1, 3)
        band = band.reshape(outputs * columns, -1)
        # One product per row, in place: a single one would transpose the windows first.
        bands = jnp.broadcast_to(band, (window.shape[0], *band.shape))
        strip = jnp.matmul(bands, window)
        strip = strip.reshape(-1, pool * pool, outputs, columns // pool, strip.shape[-1])
        strips.append(functools.reduce(jnp.maximum, jnp.unstack(strip, axis=1)))
    images = jnp.concatenate(strips, axis=2)
    if "bias" in layer:
        images = images + layer["bias"][:, None, None]
    return jax.nn.relu(images)


def flatten(images: Array) -> Float[Array, "features examples"]:
    """Images as vectors: channel first, then row, then column."""
    return images.swapaxes(0, 1).reshape(-1, images.shape[-1])
