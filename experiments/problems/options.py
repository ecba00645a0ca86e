"""What is trained on what, from where."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from experiments.cli.options import Options, option, positive, positive_number, seed
from experiments.problems.datasets import DATASETS
from experiments.problems.networks import FULLY_CONNECTED, NETWORKS
from experiments.problems.networks import OPTIONS as OF_NETWORKS
from experiments.process.mistakes import UsageError
from gf_jax.optimizers.method import Method
from gf_jax.optimizers.steps import Optimizer
from gf_jax.problems.activations import ACTIVATIONS
from gf_jax.problems.losses import LOSSES

COORDINATES = dict.fromkeys(("row_space", "pixels"), "")
MOST_LAYERS = 100  # each is compiled
NETWORK, DATA = "Network and starting point", "Data"


def meanings(registry: Mapping[str, Any]) -> dict[str, str]:
    """The names in a registry, each with what help tells of it."""
    return {name: entry.meaning for name, entry in registry.items()}


def is_smooth(network: str, activation: str) -> bool:
    """Whether outputs have no kinks, of a network with that activation if it takes one."""
    kind = NETWORKS[network]
    return ACTIVATIONS[activation].smooth if "activation" in kind.options else kind.smooth


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

    dataset: str = option("Training data.", "auto", DATA, choices=meanings(DATASETS))
    data_dir: str | None = option(
        "Folder with the four IDX files of the data set, gzipped or not; nothing is downloaded.",
        None,
        DATA,
        value="FOLDER",
    )
    examples: int = option(
        "Number of training images, evenly spaced in file order among the first 50,000 of "
        "MNIST or Fashion-MNIST (above that, among all 60,000), or among the 1,797 digits.",
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
        if self.data_dir is not None and not DATASETS[self.dataset].files:
            raise UsageError(
                f"--data_dir: holds files of a data set, but --dataset={self.dataset} needs none; "
                "drop one of them"
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
class Loss(Options):
    """What is trained down."""

    loss: str = option(
        "Of an example; the training loss is its mean.",
        "cross_entropy",
        NETWORK,
        choices=meanings(LOSSES),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture(Options):
    """Which network."""

    network: str = option("Architecture.", FULLY_CONNECTED, NETWORK, choices=meanings(NETWORKS))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network(Data, RandomStart, Widths, Loss, Activation, Architecture):
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
    chunk: int | None = option(
        "Examples that a gradient takes at a time, a divisor of examples, so that less of what the "
        "network computes is in memory. If not given, all, or as many as fit into the memory that "
        "is free. Batches are taken as a whole.",
        None,
        DATA,
    )

    @property
    def smooth(self) -> bool:
        """Whether the network's outputs have no kinks."""
        return is_smooth(self.network, self.activation)

    @property
    def in_row_space(self) -> bool:
        """Whether it is computed in the space that the images span."""
        return "coordinates" in NETWORKS[self.network].options and self.coordinates == "row_space"

    @property
    def enlarged(self) -> bool:
        """Whether small images are made as large as those of MNIST."""
        return NETWORKS[self.network].enlarges

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
    def chosen_optimizer(self) -> Optimizer | None:
        """The optimiser as a function of the step size; None is plain descent."""
        return None

    @property
    def order_seed(self) -> int | None:
        """Seed of the order of the examples; None is that of the data."""
        return None

    @property
    def draws(self) -> int:
        """Number of independent runs with every step size, 0 where nothing is drawn."""
        return 0

    @property
    def sampling(self) -> dict[str, Any]:
        """How batches are drawn, as ``Classification.batches`` takes it; nothing if in turn."""
        return {}

    @property
    def copies(self) -> int:
        """Number of runs with every step size."""
        return self.draws or len(self.starts_of_seeds) or 1

    @property
    def mesh(self) -> str:
        """Devices that runs are spread over."""
        return "none"

    def unused(self) -> dict[str, str]:
        """Options of other networks; of given weights how to draw them."""
        read = "has no effect on weights read by --initial_params; drop one of the two flags"
        unused = super().unused()
        for name in OF_NETWORKS:
            if name not in NETWORKS[self.network].options:
                others = [each for each, kind in NETWORKS.items() if name in kind.options]
                unused[name] = (
                    f"the network {self.network} has its own; drop the flag or use "
                    f"--network={' or '.join(others)}"
                )
        if self.initial_params is not None:
            unused |= dict.fromkeys(("init_scale", "seed"), read)
        return unused
