"""Which steps descent takes, and how they are made."""

import dataclasses
import math
from typing import Any

from experiments.cli.groups.problem import NETWORK, Network
from experiments.cli.groups.storage import Storage
from experiments.cli.options import Options, option, seed
from experiments.cli.usage import in_words
from experiments.process.mistakes import LARGEST, SMALLEST, UsageError
from gf_jax.descent.schedule import MOST_SEGMENTS, MOST_STEPS, Schedule
from gf_jax.optimizers.method import Method
from gf_jax.problems.objective import check_batch_size

STEPS, MACHINE = "Step sizes and time", "Machine"
ARITHMETICS = {
    "compensated": "float32 free of the rounding of updates",
    "float32": "as the paper",
    "float64": "twice as many digits, and dear",
    "tf32": "float32 with a GPU's default products",
}
MOST_SEEDS = 100_000


def ratios_option(default: tuple[int, ...], under: str = STEPS) -> Any:
    """The option of step sizes as integer ratios."""
    return option(
        "Step size of the base run over those of the other runs: positive integers.",
        default,
        under,
    )


def _some_seeds(count: int) -> str:
    inside = 1 <= count <= MOST_SEEDS
    return "" if inside else f"accepted is a positive integer up to {MOST_SEEDS}"


def seeds(meaning: str, default: int) -> Any:
    """The option of how many starting points there are."""
    return option(meaning, default, NETWORK, accepted=_some_seeds)


def _devices(text: str) -> str:
    count = text.isdecimal() and len(text) < 10 and int(text) > 0
    accepted = "accepted are auto, none and a positive integer"
    return "" if count or text in ("auto", "none") else accepted


def _step_sizes(sizes: tuple[float, ...]) -> str:
    if not sizes or not all(math.isfinite(size) and size > 0 for size in sizes):
        return "accepted are positive finite numbers"
    return "" if len(set(sizes)) == len(sizes) else "give every step size once"


def _ratios_of(step_sizes: tuple[float, ...]) -> tuple[int, ...]:
    """Integer ratios of the largest step size to all of them, ascending."""
    largest, listed = max(step_sizes), in_words(step_sizes)
    if not all(largest / step_size < MOST_STEPS for step_size in step_sizes):
        raise UsageError(f"--step_sizes={listed}: accepted are ratios up to {MOST_STEPS}")
    found = [round(largest / step_size) for step_size in step_sizes]
    for ratio, step_size in zip(found, step_sizes, strict=True):
        if not math.isclose(ratio * step_size, largest, rel_tol=1e-9):
            raise UsageError(
                f"--step_sizes={listed}: the largest, {largest:g}, is {largest / step_size:g} "
                f"times {step_size:g}; accepted are step sizes that divide the largest"
            )
    return tuple(sorted(found))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Steps(Options):
    """A step size, and for how long."""

    step_size: float = option("Step size of the base run, in time per iteration.", 0.001, STEPS)
    iterations: int = option(
        "Iterations of the base run; time is this times step_size, over 1 - β with momentum.",
        10_000,
        STEPS,
    )

    @property
    def ratios(self) -> tuple[int, ...]:
        """Step size of the base run over those of the other runs."""
        return ()

    @property
    def snapshots(self) -> int | None:
        """At how many iterations parameters are kept; None is as many as usual."""
        return None

    @property
    def segments(self) -> int | None:
        """In how many compiled calls; None is as many as usual."""
        return None

    @property
    def schedule(self) -> Schedule:
        """The step sizes, iterations, snapshots and segments."""
        return Schedule(self.step_size, self.ratios, self.iterations, self.snapshots, self.segments)

    @property
    def all_step_sizes(self) -> tuple[float, ...]:
        """Step sizes of all runs, the largest first."""
        return self.schedule.step_sizes

    @property
    def sized_by(self) -> str:
        """The option that says them."""
        return "step_size"

    def check(self) -> None:
        """Raises UsageError on a schedule that is none, or steps that float32 does not hold."""
        super().check()
        try:
            sizes = self.all_step_sizes
            _ = self.schedule
        except ValueError as error:
            raise UsageError(f"--{error}") from None
        if not SMALLEST <= min(sizes) <= max(sizes) <= LARGEST:
            raise UsageError(
                f"--{self.sized_by}: step sizes of the runs are {min(sizes):g} to {max(sizes):g}; "
                f"accepted are {SMALLEST:g} to {LARGEST:g}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Snapshots(Steps):
    """When parameters are kept."""

    snapshots: int = option(
        "Number of evenly spaced base iterations at which parameters and accuracy are kept; "
        "all, if there are fewer.",
        100,
        "Results",
    )

    @classmethod
    def implied(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Not more than there are iterations, unless so many are asked for."""
        fewer = min(cls.snapshots, given.get("iterations", cls.iterations))
        return super().implied({"snapshots": fewer} | given)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segments(Snapshots):
    """In how many pieces descent is computed."""

    segments: int = option(
        "Number of equal compiled calls, between which progress is shown: a divisor of "
        "iterations, the largest up to 100 if not given; 1 is a single call.",
        MOST_SEGMENTS,
        MACHINE,
    )

    @classmethod
    def implied(cls, given: dict[str, Any]) -> dict[str, Any]:
        """The largest divisor of the iterations, unless another is asked for."""
        iterations = given.get("iterations", cls.iterations)
        try:
            usual = Schedule(1.0, (), iterations).segments
        except ValueError:  # which is told when all is known
            usual = 1
        return super().implied({"segments": usual} | given)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepSizes(Steps):
    """Step sizes of all runs, one by one."""

    step_sizes: tuple[float, ...] | None = option(
        "Step sizes of all runs, instead of step_size and ratios; the largest is that of the "
        "base run and a whole multiple of every other.",
        None,
        STEPS,
        accepted=_step_sizes,
    )

    @classmethod
    def implied(cls, given: dict[str, Any]) -> dict[str, Any]:
        """The step size of the base run, and ratios, which may not be given another value."""
        step_sizes = given.get("step_sizes")
        if step_sizes is None:
            return super().implied(given)
        if wrong := _step_sizes(step_sizes):
            raise UsageError(f"--step_sizes={in_words(step_sizes)}: {wrong}")
        implied = cls.by_largest(step_sizes, given)
        for name, value in implied.items():
            if given.get(name, value) != value:
                raise UsageError(f"--{name}: is implied by --step_sizes; drop one of the two flags")
        return super().implied(given | implied)

    @classmethod
    def by_largest(cls, step_sizes: tuple[float, ...], given: dict[str, Any]) -> dict[str, Any]:
        """Fields that say the same as the step sizes."""
        _ratios_of(step_sizes)
        return {"step_size": max(step_sizes)}

    @property
    def ratios(self) -> tuple[int, ...]:
        """Step size of the base run over those of the other runs."""
        return () if self.step_sizes is None else _ratios_of(self.step_sizes)

    @property
    def all_step_sizes(self) -> tuple[float, ...]:
        """Step sizes of all runs, the largest first."""
        if self.step_sizes is None:
            return super().all_step_sizes
        return tuple(sorted(self.step_sizes, reverse=True))

    @property
    def sized_by(self) -> str:
        """The option that says them."""
        return "step_size" if self.step_sizes is None else "step_sizes"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ratios(StepSizes):
    """Step sizes of all runs, also by their ratios."""

    ratios: tuple[int, ...] = ratios_option((2, 5, 10, 20))

    @classmethod
    def by_largest(cls, step_sizes: tuple[float, ...], given: dict[str, Any]) -> dict[str, Any]:
        """Fields that say the same as the step sizes."""
        return {"step_size": max(step_sizes), "ratios": _ratios_of(step_sizes)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkRun(Network, Steps, Storage):
    """A network that descends, or whose flow is followed: what ``harness.begin`` takes."""

    @property
    def flow_runs(self) -> int:
        """As many trajectories in time as the flow and what it predicts amount to; 0 is no flow."""
        return 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arithmetic(NetworkRun):
    """How weights are added up."""

    arithmetic: str = option("How weights are added up.", "compensated", STEPS, choices=ARITHMETICS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Momentum(NetworkRun):
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
        return Method(self.momentum, self.nesterov)

    @property
    def predicts(self) -> bool:
        """Whether gaps can be predicted: with momentum for a smooth loss."""
        return not self.momentum or self.linear

    def check(self) -> None:
        """Raises UsageError on a method that is none."""
        super().check()
        try:
            _ = self.method
        except ValueError as error:
            raise UsageError(f"--{error}") from None

    def prediction_runs(self) -> int:
        """As many trajectories as a prediction amounts to, or the flow alone."""
        if not self.predicts:
            return 1
        # With kinks each run is predicted on its own, else all by the flow and its deviation.
        return 2 if self.linear else len(self.all_step_sizes)


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
        return Method(self.momentum, self.nesterov, self.batch_size or 0)

    @property
    def order_seed(self) -> int | None:
        """Seed of the order of the examples; None is that of the data."""
        return None if self.batch_size is None else self.batch_seed

    @property
    def predicts(self) -> bool:
        """Whether gaps can be predicted, of batches never."""
        return self.batch_size is None and super().predicts

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
