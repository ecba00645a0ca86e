"""The validated configuration of one experiment; one field per flag."""

import dataclasses
import math

from gf_jax.descent import Schedule
from gf_jax.networks import ACTIVATIONS

NETWORKS = ("fully_connected", "conv_adapted", "lenet5")
DATASETS = ("auto", "mnist", "digits")

EXIT_USAGE = 2
EXIT_DIVERGED = 3
EXIT_INTERRUPTED = 130  # as shells report an interrupt


class UsageError(Exception):
    """A mistake of the user's; its text is the one line that is shown."""


@dataclasses.dataclass(frozen=True)
class Configuration:
    """What a run is to do. None stands for a default that depends on other fields.

    Attributes are described where the flags are defined, in ``main.py``.

    Raises:
      UsageError: on values or combinations that are not accepted.
    """

    ratios: tuple[int, ...] = (2, 5, 10, 20)
    step_size: float = 0.001
    iterations: int = 10_000
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
        try:
            schedule = Schedule(
                self.step_size, self.ratios, self.iterations, self.snapshots, self.segments
            )
        except ValueError as error:
            raise UsageError(f"--{error}") from None
        self._resolve(snapshots=schedule.snapshots, segments=schedule.segments)

    @property
    def schedule(self) -> Schedule:
        """The step sizes, iterations, snapshots and segments."""
        return Schedule(self.step_size, self.ratios, self.iterations, self.snapshots, self.segments)

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
