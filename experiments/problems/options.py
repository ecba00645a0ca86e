"""What is trained on what, from where."""

import dataclasses
from typing import Any

from experiments.cli.options import Options, option, positive, positive_number, seed
from experiments.process.mistakes import UsageError
from gf_jax.optimizers.method import Method
from gf_jax.problems.networks import ACTIVATIONS

# Choices are names with their meanings; those without need none.
NETWORKS = dict.fromkeys(("fully_connected", "conv_adapted", "lenet5"), "")
DATASETS = {
    "auto": "MNIST if given, cached or reachable within five seconds, else digits",
    "mnist": "28x28 images; a mistake if it cannot be had",
    "digits": "scikit-learn's 8x8 images, which need no network",
}
COORDINATES = dict.fromkeys(("row_space", "pixels"), "")
MOST_LAYERS = 100  # each is compiled
NETWORK, DATA = "Network and starting point", "Data"


def accuracy(meaning: str, default: float) -> Any:
    """The option epsilon of an experiment that reaches for an accuracy."""
    return option(meaning, default, "What to run", accepted=positive_number)


def _positive_widths(widths: tuple[int, ...]) -> str:
    if any(width < 1 for width in widths):
        return "accepted are positive integers"
    return "" if len(widths) < MOST_LAYERS else f"accepted are fewer than {MOST_LAYERS} widths"


def _some_depths(depths: tuple[int, ...]) -> str:
    if not depths or not all(2 <= depth <= MOST_LAYERS for depth in depths):
        return f"accepted are integers from 2 to {MOST_LAYERS}"
    return "" if len(set(depths)) == len(depths) else "give every depth once"


def _one_width(widths: tuple[int, ...]) -> str:
    wrong = _positive_widths(widths)
    return wrong or (
        "" if len(widths) == 1 else "accepted is one width, that of every hidden layer"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data(Options):
    """The training set."""

    dataset: str = option("Training data.", "auto", DATA, choices=DATASETS)
    data_dir: str | None = option(
        "Folder with MNIST's four IDX files, gzipped or not; nothing is downloaded.",
        None,
        DATA,
        value="FOLDER",
    )
    examples: int = option(
        "Number of training images, evenly spaced in file order among the first 50,000 of "
        "MNIST (above that, among all 60,000), or among the 1,797 digits.",
        1_000,
        DATA,
        accepted=positive,
    )

    @property
    def enlarged(self) -> bool:
        """Whether small images are made as large as those of MNIST."""
        return False

    def check(self) -> None:
        """Raises UsageError if the data set has no files."""
        super().check()
        if self.dataset == "digits" and self.data_dir is not None:
            raise UsageError(
                "--data_dir: holds MNIST files, but --dataset=digits needs none; drop one of them"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomStart(Options):
    """A starting point that is drawn."""

    seed: int = option("Seed of the starting point.", 0, NETWORK, accepted=seed)
    init_scale: float = option(
        "Factor on the Xavier uniform start; below 1 is nearer zero.",
        1.0,
        NETWORK,
        accepted=positive_number,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Widths(Options):
    """Sizes of a fully connected network."""

    widths: tuple[int, ...] = option(
        "Hidden widths of the fully connected network, in units per layer, empty for none.",
        (50, 50),
        NETWORK,
        accepted=_positive_widths,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Depths(Widths):
    """Fully connected networks of several depths, whose hidden layers have one width."""

    widths: tuple[int, ...] = option(
        "One width, that of every hidden layer.", (50,), NETWORK, accepted=_one_width
    )
    depths: tuple[int, ...] = option(
        "Numbers of layers.", (2, 3, 4), NETWORK, accepted=_some_depths
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Activation(Options):
    """What follows the hidden layers of a fully connected network."""

    activation: str = option(
        "Of the fully connected network.",
        "linear",
        NETWORK,
        choices=dict.fromkeys(ACTIVATIONS, ""),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture(Options):
    """Which network."""

    network: str = option("Architecture.", "fully_connected", NETWORK, choices=NETWORKS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network(Data, RandomStart, Widths, Activation, Architecture):
    """A network, its data and its start: what ``problem.build`` takes."""

    coordinates: str = option(
        "Of the fully connected network while it is computed: the space that the images span, "
        "which is exact and cheaper, or pixels.",
        "row_space",
        NETWORK,
        choices=COORDINATES,
    )
    initial_params: str | None = option(
        "Start from the weights in this npz file instead of a random start.",
        None,
        NETWORK,
        value="FILE",
    )

    @property
    def dense(self) -> bool:
        """Whether the network is fully connected."""
        return self.network == "fully_connected"

    @property
    def linear(self) -> bool:
        """Whether the network is linear in its inputs, so that its loss has no kinks."""
        return self.dense and self.activation == "linear"

    @property
    def in_row_space(self) -> bool:
        """Whether it is computed in the space that the images span."""
        return self.dense and self.coordinates == "row_space"

    @property
    def enlarged(self) -> bool:
        """Whether small images are made as large as those of MNIST."""
        return not self.dense

    @property
    def starts_of_seeds(self) -> tuple[int, ...]:
        """Seeds of the starting points, if there are several; else empty."""
        return ()

    @property
    def arithmetic(self) -> str:
        """Name of the arithmetic of descent."""
        return "compensated"

    @property
    def method(self) -> Method:
        """How a step is made of gradients."""
        return Method()

    @property
    def order_seed(self) -> int | None:
        """Seed of the order of the examples; None is that of the data."""
        return None

    @property
    def mesh(self) -> str:
        """Devices that runs are spread over."""
        return "none"

    def unused(self) -> dict[str, str]:
        """Of another network what the fully connected one has; of given weights how to draw."""
        own = (
            f"the network {self.network} has its own; drop the flag or use "
            "--network=fully_connected"
        )
        read = "has no effect on weights read by --initial_params; drop one of the two flags"
        unused = super().unused()
        if not self.dense:
            unused |= dict.fromkeys(("widths", "activation", "coordinates"), own)
        if self.initial_params is not None:
            unused |= dict.fromkeys(("init_scale", "seed"), read)
        return unused
