"""The networks of the paper, as pure functions of parameter pytrees.

A network is described by the shapes of its parameters and two functions:
``prepare`` turns inputs into the layout the arithmetic wants and depends on the
data alone, so that it is done once per run; ``forward`` maps parameters and
prepared inputs to logits. Inside, examples lie along the *last* axis, so that
every product is wide rather than tall, and images are stacks of rows, (rows,
channels, columns, examples). A convolution takes windows of five rows, which are
contiguous copies, and multiplies them by a band matrix: the kernel, once for every
one of a few columns of the output. That is about twice the arithmetic of a product
with 5x5 patches, and a fraction of the copies, which cost more.

Parameters are nested dictionaries ``{layer: {kind: array}}`` with the layers
``conv_1, conv_2, ..., dense_1, dense_2, ...`` and the kinds ``weight`` and
``bias``. Dense weights have shape (outputs, inputs), so that layer j computes
``W_j h``; convolution kernels have shape (outputs, inputs, height, width).
Images are flattened channel first, then row, then column.

Source of the architectures: Elkabetz & Cohen, NeurIPS 2021, section 5 and
LeCun et al. 1998 (LeNet-5).
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Params = dict[str, dict[str, Array]]
Shapes = Mapping[str, Mapping[str, tuple[int, ...]]]
Activation = Callable[[Array], Array]
Windowed = tuple[Float[Array, "rows window examples"], ...]

LEAKY_RELU_SLOPE = 0.01
KERNEL = 5  # rows and columns of every convolution kernel

ACTIVATIONS: dict[str, Activation] = {
    "linear": lambda x: x,
    "relu": jax.nn.relu,
    "leaky_relu": lambda x: jax.nn.leaky_relu(x, LEAKY_RELU_SLOPE),
}


class Windows(NamedTuple):
    """How often a layer uses each weight and each of its inputs.

    Attributes:
      overlap: most windows that one input lies in; 1 for a dense layer.
      positions: number of windows; 1 for a dense layer.
    """

    overlap: int = 1
    positions: int = 1


class Network(NamedTuple):
    """A network as shapes and pure functions.

    Attributes:
      input_shape: shape of one example, (features,) or (channels, height, width).
      shapes: shape of every parameter, ``{layer: {kind: shape}}``, in the order in which
        layers are applied.
      prepare: maps inputs (examples, *input_shape) to the form ``forward`` takes.
      forward: maps (params, prepared inputs) to logits (classes, examples).
      windows: of the convolutional layers, which come first.

    Example:
      >>> network = gf_jax.problems.fully_connected((2, 3, 10))
      >>> params = gf_jax.problems.xavier_uniform(jax.random.key(0), network.shapes)
      >>> network.apply(params, jnp.ones((4, 2))).shape
      (4, 10)
    """

    input_shape: tuple[int, ...]
    shapes: Shapes
    prepare: Callable[[Array], Any]
    forward: Callable[[Params, Any], Array]
    windows: tuple[Windows, ...] = ()

    def apply(
        self, params: Params, inputs: Float[Array, "examples ..."]
    ) -> Float[Array, "examples classes"]:
        """Logits of every example.

        Args:
          params: parameters with the shapes of ``self.shapes``.
          inputs: array of shape (examples, *input_shape).

        Returns:
          Logits of shape (examples, classes).

        Raises:
          ValueError: if ``inputs`` does not have the network's input shape.
        """
        if inputs.shape[1:] != self.input_shape:
            raise ValueError(
                f"inputs: examples of shape {inputs.shape[1:]}; "
                f"this network takes {self.input_shape}"
            )
        return self.forward(params, self.prepare(inputs)).T


def fully_connected(sizes: Sequence[int], activation: str = "linear") -> Network:
    """Fully connected network without biases.

    With the identity as activation the weights are multiplied with each other
    first and with the data once: the same function at a fraction of the work.

    Args:
      sizes: layer sizes from the input to the output, for example
        (784, 50, 50, 10); at least two.
      activation: "linear", "relu" or "leaky_relu" (slope 0.01), applied after
        every layer but the last.

    Raises:
      ValueError: on fewer than two sizes, a size below one, or an unknown
        activation.

    Example:
      >>> gf_jax.problems.fully_connected((784, 50, 10), "relu").shapes
      {'dense_1': {'weight': (50, 784)}, 'dense_2': {'weight': (10, 50)}}
    """
    if len(sizes) < 2 or any(size < 1 for size in sizes):
        raise ValueError(f"sizes: got {tuple(sizes)}; give two or more positive sizes")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: got {activation!r}; accepted {sorted(ACTIVATIONS)}")

    def forward(params: Params, inputs: Array) -> Array:
        if activation == "linear":
            return _product(params) @ inputs
        return _dense_layers(params, inputs, ACTIVATIONS[activation])

    return Network((sizes[0],), _dense_shapes(sizes, bias=False), jnp.transpose, forward)


def conv_adapted() -> Network:
    """The paper's convolutional network: strides of two, no biases, no pooling.

    Zero padding of 2, convolution 5x5 to 6 channels with stride 2, convolution
    5x5 to 16 channels with stride 2, dense 400-120-84-10; ReLU after every layer
    but the last. Inputs have shape (examples, 1, 28, 28).

    Example:
      >>> gf_jax.problems.conv_adapted().shapes["conv_2"]
      {'weight': (16, 6, 5, 5)}
    """

    def prepare(inputs: Array) -> Windowed:
        return _windows(_images(inputs), block=4, stride=2)

    def forward(params: Params, windows: Windowed) -> Array:
        hidden = _convolve(params["conv_1"], windows, stride=2)
        hidden = _convolve(params["conv_2"], _windows(hidden, block=3, stride=2), stride=2)
        return _dense_layers(params, _flatten(hidden), jax.nn.relu)

    windows = (Windows(9, 14 * 14), Windows(9, 5 * 5))
    return Network((1, 28, 28), _convolutional_shapes(bias=False), prepare, forward, windows)


def lenet5() -> Network:
    """LeNet-5 with ReLU and max-pooling, biases everywhere.

    Zero padding of 2, convolution 5x5 to 6 channels, max-pool 2, convolution 5x5
    to 16 channels, max-pool 2, dense 400-120-84-10; ReLU after every layer but
    the last. Inputs have shape (examples, 1, 28, 28).

    Example:
      >>> gf_jax.problems.lenet5().shapes["conv_2"]
      {'weight': (16, 6, 5, 5), 'bias': (16,)}
    """

    def prepare(inputs: Array) -> Windowed:
        return _windows(_images(inputs), block=8)

    def forward(params: Params, windows: Windowed) -> Array:
        # The maximum commutes with ReLU; pooling first leaves a quarter of the work.
        hidden = _convolve(params["conv_1"], windows, pool=2)
        hidden = _convolve(params["conv_2"], _windows(hidden, block=4), pool=2)
        return _dense_layers(params, _flatten(hidden), jax.nn.relu)

    windows = (Windows(25, 28 * 28), Windows(25, 10 * 10))
    return Network((1, 28, 28), _convolutional_shapes(bias=True), prepare, forward, windows)


class LayerNorms(NamedTuple):
    """What bounds on a network's Hessian need of its layers, in the order of application.

    Attributes:
      norms: spectral norms of the weights as matrices (outputs, inputs or taps).
      biases: Euclidean norms of the biases; None if no layer has one.
      overlaps: most windows that one input of the layer lies in.
      positions: number of windows of the layer.

    Example:
      >>> network = gf_jax.problems.fully_connected((2, 3, 10))
      >>> params = gf_jax.problems.xavier_uniform(jax.random.key(0), network.shapes)
      >>> points = jax.tree.map(lambda leaf: leaf[None], params)
      >>> gf_jax.problems.layer_norms(network, points).overlaps
      array([1., 1.])
    """

    norms: Float[np.ndarray, "points layers"]
    biases: Float[np.ndarray, "points layers"] | None
    overlaps: Float[np.ndarray, " layers"]
    positions: Float[np.ndarray, " layers"]


def layer_norms(network: Network, params: Params) -> LayerNorms:
    """Norms of all layers at stacked points, leaves of shape (points, ...).

    Example:
      >>> network = gf_jax.problems.fully_connected((2, 3, 10))
      >>> params = gf_jax.problems.xavier_uniform(jax.random.key(0), network.shapes)
      >>> points = jax.tree.map(lambda leaf: leaf[None], params)
      >>> gf_jax.problems.layer_norms(network, points).norms.shape
      (1, 2)
    """
    layers = [params[name] for name in network.shapes]
    weights = [np.asarray(layer["weight"], np.float64) for layer in layers]
    matrices = [weight.reshape(*weight.shape[:2], -1) for weight in weights]
    biases = [np.asarray(layer["bias"], np.float64) for layer in layers if "bias" in layer]
    windows = (*network.windows, *[Windows()] * (len(layers) - len(network.windows)))
    return LayerNorms(
        norms=np.stack([np.linalg.norm(m, 2, axis=(1, 2)) for m in matrices], axis=1),
        biases=np.stack([np.linalg.norm(b, axis=1) for b in biases], axis=1) if biases else None,
        overlaps=np.array([layer.overlap for layer in windows], np.float64),
        positions=np.array([layer.positions for layer in windows], np.float64),
    )


def _dense_shapes(sizes: Sequence[int], *, bias: bool) -> dict[str, dict[str, tuple[int, ...]]]:
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for layer, (inputs, outputs) in enumerate(itertools.pairwise(sizes), start=1):
        shapes[f"dense_{layer}"] = {"weight": (outputs, inputs)}
        if bias:
            shapes[f"dense_{layer}"]["bias"] = (outputs,)
    return shapes


def _convolutional_shapes(*, bias: bool) -> Shapes:
    shapes: dict[str, dict[str, tuple[int, ...]]] = {
        "conv_1": {"weight": (6, 1, 5, 5)},
        "conv_2": {"weight": (16, 6, 5, 5)},
    }
    if bias:
        shapes["conv_1"]["bias"] = (6,)
        shapes["conv_2"]["bias"] = (16,)
    return shapes | _dense_shapes((400, 120, 84, 10), bias=bias)


def _dense_in_order(params: Params) -> list[dict[str, Array]]:
    """The dense layers in order (a pytree's own order puts dense_10 before dense_2)."""
    return [params[f"dense_{j + 1}"] for j in range(sum(k.startswith("dense_") for k in params))]


def _product(params: Params) -> Array:
    """End-to-end matrix W_n ... W_1, multiplied from the narrow output side."""
    weights = [layer["weight"] for layer in _dense_in_order(params)]
    product = weights[-1]
    for weight in reversed(weights[:-1]):
        product = product @ weight
    return product


def _dense_layers(params: Params, hidden: Array, activation: Activation) -> Array:
    *inner, last = _dense_in_order(params)
    for layer in inner:
        hidden = activation(_affine(layer, layer["weight"] @ hidden))
    return _affine(last, last["weight"] @ hidden)


def _affine(layer: dict[str, Array], outputs: Array) -> Array:
    """Adds the layer's bias, if it has one, along the first axis."""
    if "bias" not in layer:
        return outputs
    return outputs + layer["bias"].reshape(-1, *(1,) * (outputs.ndim - 1))


def _images(inputs: Array) -> Float[Array, "rows channels columns examples"]:
    """Inputs (examples, channels, rows, columns) as stacks of rows, in a margin of two zeros."""
    padded = jnp.pad(inputs, ((0, 0), (0, 0), (2, 2), (2, 2)))
    return padded.transpose(2, 1, 3, 0)


def _windows(images: Array, *, block: int, stride: int = 1) -> Windowed:
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


def _convolve(
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


def _flatten(images: Array) -> Float[Array, "features examples"]:
    """Images as vectors: channel first, then row, then column."""
    return images.swapaxes(0, 1).reshape(-1, images.shape[-1])
