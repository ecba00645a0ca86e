"""Which method of descent a run follows: plain or with momentum, on all examples or batches."""

import dataclasses
import functools
from typing import Any

from gf_jax.optimizers.momentum import Momentum, heavy_ball, time_scale
from gf_jax.optimizers.momentum import nesterov as nesterov_momentum
from gf_jax.optimizers.steps import check_optimizer


@dataclasses.dataclass(frozen=True)
class Method:
    """How a step is made of gradients.

    Attributes:
      momentum: the decay β of past gradients, from 0 to below 1; 0 is plain descent.
      nesterov: whether momentum is Nesterov's; else it is heavy ball.
      batch_size: examples whose gradient a step follows; 0 is all of them.
      optimizer_name: of an optimiser that was handed in; empty for descent, with or without
        momentum.
      limit: of the optimiser as its step size goes to zero, in words; empty for descent, whose
        limit is gradient flow, and where it is not known.

    Raises:
      ValueError: on any other value, with one line that names the field.
    """

    momentum: float = 0.0
    nesterov: bool = False
    batch_size: int = 0
    optimizer_name: str = ""
    limit: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise ValueError(
                f"momentum: got {self.momentum:g}; accepted is a number from 0 to below 1"
            )
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: is a kind of momentum; give a momentum too, or drop it")
        if self.batch_size < 0:
            raise ValueError(f"batch_size: got {self.batch_size}; accepted is a positive integer")

    @property
    def optimizer(self) -> Momentum | None:
        """The momentum; None for plain descent, and for what was handed in."""
        if not self.momentum:
            return None
        return (nesterov_momentum if self.nesterov else heavy_ball)(self.momentum)

    @property
    def time_scale(self) -> float:
        """Time per iteration over the step size."""
        return time_scale(self.optimizer)

    @property
    def flow_name(self) -> str:
        """What runs follow."""
        return "continuous limit" if self.optimizer_name else "gradient flow"

    @property
    def words(self) -> str:
        """What outputs add to what is trained, or to how; nothing for plain full-batch descent."""
        kind = "Nesterov" if self.nesterov else "heavy-ball"
        name = f", {self.optimizer_name}" if self.optimizer_name else ""
        momentum = f", {kind} momentum β = {self.momentum:g}" if self.momentum else ""
        return name + momentum + (f", batches of {self.batch_size:,}" if self.batch_size else "")


def method_of(momentum: float, nesterov: bool, optimizer: Any) -> Method:
    """The method of a momentum, or of an optimiser that is handed in.

    Raises:
      ValueError: on both together, or if either is none.
    """
    if optimizer is None:
        return Method(momentum, nesterov)
    check_optimizer(optimizer)
    if momentum or nesterov:
        raise ValueError("momentum: an optimizer has its own; drop one of the two")
    if isinstance(optimizer, Momentum):
        return Method(optimizer.decay, optimizer.is_nesterov and optimizer.decay > 0)
    return Method(optimizer_name=name_of(optimizer))


def name_of(optimizer: Any) -> str:
    """What outputs call an optimiser: the name of its function, and the options it was given."""
    if isinstance(optimizer, functools.partial):
        options = ", ".join(f"{key}={value}" for key, value in optimizer.keywords.items())
        return f"{name_of(optimizer.func)} with {options}" if options else name_of(optimizer.func)
    name = getattr(optimizer, "__name__", type(optimizer).__name__)
    return "an optimiser of its own" if name == "<lambda>" else str(name)
