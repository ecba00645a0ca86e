"""On which experiments every flag has an effect, and what it is if it is not given."""

_OF_THEORY = ("along", "epsilon", "depths")
_OF_MANY_STARTS = ("seeds", "mesh")
_OF_NETWORKS = ("network", "activation", "loss", "initial_params", "coordinates")
_OF_STEPS = ("step_size", "step_sizes", "ratios", "iterations", "snapshots")
OF_DESCENT = ("arithmetic", "segments")
_OF_BATCHES = ("batch_size", "batch_seed")
_OF_METHODS = ("momentum", "nesterov", *_OF_BATCHES)
_OF_CHECKPOINTS = ("checkpoint_dir", "checkpoint_every")
_OF_DATA = ("dataset", "data_dir", "examples")
_OF_THE_START = ("init_scale", "seed", "widths")

# Flags that say nothing about an experiment; to give one is a mistake.
WITHOUT_EFFECT: dict[str, tuple[str, ...]] = {
    "paper": _OF_THEORY,
    "rounding": (*_OF_THEORY, *_OF_MANY_STARTS, *_OF_BATCHES, "arithmetic"),
    "predict": (
        *(*_OF_THEORY, *_OF_MANY_STARTS, *OF_DESCENT, *_OF_BATCHES),
        *("snapshots", "flow"),
    ),
    "large_steps": (*_OF_THEORY, *_OF_MANY_STARTS, *_OF_METHODS, "ratios", "flow"),
    "curvature": (
        *("epsilon", "depths", "ratios", "step_sizes", "flow"),
        *(*_OF_MANY_STARTS, *_OF_METHODS),
    ),
    "bounds": (
        *("along", "depths", "ratios", "step_sizes", "flow"),
        *(*_OF_MANY_STARTS, *_OF_METHODS),
    ),
    "near_zero": (
        *_OF_METHODS,
        *("along", "epsilon", *_OF_MANY_STARTS, "network", "initial_params", "flow"),
        "coordinates",
        *_OF_STEPS,
        *OF_DESCENT,
    ),
    "deep_linear": ("along", "flow", "mesh", *_OF_NETWORKS, *OF_DESCENT, *_OF_METHODS),
    "necessity": (
        *("along", "depths", *_OF_MANY_STARTS, "flow"),
        *(*_OF_METHODS, *_OF_NETWORKS),
        *_OF_STEPS,
        *OF_DESCENT,
        *_OF_DATA,
        *_OF_THE_START,
    ),
}
# Experiments that can be resumed; only they write checkpoints.
RESUMABLE = ("paper", "rounding")
for _experiment in WITHOUT_EFFECT:
    if _experiment not in RESUMABLE:
        WITHOUT_EFFECT[_experiment] += _OF_CHECKPOINTS
# Experiments with hidden layers of one width, in any number, and its default.
ONE_WIDTH = {"near_zero": (50,), "deep_linear": (2,)}

# Of flags whose default is the same wherever they have an effect.
DEFAULTS: dict[str, object] = {
    "arithmetic": "compensated",
    "flow": True,
    "dataset": "auto",
    "examples": 1_000,
    "network": "fully_connected",
    "loss": "cross_entropy",
    "step_size": 0.001,
    "iterations": 10_000,
    "along": "flow",
    "mesh": "auto",
    "checkpoint_every": 30.0,
}
FEWER_SNAPSHOTS = 40  # where the curvature is found at each

# Of those that have another in some experiments.
OWN_DEFAULTS: dict[str, dict[str, object]] = {
    "paper": {"seeds": 1},
    "near_zero": {"depths": (2, 3, 4, 5)},
    "deep_linear": {
        "depths": (2, 3, 4),
        "seeds": 1_000,
        "step_size": 0.1,
        "ratios": (2, 4),
        "iterations": 400,
        "init_scale": 0.01,
        "epsilon": 1e-3,
    },
    "bounds": {"epsilon": 1e-3},
    "necessity": {"epsilon": 1e-2},
}
