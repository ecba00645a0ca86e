"""What a loss is: a function of the outputs of a network, and what theorems ask of it."""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array


class OutputLoss(NamedTuple):
    """The loss of an example as a function of the network's outputs for it.

    The training loss is its mean over all examples.

    Attributes:
      of_outputs: maps outputs (classes, examples) and the class of every example, an
        integer from 0, to the losses (examples,).
      label: what outputs call it.
      unit: what it is measured in.
      meaning: what help tells of it.
      convex: whether it is convex in the outputs.
      smoothness: Lipschitz constant of its gradient by the outputs, Euclidean norms: a bound
        on the spectral norm of its Hessian. Infinite where there is none.
    """

    of_outputs: Callable[[Array, Array], Array]
    label: str
    unit: str
    meaning: str
    convex: bool
    smoothness: float
