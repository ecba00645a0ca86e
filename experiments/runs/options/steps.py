"""Which steps descent takes."""

import dataclasses
import math
from typing import Any

from experiments.cli.options import Options, option
from experiments.cli.usage import in_words
from experiments.process.mistakes import LARGEST, SMALLEST, UsageError
from gf_jax.descent.schedule import MOST_SEGMENTS, MOST_STEPS, Schedule

STEPS, MACHINE = "Step sizes and time", "Machine"


def ratios_option(default: tuple[int, ...], under: str = STEPS) -> Any:
    """The option of step sizes as integer ratios."""
    return option(
        "Step size of the base run over those of the other runs: positive integers.",
        default,
        under,
    )


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
