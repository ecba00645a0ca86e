"""The experiments: each is a module, or a folder, that holds all that is its own.

A new one is a module with an ``EXPERIMENT``, named here in one line. Help loads all of them, so
what is slow to load is loaded by those who call it.
"""

import importlib
from typing import Any

from experiments.cli import options, usage
from experiments.cli.experiment import Experiment
from experiments.cli.options import Options
from experiments.process.mistakes import UsageError

# In the order of help; the first runs if none is named.
MODULES = {
    "paper": "experiments.studies.paper",
    "rounding": "experiments.studies.rounding",
    "predict": "experiments.studies.predict",
    "draws": "experiments.studies.draws",
    "large_steps": "experiments.studies.large_steps",
    "edge": "experiments.studies.edge",
    "curvature": "experiments.studies.curvature",
    "bounds": "experiments.studies.bounds",
    "near_zero": "experiments.studies.near_zero",
    "deep_linear": "experiments.studies.deep_linear",
    "necessity": "experiments.studies.necessity",
}


def load(name: str) -> Experiment:
    """The experiment of a name.

    Raises:
      UsageError: if there is none.
    """
    if name not in MODULES:
        raise UsageError(f"--experiment={name}: unknown; accepted are {', '.join(MODULES)}")
    return importlib.import_module(MODULES[name]).EXPERIMENT


def flags() -> tuple[usage.Group, ...]:
    """The flags of all experiments, and the one that chooses, under their headings."""
    experiments = [load(name) for name in MODULES]
    choices = {each.name: each.studies for each in experiments}
    chosen = usage.Flag("experiment", "choice", "What is studied.", choices=choices)
    first, *rest = options.groups(_options())
    return (first._replace(flags=(chosen, *first.flags)), *rest)


def defaults() -> dict[str, str]:
    """What holds if a flag is not given, in words."""
    return {"experiment": next(iter(MODULES))} | options.defaults(_options())


def chosen(given: dict[str, Any]) -> tuple[Experiment, Options]:
    """The experiment and its options, of the flags that were given.

    Raises:
      UsageError: on flags that are not accepted, or have no effect on this experiment.
    """
    told = dict(given)
    experiment = load(told.pop("experiment", next(iter(MODULES))))
    users: dict[str, list[str]] = {}
    for user, kind in _options().items():
        for name in options.described(kind):
            users.setdefault(name, []).append(user)
    for name in (name for name in users if name in told and experiment.name not in users[name]):
        raise UsageError(
            f"--{name}: has no effect on --experiment={experiment.name}, but on "
            f"{', '.join(users[name])}; drop one of the two flags"
        )
    return experiment, experiment.options.of(**told)


def _options() -> dict[str, type[Options]]:
    return {name: load(name).options for name in MODULES}
