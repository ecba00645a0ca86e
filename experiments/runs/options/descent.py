"""Runs of networks, and how their steps are made."""

import dataclasses
from typing import Any

from experiments.cli.options import option, seed
from experiments.problems.options import NETWORK, Network
from experiments.process.mistakes import UsageError
from experiments.runs.options.steps import MACHINE, STEPS, Steps
from experiments.runs.options.storage import Storage
from gf_jax.optimizers.method import Method
from gf_jax.optimizers.named import NAMED, named
from gf_jax.optimizers.steps import Optimizer
from gf_jax.problems.objective import check_batch_size

ARITHMETICS = {
    "compensated": "float32 free of the rounding of updates",
    "float32": "as the paper",
    "float64": "twice as many digits, and dear",
    "tf32": "float32 with a GPU's default products",
}
MOST_SEEDS = 100_000
DESCENT = "descent"


def _devices(text: str) -> str:
    count = text.isdecimal() and len(text) < 10 and int(text) > 0
    accepted = "accepted are auto, none and a positive integer"
    return "" if count or text in ("auto", "none") else accepted


def _some_seeds(count: int) -> str:
    inside = 1 <= count <= MOST_SEEDS
    return "" if inside else f"accepted is a positive integer up to {MOST_SEEDS}"


def seeds(meaning: str, default: int) -> Any:
    """The option of how many starting points there are."""
    return option(meaning, default, NETWORK, accepted=_some_seeds)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkRun(Network, Steps, Storage):
    """A network that descends, or whose flow is followed: what ``harness.begin`` takes."""

    @property
    def flow_runs(self) -> int:
        """As many trajectories in time as the flow and what it predicts amount to; 0 is no flow."""
        return 1

    @property
    def arithmetics(self) -> tuple[str, ...]:
        """Names of those in which it descends; none if it does not."""
        return (self.arithmetic,)

    @property
    def settled(self) -> bool:
        """Whether its step sizes are known before it begins."""
        return True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arithmetic(NetworkRun):
    """How weights are added up."""

    arithmetic: str = option("How weights are added up.", "compensated", STEPS, choices=ARITHMETICS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizers(NetworkRun):
    """Steps of an optimiser."""

    optimizer: str = option(
        "How steps are made of gradients. But for descent the numbers are those of the base run; "
        "averages of smaller steps last as long in time.",
        DESCENT,
        STEPS,
        choices={DESCENT: "with or without momentum"}
        | {name: each.meaning for name, each in NAMED.items()},
    )

    @property
    def method(self) -> Method:
        """How a step is made of gradients."""
        return Method(optimizer_name=self.optimizer_name)

    @property
    def optimizer_name(self) -> str:
        """What outputs call the optimiser; empty for descent."""
        return "" if self.optimizer == DESCENT else NAMED[self.optimizer].title

    @property
    def chosen_optimizer(self) -> Optimizer | None:
        """The optimiser as a function of the step size; None is plain descent."""
        if self.optimizer == DESCENT:
            return self.method.optimizer
        return named(self.optimizer, self.step_size)

    @property
    def method_given(self) -> str:
        """The flag that says how steps are made, where that is not by plain descent."""
        return f"--optimizer={self.optimizer}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Momentum(Optimizers):
    """Steps that remember past gradients."""

    momentum: float = option(
        "Decay β of past gradients, from 0 to below 1: heavy ball, whose time per iteration is "
        "step_size / (1 - β). 0 is plain descent.",
        0.0,
        STEPS,
    )
    nesterov: bool = option("Momentum is Nesterov's instead of heavy ball.", False, STEPS)

    @property
    def method(self) -> Method:
        """How a step is made of gradients."""
        return Method(self.momentum, self.nesterov, optimizer_name=self.optimizer_name)

    @property
    def method_given(self) -> str:
        """The flag that says how steps are made, where that is not by plain descent."""
        return f"--momentum={self.momentum:g}" if self.momentum else super().method_given

    @property
    def predicts(self) -> bool:
        """Whether gaps can be predicted: but for plain descent of a smooth loss."""
        return self.chosen_optimizer is None or self.smooth

    def check(self) -> None:
        """Raises UsageError on a method that is none."""
        super().check()
        if self.momentum and self.optimizer != DESCENT:
            raise UsageError(
                f"--momentum={self.momentum:g}: is of descent, and --optimizer={self.optimizer} "
                "has its own; drop one of the two"
            )
        try:
            _ = self.method
        except ValueError as error:
            raise UsageError(f"--{error}") from None

    def prediction_runs(self) -> int:
        """As many trajectories as a prediction amounts to, or the flow alone."""
        if not self.predicts:
            return 1
        # With kinks each run is predicted on its own, else all by the flow and its deviation.
        return 2 if self.smooth else len(self.all_step_sizes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BesideFlow(Momentum):
    """Runs that are compared with their flow, unless it is left out."""

    flow: bool = option(
        "Compare with gradient flow and with the gaps that it predicts.", True, "What to run"
    )

    @property
    def flow_runs(self) -> int:
        """As many trajectories as the flow and what it predicts amount to; 0 is no flow."""
        return self.prediction_runs() if self.flow else 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batches(Momentum):
    """Steps that follow the gradient of some examples."""

    batch_size: int | None = option(
        "Number of examples whose gradient a step follows, a divisor of examples; all of them "
        "if not given. Batches follow each other in one order, the same for all runs.",
        None,
        STEPS,
    )
    batch_seed: int = option(
        "Seed of the order of the examples in batches.", 0, STEPS, accepted=seed
    )

    @property
    def method(self) -> Method:
        """How a step is made of gradients."""
        batch_size = self.batch_size or 0
        return Method(self.momentum, self.nesterov, batch_size, self.optimizer_name)

    @property
    def order_seed(self) -> int | None:
        """Seed of the order of the examples; None is that of the data."""
        return None if self.batch_size is None else self.batch_seed

    @property
    def predicts(self) -> bool:
        """Whether gaps can be predicted: in batches of a smooth loss."""
        return (self.batch_size is None or self.smooth) and super().predicts

    def check(self) -> None:
        """Raises UsageError on batches that do not divide the examples."""
        super().check()
        try:
            if self.batch_size is not None:
                check_batch_size(self.batch_size, self.examples)
        except ValueError as error:
            raise UsageError(f"--{error}") from None

    def unused(self) -> dict[str, str]:
        """Without batches their order."""
        reason = "orders batches; give --batch_size too, or drop it"
        return super().unused() | ({"batch_seed": reason} if self.batch_size is None else {})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Starts(NetworkRun):
    """Runs from several starting points."""

    seeds: int = seeds("Number of starting points, with seeds from seed on.", 1)
    mesh: str = option(
        "Devices that a run is spread over: all there are, a number of them, or none for a "
        "single one. Starting points are divided among them if they divide evenly, else "
        "examples.",
        "auto",
        MACHINE,
        value="auto|none|N",
        accepted=_devices,
    )

    @property
    def starts_of_seeds(self) -> tuple[int, ...]:
        """Seeds of the starting points, if there are several; else empty."""
        return tuple(range(self.seed, self.seed + self.seeds)) if self.seeds > 1 else ()

    def check(self) -> None:
        """Raises UsageError if weights are read, or seeds run out."""
        super().check()
        if self.seeds > 1 and self.initial_params is not None:
            raise UsageError(
                f"--seeds={self.seeds}: the weights read by --initial_params are a single "
                "start; drop one of the two flags"
            )
        if self.starts_of_seeds and self.starts_of_seeds[-1] >= 2**32:
            raise UsageError(
                f"--seeds={self.seeds}: the last seed, {self.starts_of_seeds[-1]}, is above "
                "2^32 - 1; take a smaller --seed"
            )
