"""What edge can be told, and the iterations at which it compares."""

import dataclasses

import numpy as np

from experiments.cli.options import option
from experiments.process.mistakes import UsageError
from experiments.studies import groups
from gf_jax.descent.schedule import Schedule
from gf_jax.flow.central.scaling import check_scaling
from gf_jax.problems.activations import ACTIVATIONS

FIRST_STEPS = 10  # base iterations in which what an optimiser remembers becomes that of gradients


def _even(window: int) -> str:
    return "" if window >= 4 and window % 2 == 0 else "accepted is an even integer from 4 on"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(groups.Arithmetic, groups.Optimizers, groups.Ratios):
    """What the experiment can be told."""

    # So that sharpness rises to the edge and stays, on digits as on MNIST.
    step_size: float = 0.16
    iterations: int = 1_500
    ratios: tuple[int, ...] = groups.ratios_option((2,))
    activation: str = "tanh"
    loss: str = "squared"
    widths: tuple[int, ...] = (20, 20)
    init_scale: float = 0.3
    window: int = option(
        "Iterations over which a run is averaged, with every step size.",
        50,
        "Results",
        accepted=_even,
    )
    corrected: bool = option(
        "The central flow has the first order of descent's deviation; without, it is as published.",
        True,
        "What to run",
    )

    @property
    def compared(self) -> np.ndarray:
        """Base iterations at which runs and flows are compared, the middles of their windows."""
        half = self.window // 2
        return np.arange(1, (self.iterations - half) // half + 1) * half

    @property
    def times(self) -> np.ndarray:
        """Their times."""
        return self.compared * self.step_size

    @property
    def runs_named(self) -> str:
        """What outputs call the runs."""
        return self.optimizer_name or "descent"

    @property
    def arithmetics(self) -> tuple[str, ...]:
        """None is checked: one run after another descends, in windows."""
        return ()

    def first_steps(self, ratio: int) -> int:
        """Steps that the runs with a ratio make before their central flow begins."""
        if self.chosen_optimizer is None:
            return 0
        return min(FIRST_STEPS, self.window // 2) * ratio

    def schedule_of(self, ratio: int) -> Schedule:
        """The steps of the run with a ratio: whole windows are kept."""
        middles, half = self.compared * ratio, self.window // 2
        kept = np.unique(middles[:, None] + np.arange(-half, half + 1))
        kept = kept[kept > 0]  # the start is known
        return Schedule(self.step_size / ratio, (), int(kept[-1]), tuple(kept.tolist()))

    def check(self) -> None:
        """Raises UsageError where there is no central flow, or no window."""
        super().check()
        if not self.smooth:
            smooth = [name for name, each in ACTIVATIONS.items() if each.smooth]
            raise UsageError(
                "--experiment=edge: the network has kinks, whose third derivatives vanish, so that "
                "no central flow is known of it; accepted is --network=fully_connected "
                f"--activation={' or '.join(smooth)}"
            )
        if self.chosen_optimizer is not None:
            try:
                check_scaling(self.chosen_optimizer, self.step_size)
            except ValueError as error:
                raise UsageError(f"{self.method_given}: {error}") from None
            if self.step_size == Options.step_size:
                raise UsageError(
                    f"{self.method_given}: the default step sizes are those of descent, and far "
                    "past other edges; give --step_sizes, such as --step_sizes=0.002,0.001"
                )
        if self.iterations < self.window:
            raise UsageError(
                f"--iterations={self.iterations}: fewer than --window={self.window}; accepted are "
                "at least as many"
            )
