"""What large_steps can be told, and the step sizes that follow from an edge of stability."""

import dataclasses
import math
from typing import Self

from experiments.cli.options import option
from experiments.process.mistakes import UsageError
from experiments.studies import groups
from gf_jax.problems.activations import ACTIVATIONS

MOST_DOUBLINGS = 30  # ratios are integers of 32 bits
BEYOND = 2.0  # the sweep ends at the first step size this many times the edge


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(groups.Arithmetic, groups.Momentum, groups.Segments, groups.StepSizes):
    """What the experiment can be told."""

    step_size: float = option(
        "The smallest, from which on it is doubled.", 0.001, "Step sizes and time"
    )

    @property
    def flow_runs(self) -> int:
        """As many trajectories as the flow is, or with an optimiser what is predicted."""
        return 1 if self.chosen_optimizer is None else self.prediction_runs()

    @property
    def settled(self) -> bool:
        """Whether step sizes were given, or are found."""
        return self.step_sizes is not None

    @property
    def runs_named(self) -> str:
        """What outputs call the runs."""
        momentum = " with momentum" if self.momentum else ""
        return self.optimizer_name or f"descent{momentum}"

    @property
    def limit_named(self) -> str:
        """What outputs call that which they follow."""
        return self.method.flow_name

    @property
    def edge_where(self) -> str:
        """Where the edge of stability is taken, in words."""
        return "at the start" if self.chosen_optimizer is None else "along the limit"

    def check(self) -> None:
        """Raises UsageError on an optimiser of a loss with kinks."""
        super().check()
        if not self.predicts:
            smooth = [name for name, each in ACTIVATIONS.items() if each.smooth]
            raise UsageError(
                f"{self.method_given}: its modified flow is known of losses without kinks; "
                f"accepted is --activation={' or '.join(smooth)}"
            )

    def doubled(self, doublings: int) -> Self:
        """With step sizes from the smallest on, doubled so many times, in the same time."""
        usual = type(self).of(iterations=self.iterations)
        # What was not asked for is as many as there then are.
        kept = ("snapshots", "segments")
        free = {name: None for name in kept if getattr(self, name) == getattr(usual, name)}
        changed = free | {
            "step_size": None,
            "step_sizes": tuple(self.step_size * 2**n for n in range(doublings + 1)),
            "iterations": max(1, self.iterations // 2**doublings),
        }
        return type(self).of(**self.values() | changed)

    def doublings_past(self, edge: float) -> int:
        """How often the smallest step size is doubled until it is well past an edge.

        Raises:
          UsageError: if that is too often.
        """
        doublings = max(1, math.ceil(math.log2(BEYOND * edge / self.step_size)))
        if doublings > MOST_DOUBLINGS:
            raise UsageError(
                f"--step_size={self.step_size:g}: the edge of stability {self.edge_where} is "
                f"{edge:.3g}, and accepted is a step size that {MOST_DOUBLINGS} doublings take "
                "past it; give a larger one, or another start"
            )
        return doublings
