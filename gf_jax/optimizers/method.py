"""Which method of descent a run follows: plain or with momentum, on all examples or batches."""

import dataclasses

from gf_jax.optimizers.momentum import Momentum, heavy_ball
from gf_jax.optimizers.momentum import nesterov as nesterov_momentum


@dataclasses.dataclass(frozen=True)
class Method:
    """How a step is made of gradients.

    Attributes:
      momentum: the decay β of past gradients, from 0 to below 1; 0 is plain descent.
      nesterov: whether momentum is Nesterov's; else it is heavy ball.
      batch_size: examples whose gradient a step follows; 0 is all of them.

    Raises:
      ValueError: on any other value, with one line that names the field.
    """

    momentum: float = 0.0
    nesterov: bool = False
    batch_size: int = 0

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
        """The momentum, with what is known of its limit; None for plain descent."""
        if not self.momentum:
            return None
        return (nesterov_momentum if self.nesterov else heavy_ball)(self.momentum)

    @property
    def time_scale(self) -> float:
        """Time per iteration over the step size."""
        return 1.0 if self.optimizer is None else self.optimizer.time_scale

    @property
    def words(self) -> str:
        """What outputs add to what is trained, or to how; nothing for plain full-batch descent."""
        kind = "Nesterov" if self.nesterov else "heavy-ball"
        momentum = f", {kind} momentum β = {self.momentum:g}" if self.momentum else ""
        return momentum + (f", batches of {self.batch_size:,}" if self.batch_size else "")
