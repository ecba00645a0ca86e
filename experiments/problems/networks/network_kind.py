"""What a network is to the command line: a name, a text, options, and how it is built."""

from collections.abc import Callable
from typing import NamedTuple

from gf_jax.problems.networks import Network


class NetworkKind(NamedTuple):
    """A network, or a family of them, that can be asked for by name.

    Attributes:
      meaning: what help tells of it.
      build: maps the shape of an image, (height, width) or (height, width, channels), the
        number of classes, and the options by name to the network and what outputs call it.
        Raises ValueError on images that it does not take.
      options: names of flags that only some networks have, of which ``build`` takes all but
        coordinates. Who lists coordinates takes vectors of any length, and its first layer,
        dense_1, is linear in them.
      smooth: whether its outputs have no kinks; where activation is an option that tells.
      enlarges: whether images smaller than MNIST's are enlarged to 28x28 for it.
    """

    meaning: str
    build: Callable[..., tuple[Network, str]]
    options: tuple[str, ...] = ()
    smooth: bool = False
    enlarges: bool = False


def channels_first(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(channels, height, width) of an image of shape (height, width[, channels])."""
    height, width, *channels = shape
    return (channels[0] if channels else 1, height, width)
