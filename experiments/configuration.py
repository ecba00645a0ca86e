"""The validated configuration of one experiment; one field per flag."""

import dataclasses
import math

from gf_jax.arithmetic import ARITHMETICS
from gf_jax.descent import Schedule
from gf_jax.networks import ACTIVATIONS

EXPERIMENTS = ("paper", "rounding", "predict", "large_steps")
NETWORKS = ("fully_connected", "conv_adapted", "lenet5")
DATASETS = ("auto", "mnist", "digits")

EXIT_USAGE = 2
EXIT_DIVERGED = 3
EXIT_INTERRUPTED = 130  # as shells report an interrupt


class UsageError(Exception):
    """A mistake of the user's; its text is the one line that is shown."""


# Flags that say nothing about an experiment, and why.
WITHOUT_EFFECT = {
    "rounding": {"arithmetic": "it runs every arithmetic"},
    "predict": dict.fromkeys(("arithmetic", "segments", "snapshots", "flow"), "it runs no descent"),
    "large_steps": {
        "ratios": "it doubles the step size; name other step sizes by --step_sizes",
        "flow": "it compares with the flow",
    },
}


@dataclasses.dataclass(frozen=True)
class Configuration:
    """What a run is to do. None stands for a default that depends on other fields.

    Attributes are described where the flags are defined, in ``main.py``.

    Raises:
      UsageError: on values or combinations that are not accepted.
    """

    experiment: str = "paper"
    ratios: tuple[int, ...] | None = None
    step_size: float | None = None
    step_sizes: tuple[float, ...] | None = None
    iterations: int = 10_000
    arithmetic: str | None = None
    flow: bool | None = None
    network: str = "fully_connected"
    widths: tuple[int, ...] | None = None
    activation: str | None = None
    init_scale: float | None = None
    seed: int | None = None
    dataset: str = "auto"
    data_dir: str | None = None
    examples: int = 1_000
    snapshots: int | None = None
    segments: int | None = None
    initial_params: str | None = None
    output_dir: str | None = None

    def __post_init__(self) -> None:
        self._check_experiment()
        self._check_network()
        self._check_start()
        if self.dataset not in DATASETS:
            raise UsageError(
                f"--dataset={self.dataset}: unknown; accepted are {', '.join(DATASETS)}"
            )
        if self.dataset == "digits" and self.data_dir is not None:
            raise UsageError(
                "--data_dir: holds MNIST files, but --dataset=digits needs none; drop one of them"
            )
        if self.examples < 1:
            raise UsageError(f"--examples={self.examples}: accepted is a positive integer")
        self._check_steps()

    @property
    def schedule(self) -> Schedule:
        """The step sizes, iterations, snapshots and segments."""
        assert self.step_size is not None
        return Schedule(
            self.step_size, self.ratios or (), self.iterations, self.snapshots, self.segments
        )

    @property
    def all_step_sizes(self) -> tuple[float, ...]:
        """Step sizes of all runs, the largest first."""
        if self.step_sizes is not None:
            return tuple(sorted(self.step_sizes, reverse=True))
        return self.schedule.step_sizes

    def _check_experiment(self) -> None:
        if self.experiment not in EXPERIMENTS:
            raise UsageError(
                f"--experiment={self.experiment}: unknown; accepted are {', '.join(EXPERIMENTS)}"
            )
        unused = WITHOUT_EFFECT.get(self.experiment, {})
        for name, reason in unused.items():
            if getattr(self, name) is not None:
                raise UsageError(
                    f"--{name}: has no effect on --experiment={self.experiment}, as {reason}; "
                    "drop one of the two flags"
                )
        if self.arithmetic is None and "arithmetic" not in unused:
            self._resolve(arithmetic="compensated")
        if self.arithmetic not in {None, *ARITHMETICS}:
            raise UsageError(
                f"--arithmetic={self.arithmetic}: unknown; accepted are {', '.join(ARITHMETICS)}"
            )
        if self.flow is None and "flow" not in unused:
            self._resolve(flow=True)

    def _check_steps(self) -> None:
        if self.step_sizes is not None:
            self._take_step_sizes(self.step_sizes)
        if self.step_size is None:
            self._resolve(step_size=0.001)
        if self.ratios is None and self.experiment != "large_steps":
            self._resolve(ratios=(2, 5, 10, 20))
        try:
            schedule = self.schedule
        except ValueError as error:
            raise UsageError(f"--{error}") from None
        if self.experiment not in ("predict", "large_steps"):
            self._resolve(snapshots=schedule.snapshots, segments=schedule.segments)

    def _take_step_sizes(self, step_sizes: tuple[float, ...]) -> None:
        """Expresses explicit step sizes by the largest of them and integer ratios to it."""
        listed = ",".join(f"{step_size:g}" for step_size in step_sizes)
        if not step_sizes or not all(math.isfinite(s) and s > 0 for s in step_sizes):
            raise UsageError(f"--step_sizes={listed}: accepted are positive finite numbers")
        largest = max(step_sizes)
        if len(set(step_sizes)) < len(step_sizes):
            raise UsageError(f"--step_sizes={listed}: give every step size once")
        if self.experiment == "predict" and self.activation == "linear":
            # A smooth flow knows no iterations that would have to meet.
            self._imply(step_size=largest, ratios=())
            return
        ratios = [round(largest / step_size) for step_size in step_sizes]
        for ratio, step_size in zip(ratios, step_sizes, strict=True):
            if not math.isclose(ratio * step_size, largest, rel_tol=1e-9):
                raise UsageError(
                    f"--step_sizes={listed}: the largest, {largest:g}, is {largest / step_size:g} "
                    f"times {step_size:g}; accepted are step sizes that divide the largest"
                )
        self._imply(step_size=largest, ratios=tuple(sorted(ratios)))

    def _imply(self, **fields: object) -> None:
        """Resolves fields that the user may not give another value."""
        for name, value in fields.items():
            if getattr(self, name) not in (None, value):
                raise UsageError(f"--{name}: is implied by --step_sizes; drop one of the two flags")
        self._resolve(**fields)

    def _check_network(self) -> None:
        if self.network not in NETWORKS:
            raise UsageError(
                f"--network={self.network}: unknown; accepted are {', '.join(NETWORKS)}"
            )
        if self.network != "fully_connected":
            for name in ("widths", "activation"):
                if getattr(self, name) is not None:
                    raise UsageError(
                        f"--{name}: the network {self.network} has its own; "
                        f"drop the flag or use --network=fully_connected"
                    )
            return
        if self.widths is None:
            self._resolve(widths=(50, 50))
        if self.activation is None:
            self._resolve(activation="linear")
        if any(width < 1 for width in self.widths or ()):
            raise UsageError(
                f"--widths={','.join(map(str, self.widths or ()))}: accepted are positive integers"
            )
        if self.activation not in ACTIVATIONS:
            raise UsageError(
                f"--activation={self.activation}: unknown; accepted are {', '.join(ACTIVATIONS)}"
            )

    def _check_start(self) -> None:
        if self.initial_params is not None:
            for name in ("init_scale", "seed"):
                if getattr(self, name) is not None:
                    raise UsageError(
                        f"--{name}: has no effect on weights read by --initial_params; "
                        "drop one of the two flags"
                    )
            return
        self._resolve(
            init_scale=1.0 if self.init_scale is None else self.init_scale,
            seed=0 if self.seed is None else self.seed,
        )
        if self.init_scale is None or not (math.isfinite(self.init_scale) and self.init_scale > 0):
            raise UsageError(
                f"--init_scale={self.init_scale}: accepted is a positive finite number"
            )
        if self.seed is None or not 0 <= self.seed < 2**32:
            raise UsageError(f"--seed={self.seed}: accepted is an integer from 0 to 2^32 - 1")

    def _resolve(self, **fields: object) -> None:
        for name, value in fields.items():
            object.__setattr__(self, name, value)
