"""The flags of the main command line: one per field of Configuration, in the order of help.

A new flag goes into the group where a reader would look for it. Its default is that of the
configuration, which help asks for it.
"""

from collections import Counter

from experiments.cli.configuration import (
    ALONG,
    COORDINATES,
    EXIT_STATUSES,
    EXPERIMENTS,
    Configuration,
)
from experiments.cli.effects import WITHOUT_EFFECT
from experiments.cli.usage import Example, Flag, Group, Page, default_in_words
from experiments.problems.datasets import DATASETS
from experiments.problems.networks import NETWORKS
from gf_jax.problems.activations import ACTIVATIONS
from gf_jax.problems.losses import LOSSES

# What the benchmark takes too, as it does the group of data.
RATIOS = Flag(
    "ratios",
    "integers",
    "Step size of the base run over those of the other runs: positive integers.",
)
OUTPUT_DIR = Flag(
    "output_dir",
    "text",
    "New or empty folder for the results, instead of one in runs/ that bears the time.",
    value="FOLDER",
)

WHAT_TO_RUN = Group(
    "What to run",
    (
        Flag(
            "experiment",
            "choice",
            "What is studied.",
            choices={
                "paper": "descent against smaller steps and against gradient flow",
                "rounding": "the same run in every arithmetic",
                "predict": "the gaps predicted, without running descent",
                "large_steps": "step sizes up to the edge of stability",
                "curvature": "both ends of the Hessian's spectrum along the flow",
                "bounds": "what the theorems allow, and what is measured",
                "near_zero": "the smallest eigenvalue against scale and depth of the start",
                "deep_linear": "deep linear networks from random balanced starts",
                "necessity": "a saddle that needs exponentially small steps",
            },
        ),
        Flag("flow", "switch", "Compare with gradient flow and with the gaps that it predicts."),
        Flag(
            "along",
            "choice",
            "Whose curvature is told: that of gradient flow, or of descent with step_size.",
            choices=dict.fromkeys(ALONG, ""),
        ),
        Flag(
            "epsilon",
            "number",
            "Accuracy: in bounds and necessity the distance between descent and flow, in "
            "deep_linear the loss above its minimum.",
        ),
    ),
)

STEPS = Group(
    "Step sizes and time",
    (
        Flag(
            "step_size",
            "number",
            "Step size of the base run, in time per iteration; in large_steps the smallest.",
        ),
        RATIOS,
        Flag(
            "step_sizes",
            "numbers",
            "Step sizes of all runs, instead of step_size and ratios; the largest is that of the "
            "base run and a whole multiple of every other.",
        ),
        Flag(
            "iterations",
            "integer",
            "Iterations of the base run; time is this times step_size, over 1 - β with momentum.",
        ),
        Flag(
            "momentum",
            "number",
            "Decay β of past gradients, from 0 to below 1: heavy ball, whose time per iteration is "
            "step_size / (1 - β). Plain descent if not given.",
        ),
        Flag("nesterov", "switch", "Momentum is Nesterov's instead of heavy ball."),
        Flag(
            "batch_size",
            "integer",
            "Number of examples whose gradient a step follows, a divisor of examples; all of them "
            "if not given. Batches follow each other in one order, the same for all runs.",
        ),
        Flag("batch_seed", "integer", "Seed of the order of the examples in batches."),
        Flag(
            "arithmetic",
            "choice",
            "How weights are added up.",
            choices={
                "compensated": "float32 free of the rounding of updates",
                "float32": "as the paper",
                "float64": "twice as many digits, and dear",
                "tf32": "float32 with a GPU's default products",
            },
        ),
    ),
)

NETWORK = Group(
    "Network and starting point",
    (
        Flag(
            "network",
            "choice",
            "Architecture.",
            choices={name: kind.meaning for name, kind in NETWORKS.items()},
        ),
        Flag(
            "activation",
            "choice",
            "Of the fully connected network.",
            choices=dict.fromkeys(ACTIVATIONS, ""),
        ),
        Flag(
            "loss",
            "choice",
            "Of an example; the training loss is its mean.",
            choices={name: loss.meaning for name, loss in LOSSES.items()},
        ),
        Flag(
            "widths",
            "integers",
            "Hidden widths of the fully connected network, in units per layer, empty for none; "
            "near_zero and deep_linear take one, that of every hidden layer.",
        ),
        Flag("depths", "integers", "Numbers of layers in near_zero and deep_linear."),
        Flag(
            "coordinates",
            "choice",
            "Of the fully connected network while it is computed: the space that the images span, "
            "which is exact and cheaper, or pixels.",
            choices=dict.fromkeys(COORDINATES, ""),
        ),
        Flag("seed", "integer", "Seed of the starting point."),
        Flag(
            "seeds",
            "integer",
            "Number of starting points, with seeds from seed on; in deep_linear, of starts.",
        ),
        Flag(
            "init_scale",
            "number",
            "Factor on the Xavier uniform start; below 1 is nearer zero. In deep_linear, the norm "
            "of the initial end-to-end matrix.",
        ),
        Flag(
            "initial_params",
            "text",
            "Start from the weights in this npz file instead of a random start.",
            value="FILE",
        ),
    ),
)

DATA = Group(
    "Data",
    (
        Flag(
            "dataset",
            "choice",
            "Training data.",
            choices={name: kind.meaning for name, kind in DATASETS.items()},
        ),
        Flag(
            "data_dir",
            "text",
            "Folder with the four IDX files of the data set, gzipped or not; nothing is "
            "downloaded.",
            value="FOLDER",
        ),
        Flag(
            "examples",
            "integer",
            "Number of training images, evenly spaced in file order among the first 50,000 of "
            "MNIST or Fashion-MNIST (above that, among all 60,000), or among the 1,797 digits.",
        ),
    ),
)

RESULTS = Group(
    "Results",
    (
        Flag(
            "snapshots",
            "integer",
            "Number of evenly spaced base iterations at which parameters and accuracy are kept; "
            "all, if there are fewer.",
        ),
        OUTPUT_DIR,
        Flag(
            "resume",
            "text",
            "Run directory of a run that was cut short, which goes on from its newest checkpoint, "
            "in the same directory and with the flags that it had.",
            value="FOLDER",
        ),
        Flag(
            "checkpoint_dir",
            "text",
            "Where checkpoints lie, a folder or gs://..., instead of a folder of the run "
            "directory.",
            value="FOLDER",
        ),
        Flag(
            "checkpoint_every",
            "number",
            "Seconds between checkpoints: the next is made at the first end of a segment after "
            "that.",
        ),
    ),
)

MACHINE = Group(
    "Machine",
    (
        Flag(
            "segments",
            "integer",
            "Number of equal compiled calls, between which progress is shown: a divisor of "
            "iterations, the largest up to 100 if not given; 1 is a single call.",
        ),
        Flag(
            "mesh",
            "text",
            "Devices that a run is spread over: all there are, a number of them, or none for a "
            "single one. Starting points are divided among them if they divide evenly, else "
            "examples.",
            value="auto|none|N",
        ),
    ),
)

GROUPS = (WHAT_TO_RUN, STEPS, NETWORK, DATA, RESULTS, MACHINE)

COMMAND = "python -m experiments.main"
# Times are of two CPU cores.
EXAMPLES = (
    Example(
        f"{COMMAND} --ratios=2,5,10,20",
        "The linear network on MNIST: runs with five step sizes, their flow and its predictions; "
        "three minutes.",
    ),
    Example(
        f"{COMMAND} --dataset=digits --iterations=1000 --activation=relu",
        "A small ReLU network, without any download; a minute.",
    ),
    Example(
        f"{COMMAND} --experiment=predict --step_sizes=0.01,0.003,0.001",
        "How far apart three step sizes end, without running them; ten seconds.",
    ),
    Example(
        f"{COMMAND} --experiment=large_steps",
        "From which step size on descent leaves its flow; two minutes.",
    ),
    Example(
        f"{COMMAND} --experiment=necessity",
        "A saddle where nothing but tiny steps will do, beside its closed form; five seconds.",
    ),
)


def page() -> Page:
    """What help tells of the main command line."""
    return Page(
        command=COMMAND,
        takes="[--FLAG=VALUE ...]",
        purpose="Measures how far gradient descent on a neural network stands from its gradient "
        "flow, and writes tables, arrays and figures into a folder. Defaults are in brackets.",
        groups=GROUPS,
        defaults={flag.name: _default(flag.name) for group in GROUPS for flag in group.flags}
        | {"experiment": Configuration.experiment},
        examples=EXAMPLES,
        statuses=EXIT_STATUSES,
        more="experiments/GUIDE.md explains the figures. --helpfull lists absl's own flags too.",
    )


def _default(name: str) -> str:
    """What holds if a flag is not given: in most experiments, and in the others."""
    found = {
        experiment: default_in_words(value)
        for experiment in EXPERIMENTS
        if name not in WITHOUT_EFFECT[experiment]
        and (value := getattr(Configuration(experiment), name)) is not None
    }
    if not found:
        return ""
    usual = Counter(found.values()).most_common(1)[0][0]
    others = [f"; {each}: {text}" for each, text in found.items() if text != usual]
    return usual + "".join(others)
