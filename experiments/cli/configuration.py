"""The validated configuration of one experiment; one field per flag."""

import dataclasses
import errno
import math
from typing import Any

from experiments.cli.effects import (
    DEFAULTS,
    FEWER_SNAPSHOTS,
    OF_DESCENT,
    ONE_WIDTH,
    OWN_DEFAULTS,
    WITHOUT_EFFECT,
)
from experiments.cli.mistakes import UsageError as UsageError
from experiments.cli.mistakes import expand as expand
from experiments.problems.datasets import DATASETS
from experiments.problems.networks import FULLY_CONNECTED, NETWORKS, OPTIONS
from gf_jax.descent.schedule import MOST_STEPS, Schedule
from gf_jax.optimizers.method import Method
from gf_jax.problems.activations import ACTIVATIONS
from gf_jax.problems.losses import LOSSES
from gf_jax.problems.objective import check_batch_size
from gf_jax.program.arithmetic import ARITHMETICS

EXPERIMENTS = (
    "paper",
    "rounding",
    "predict",
    "large_steps",
    "curvature",
    "bounds",
    "near_zero",
    "deep_linear",
    "necessity",
)
ALONG = ("flow", "descent")
COORDINATES = ("row_space", "pixels")
PATHS = ("data_dir", "initial_params", "output_dir", "checkpoint_dir", "resume")

EXIT_USAGE = 2
EXIT_DIVERGED = 3
EXIT_UNWRITTEN = 4
EXIT_HUNG_UP = 129
EXIT_INTERRUPTED = 130  # as shells report an interrupt
EXIT_TERMINATED = 143
# What help tells of them.
EXIT_STATUSES = {
    0: "done",
    EXIT_USAGE: "a mistake in flags or files, or too little memory; nothing was run",
    EXIT_DIVERGED: "a run diverged; the results are written and say which, and when",
    EXIT_UNWRITTEN: "results could not be written; --resume finishes the run when they can",
    EXIT_INTERRUPTED: "interrupted; what was computed is written, and --resume goes on",
    EXIT_TERMINATED: "terminated, likewise",
    EXIT_HUNG_UP: "the terminal was closed, likewise",
}

# What systems report of a place that takes no more.
UNWRITABLE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),
    *(errno.EROFS, errno.EACCES, errno.EPERM),
)

MOST_SEEDS = 100_000
MOST_LAYERS = 100  # each is compiled

# Of numbers that float32 holds, less what a product of two needs.
SMALLEST, LARGEST = 1e-30, 1e30


class UnwrittenError(Exception):
    """Results that could not be written; its text is the one line that is shown."""


def located(values: dict[str, Any]) -> dict[str, Any]:
    """Values of flags with every path among them absolute; addresses of checkpoints stay.

    Raises:
      UsageError: as ``expand``.
    """
    paths = {name: value for name, value in values.items() if name in PATHS and value is not None}
    if "://" in paths.get("checkpoint_dir", ""):
        del paths["checkpoint_dir"]
    return values | {name: str(expand(name, path)) for name, path in paths.items()}


@dataclasses.dataclass(frozen=True)
class Configuration:
    """What a run is to do. None stands for a default that depends on other fields.

    Attributes are described where the flags are defined, in ``flags.py``.

    Raises:
      UsageError: on values or combinations that are not accepted.
    """

    experiment: str = "paper"
    ratios: tuple[int, ...] | None = None
    step_size: float | None = None
    step_sizes: tuple[float, ...] | None = None
    iterations: int | None = None
    arithmetic: str | None = None
    momentum: float | None = None
    nesterov: bool | None = None
    batch_size: int | None = None
    batch_seed: int | None = None
    flow: bool | None = None
    along: str | None = None
    epsilon: float | None = None
    depths: tuple[int, ...] | None = None
    seeds: int | None = None
    network: str | None = None
    coordinates: str | None = None
    widths: tuple[int, ...] | None = None
    activation: str | None = None
    loss: str | None = None
    init_scale: float | None = None
    seed: int | None = None
    dataset: str | None = None
    data_dir: str | None = None
    examples: int | None = None
    snapshots: int | None = None
    segments: int | None = None
    mesh: str | None = None
    initial_params: str | None = None
    output_dir: str | None = None
    checkpoint_dir: str | None = None
    checkpoint_every: float | None = None
    resume: str | None = None

    def __post_init__(self) -> None:
        self._check_effects()
        self._resolve(**located({name: getattr(self, name) for name in PATHS}))
        self._check_choices()
        self._check_network()
        if self.step_sizes is not None:
            self._take_step_sizes(self.step_sizes)
        self._resolve_defaults()
        self._check_start()
        self._check_theory()
        self._check_method()
        if self._uses("step_size"):
            self._check_steps()

    @property
    def schedule(self) -> Schedule:
        """The step sizes, iterations, snapshots and segments."""
        assert self.step_size is not None
        assert self.iterations is not None
        return Schedule(
            self.step_size, self.ratios or (), self.iterations, self.snapshots, self.segments
        )

    @property
    def method(self) -> Method:
        """How a step is made of gradients."""
        return Method(self.momentum or 0.0, bool(self.nesterov), self.batch_size or 0)

    @property
    def predicts(self) -> bool:
        """Whether gaps can be predicted: of batches never, with momentum for a smooth loss."""
        return not self.batch_size and (not self.momentum or self.smooth)

    @property
    def smooth(self) -> bool:
        """Whether the network's outputs have no kinks."""
        if self.activation is not None:
            return ACTIVATIONS[self.activation].smooth
        return NETWORKS[self.network or FULLY_CONNECTED].smooth

    @property
    def starts_of_seeds(self) -> tuple[int, ...]:
        """Seeds of the starting points of one network, if there are several; else empty."""
        if self.experiment != "paper" or self.seed is None or self.seeds in (None, 1):
            return ()
        return tuple(range(self.seed, self.seed + self.seeds))

    @property
    def all_step_sizes(self) -> tuple[float, ...]:
        """Step sizes of all runs, the largest first."""
        if self.step_sizes is not None:
            return tuple(sorted(self.step_sizes, reverse=True))
        return self.schedule.step_sizes

    def _uses(self, name: str) -> bool:
        """Whether a flag has an effect on the experiment."""
        return name not in WITHOUT_EFFECT[self.experiment]

    def _check_effects(self) -> None:
        """Refuses an unknown experiment, and flags that say nothing about this one."""
        if self.experiment not in EXPERIMENTS:
            raise UsageError(
                f"--experiment={self.experiment}: unknown; accepted are {', '.join(EXPERIMENTS)}"
            )
        for name in WITHOUT_EFFECT[self.experiment]:
            if getattr(self, name) is not None:
                others = [e for e in EXPERIMENTS if name not in WITHOUT_EFFECT[e]]
                raise UsageError(
                    f"--{name}: has no effect on --experiment={self.experiment}, but on "
                    f"{', '.join(others)}; drop one of the two flags"
                )
        for name in OF_DESCENT:
            along_flow = self._uses("along") and self.along != "descent"
            if along_flow and getattr(self, name) is not None:
                raise UsageError(
                    f"--{name}: has no effect on --along=flow, but on descent; "
                    "drop one of the two flags"
                )

    def _resolve_defaults(self) -> None:
        for name, value in (DEFAULTS | OWN_DEFAULTS.get(self.experiment, {})).items():
            if self._uses(name) and getattr(self, name) is None:
                self._resolve(**{name: value})

    def _check_choices(self) -> None:
        choices = {
            "arithmetic": tuple(ARITHMETICS),
            "dataset": tuple(DATASETS),
            "network": tuple(NETWORKS),
            "activation": tuple(ACTIVATIONS),
            "loss": tuple(LOSSES),
            "along": ALONG,
            "coordinates": COORDINATES,
        }
        for name, accepted in choices.items():
            value = getattr(self, name)
            if value is not None and value not in accepted:
                raise UsageError(f"--{name}={value}: unknown; accepted are {', '.join(accepted)}")
        if self.data_dir is not None and not DATASETS[self.dataset or "auto"].files:
            raise UsageError(
                f"--data_dir: holds files of a data set, but --dataset={self.dataset} needs none; "
                "drop one of them"
            )
        if self.mesh not in (None, "auto", "none") and not _is_count(self.mesh):
            raise UsageError(f"--mesh={self.mesh}: accepted are auto, none and a positive integer")
        if self.checkpoint_every is not None and not 0 <= self.checkpoint_every <= LARGEST:
            raise UsageError(
                f"--checkpoint_every={self.checkpoint_every:g}: accepted is a number of seconds, "
                f"0 to {LARGEST:g}"
            )
        if self.examples is not None and self.examples < 1:
            raise UsageError(f"--examples={self.examples}: accepted is a positive integer")
        if self.seeds is not None and not 1 <= self.seeds <= MOST_SEEDS:
            raise UsageError(
                f"--seeds={self.seeds}: accepted is a positive integer up to {MOST_SEEDS}"
            )

    def _check_theory(self) -> None:
        self._check_positive("epsilon")
        if self.depths is not None:
            listed = ",".join(map(str, self.depths))
            if not self.depths or not all(2 <= depth <= MOST_LAYERS for depth in self.depths):
                raise UsageError(
                    f"--depths={listed}: accepted are integers from 2 to {MOST_LAYERS}"
                )
            if len(set(self.depths)) < len(self.depths):
                raise UsageError(f"--depths={listed}: give every depth once")

    def _check_method(self) -> None:
        try:
            _ = self.method
            if self.batch_size is not None:
                check_batch_size(self.batch_size, self.examples or 0)
        except ValueError as error:
            raise UsageError(f"--{error}") from None
        if self.batch_seed is not None and self.batch_size is None:
            raise UsageError("--batch_seed: orders batches; give --batch_size too, or drop it")
        if not 0 <= (self.batch_seed or 0) < 2**32:
            raise UsageError(
                f"--batch_seed={self.batch_seed}: accepted is an integer from 0 to 2^32 - 1"
            )
        if self.batch_size is not None and self.batch_seed is None:
            self._resolve(batch_seed=0)
        if self.experiment == "predict" and not self.predicts:
            raise UsageError(
                f"--momentum={self.momentum:g}: gaps with momentum are predicted for losses "
                f"without kinks; accepted is --activation={_listed(_smooth_activations())}"
            )

    def _check_steps(self) -> None:
        if self.snapshots is None and self.experiment in ("curvature", "bounds"):
            self._resolve(snapshots=min(FEWER_SNAPSHOTS, self.iterations or 1))
        if self.ratios is None and self._uses("ratios"):
            self._resolve(ratios=(2, 5, 10, 20))
        try:
            schedule = self.schedule
        except ValueError as error:
            raise UsageError(f"--{error}") from None
        smallest, largest = min(self.all_step_sizes), max(self.all_step_sizes)
        if not SMALLEST <= smallest <= largest <= LARGEST:
            flag = "step_size" if self.step_sizes is None else "step_sizes"
            raise UsageError(
                f"--{flag}: step sizes of the runs are {smallest:g} to {largest:g}; accepted are "
                f"{SMALLEST:g} to {LARGEST:g}"
            )
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
        if self.experiment == "predict" and self.smooth:
            # A smooth flow knows no iterations that would have to meet.
            self._imply(step_size=largest, ratios=())
            return
        if not all(largest / step_size < MOST_STEPS for step_size in step_sizes):
            raise UsageError(f"--step_sizes={listed}: accepted are ratios up to {MOST_STEPS}")
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
        """Resolves the options that only some networks have, such as widths."""
        name_of_network = self.network or FULLY_CONNECTED
        for name in OPTIONS:
            if name not in NETWORKS[name_of_network].options:
                self._check_foreign(name)
        defaults = {
            "activation": "linear",
            "coordinates": "row_space",
            "widths": ONE_WIDTH.get(self.experiment, (50, 50)),
        }
        for name in NETWORKS[name_of_network].options:
            if self._uses(name) and getattr(self, name) is None:
                self._resolve(**{name: defaults[name]})
        listed = ",".join(map(str, self.widths or ()))
        if any(width < 1 for width in self.widths or ()):
            raise UsageError(f"--widths={listed}: accepted are positive integers")
        if len(self.widths or ()) >= MOST_LAYERS:
            raise UsageError(f"--widths={listed}: accepted are fewer than {MOST_LAYERS} widths")
        if self.experiment in ONE_WIDTH and len(self.widths or ()) != 1:
            raise UsageError(
                f"--widths={listed}: accepted is one width with --experiment={self.experiment}, "
                "that of every hidden layer"
            )

    def _check_foreign(self, name: str) -> None:
        """Refuses an option of networks if this one has not got it."""
        if getattr(self, name) is not None:
            others = [each for each, kind in NETWORKS.items() if name in kind.options]
            raise UsageError(
                f"--{name}: the network {self.network} has its own; "
                f"drop the flag or use --network={_listed(others)}"
            )

    def _check_start(self) -> None:
        if self.initial_params is not None:
            for name in ("init_scale", "seed"):
                if getattr(self, name) is not None:
                    raise UsageError(
                        f"--{name}: has no effect on weights read by --initial_params; "
                        "drop one of the two flags"
                    )
            if self.seeds is not None and self.seeds > 1:
                raise UsageError(
                    f"--seeds={self.seeds}: the weights read by --initial_params are a single "
                    "start; drop one of the two flags"
                )
            return
        for name, value in {"init_scale": 1.0, "seed": 0}.items():
            if self._uses(name) and getattr(self, name) is None:
                self._resolve(**{name: value})
        self._check_positive("init_scale")
        if self.seed is not None and not 0 <= self.seed < 2**32:
            raise UsageError(f"--seed={self.seed}: accepted is an integer from 0 to 2^32 - 1")
        if self.starts_of_seeds and self.starts_of_seeds[-1] >= 2**32:
            raise UsageError(
                f"--seeds={self.seeds}: the last seed, {self.starts_of_seeds[-1]}, is above "
                "2^32 - 1; take a smaller --seed"
            )

    def _check_positive(self, name: str) -> None:
        value = getattr(self, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UsageError(f"--{name}={value}: accepted is a positive finite number")
        if value is not None and not SMALLEST <= value <= LARGEST:
            raise UsageError(f"--{name}={value}: accepted is {SMALLEST:g} to {LARGEST:g}")

    def _resolve(self, **fields: object) -> None:
        for name, value in fields.items():
            object.__setattr__(self, name, value)


def _is_count(text: str) -> bool:
    return text.isdecimal() and len(text) < 10 and int(text) > 0


def _smooth_activations() -> list[str]:
    return [name for name, activation in ACTIVATIONS.items() if activation.smooth]


def _listed(names: list[str]) -> str:
    return " or ".join(names)
