"""What a network is, as pure functions of parameter pytrees, and fully connected ones.

A network is described by the shapes of its parameters and two functions:
``prepare`` turns inputs into the layout the arithmetic wants and depends on the
data alone, so that it is done once per run; ``forward`` maps parameters and
prepared inputs to outputs. Inside, examples lie along the *last* axis, so that
every product is wide rather than tall; of images see ``convolution``.

Parameters are nested dictionaries ``{layer: {kind: array}}`` with the layers
``conv_1, conv_2, ..., dense_1, dense_2, ...`` and the kinds ``weight`` and
``bias``. Dense weights have shape (outputs, inputs), so that layer j computes
``W_j h``; convolution kernels have shape (outputs, inputs, height, width).
Images are flattened channel first, then row, then column.

Source of the architectures: Elkabetz & Cohen, NeurIPS 2021, section 5.
"""

import enum
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from gf_jax.problems.activations import ACTIVATIONS

Params = dict[str, dict[str, Array]]
Shapes = Mapping[str, Mapping[str, tuple[int, ...]]]


class Structure(enum.Enum):
    """What a network is, as far as theorems ask.

    Attributes:
      LINEAR: dense layers without biases and nothing between them, so that its outputs are
        W_n ... W_1 x.
      HOMOGENEOUS: layers one after another, each dense or convolutional, with or without a
        bias. Behind each but the last follows an activation with σ(c z) = c σ(z) for every
        c > 0, and then perhaps max-pooling over windows that do not overlap. So weights times
        c and the bias of layer j times c^j give outputs times c^n.
      OTHER: neither, as with a smooth activation, a connection past a layer, a normalisation.

    Example:
      >>> gf_jax.problems.fully_connected((784, 50, 10), "relu").structure.value
      'homogeneous'
    """

    LINEAR = "linear"
    HOMOGENEOUS = "homogeneous"
    OTHER = "neither linear nor homogeneous"


class Windows(NamedTuple):
    """How often a layer uses each weight and each of its inputs.

    Attributes:
      overlap: most windows that one input lies in; 1 for a dense layer.
      positions: number of windows; 1 for a dense layer.
    """

    overlap: int = 1
    positions: int = 1


class Network(NamedTuple):
    """A network as shapes and pure functions, and what it is.

    Attributes:
      input_shape: shape of one example, (features,) or (channels, height, width).
      classes: number of its outputs.
      shapes: shape of every parameter, ``{layer: {kind: shape}}``, in the order in which
        layers are applied.
      prepare: maps inputs (examples, *input_shape) to the form ``forward`` takes, of which
        the last axis is that of the examples.
      forward: maps (params, prepared inputs) to outputs (classes, examples).
      structure: what it is. Bounds go by it, so it claims nothing unless it is given.
      smooth: whether its outputs have derivatives of every order everywhere.
      slope: largest absolute slope of the activation of a homogeneous network.
      windows: of the convolutional layers, which come first.

    Example:
      >>> network = gf_jax.problems.fully_connected((2, 3, 10))
      >>> params = gf_jax.problems.xavier_uniform(jax.random.key(0), network.shapes)
      >>> network.apply(params, jnp.ones((4, 2))).shape
      (4, 10)
    """

    input_shape: tuple[int, ...]
    classes: int
    shapes: Shapes
    prepare: Callable[[Array], Any]
    forward: Callable[[Params, Any], Array]
    structure: Structure = Structure.OTHER
    smooth: bool = False
    slope: float = 1.0
    windows: tuple[Windows, ...] = ()

    def apply(
        self, params: Params, inputs: Float[Array, "examples ..."]
    ) -> Float[Array, "examples classes"]:
        """Outputs for every example; with the cross-entropy they are logits.

        Args:
          params: parameters with the shapes of ``self.shapes``.
          inputs: array of shape (examples, *input_shape).

        Returns:
          Outputs of shape (examples, classes).

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
      activation: a name in ``activations.ACTIVATIONS``, such as "linear", "relu",
        "leaky_relu" (slope 0.01), "tanh", "gelu" or "silu"; applied after every layer but
        the last.

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
    function, _, slopes, smooth = ACTIVATIONS[activation]
    linear = slopes == (1.0, 1.0)

    def forward(params: Params, inputs: Array) -> Array:
        return _product(params) @ inputs if linear else dense_layers(params, inputs, function)

    homogeneous = Structure.OTHER if slopes is None else Structure.HOMOGENEOUS
    return Network(
        input_shape=(sizes[0],),
        classes=sizes[-1],
        shapes=dense_shapes(sizes, bias=False),
        prepare=jnp.transpose,
        forward=forward,
        structure=Structure.LINEAR if linear else homogeneous,
        smooth=smooth,
        slope=1.0 if slopes is None else max(map(abs, slopes)),
    )


def dense_shapes(sizes: Sequence[int], *, bias: bool) -> dict[str, dict[str, tuple[int, ...]]]:
    """Shapes of the parameters of dense layers of these sizes, from inputs to outputs."""
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for layer, (inputs, outputs) in enumerate(itertools.pairwise(sizes), start=1):
        shapes[f"dense_{layer}"] = {"weight": (outputs, inputs)}
        if bias:
            shapes[f"dense_{layer}"]["bias"] = (outputs,)
    return shapes


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


def dense_layers(params: Params, hidden: Array, activation: Callable[[Array], Array]) -> Array:
    """The dense layers applied to (features, examples), the activation behind all but the last."""
    *inner, last = _dense_in_order(params)
    for layer in inner:
        hidden = activation(_affine(layer, layer["weight"] @ hidden))
    return _affine(last, last["weight"] @ hidden)


def _affine(layer: dict[str, Array], outputs: Array) -> Array:
    """Adds the layer's bias, if it has one, along the first axis."""
    if "bias" not in layer:
        return outputs
    return outputs + layer["bias"].reshape(-1, *(1,) * (outputs.ndim - 1))
