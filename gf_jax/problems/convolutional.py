"""The paper's convolutional networks.

Source of the architectures: Elkabetz & Cohen, NeurIPS 2021, section 5 and LeCun et al. 1998
(LeNet-5).
"""

import jax
from jaxtyping import Array

from gf_jax.problems.convolution import (
    KERNEL,
    PADDING,
    Windowed,
    convolve,
    flatten,
    stacked,
    windows_of,
)
from gf_jax.problems.networks import (
    Network,
    Params,
    Shapes,
    Structure,
    Windows,
    dense_layers,
    dense_shapes,
)


def conv_adapted(input_shape: tuple[int, int, int] = (1, 28, 28), classes: int = 10) -> Network:
    """The paper's convolutional network: strides of two, no biases, no pooling.

    Zero padding of 2, convolution 5x5 to 6 channels with stride 2, convolution
    5x5 to 16 channels with stride 2, dense 400-120-84-10; ReLU after every layer
    but the last.

    Args:
      input_shape: (channels, height, width) of an example; the paper's by default. Other
        sizes of images change the 400.
      classes: number of outputs.

    Raises:
      ValueError: on images that are too small.

    Example:
      >>> gf_jax.problems.conv_adapted().shapes["conv_2"]
      {'weight': (16, 6, 5, 5)}
    """

    def prepare(inputs: Array) -> Windowed:
        return windows_of(stacked(inputs), block=4, stride=2)

    def forward(params: Params, windows: Windowed) -> Array:
        hidden = convolve(params["conv_1"], windows, stride=2)
        hidden = convolve(params["conv_2"], windows_of(hidden, block=3, stride=2), stride=2)
        return dense_layers(params, flatten(hidden), jax.nn.relu)

    maps = _maps(input_shape, least=9, stride=2)
    return Network(
        input_shape=input_shape,
        classes=classes,
        shapes=_convolutional_shapes(input_shape[0], maps[1], classes, bias=False),
        prepare=prepare,
        forward=forward,
        structure=Structure.HOMOGENEOUS,
        # Along rows as along columns an input lies in at most three windows.
        windows=(Windows(9, maps[0][0] * maps[0][1]), Windows(9, maps[1][0] * maps[1][1])),
    )


def lenet5(input_shape: tuple[int, int, int] = (1, 28, 28), classes: int = 10) -> Network:
    """LeNet-5 with ReLU and max-pooling, biases everywhere.

    Zero padding of 2, convolution 5x5 to 6 channels, max-pool 2, convolution 5x5
    to 16 channels, max-pool 2, dense 400-120-84-10; ReLU after every layer but
    the last.

    Args:
      input_shape: (channels, height, width) of an example, height and width multiples of
        four. Sizes other than 28 change the 400.
      classes: number of outputs.

    Raises:
      ValueError: on images that are too small, or that pooling does not divide.

    Example:
      >>> gf_jax.problems.lenet5().shapes["conv_2"]
      {'weight': (16, 6, 5, 5), 'bias': (16,)}
    """

    def prepare(inputs: Array) -> Windowed:
        return windows_of(stacked(inputs), block=8)

    def forward(params: Params, windows: Windowed) -> Array:
        # The maximum commutes with ReLU; pooling first leaves a quarter of the work.
        hidden = convolve(params["conv_1"], windows, pool=2)
        hidden = convolve(params["conv_2"], windows_of(hidden, block=4), pool=2)
        return dense_layers(params, flatten(hidden), jax.nn.relu)

    maps = _maps(input_shape, least=12, pool=2)
    pooled = (maps[1][0] // 2, maps[1][1] // 2)
    return Network(
        input_shape=input_shape,
        classes=classes,
        shapes=_convolutional_shapes(input_shape[0], pooled, classes, bias=True),
        prepare=prepare,
        forward=forward,
        structure=Structure.HOMOGENEOUS,
        windows=(Windows(25, maps[0][0] * maps[0][1]), Windows(25, maps[1][0] * maps[1][1])),
    )


def _maps(
    input_shape: tuple[int, int, int], *, least: int, stride: int = 1, pool: int = 1
) -> list[tuple[int, int]]:
    """Rows and columns of both convolutions' outputs, before pooling.

    Raises:
      ValueError: if an image has less rows or columns than the least, or pooling does not
        divide them.
    """
    _, *sides = input_shape
    if min(sides) < least or any(side % pool**2 for side in sides):
        multiples = f", multiples of {pool**2}" if pool > 1 else ""
        raise ValueError(
            f"input_shape: got {input_shape}; accepted are (channels, height, width) with height "
            f"and width from {least} on{multiples}"
        )
    first = [(side + 2 * PADDING - KERNEL) // stride + 1 for side in sides]
    second = [(side // pool - KERNEL) // stride + 1 for side in first]
    return [(first[0], first[1]), (second[0], second[1])]


def _convolutional_shapes(
    channels: int, last_map: tuple[int, int], classes: int, *, bias: bool
) -> Shapes:
    shapes: dict[str, dict[str, tuple[int, ...]]] = {
        "conv_1": {"weight": (6, channels, KERNEL, KERNEL)},
        "conv_2": {"weight": (16, 6, KERNEL, KERNEL)},
    }
    if bias:
        shapes["conv_1"]["bias"] = (6,)
        shapes["conv_2"]["bias"] = (16,)
    features = 16 * last_map[0] * last_map[1]
    return shapes | dense_shapes((features, 120, 84, classes), bias=bias)
