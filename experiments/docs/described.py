"""What the page on flags tells of each experiment, taken from where flags are described."""

import dataclasses
from typing import NamedTuple

from experiments.cli import flags
from experiments.cli.configuration import EXPERIMENTS, Configuration
from experiments.cli.effects import WITHOUT_EFFECT
from experiments.cli.usage import Flag, default_in_words, form


class Row(NamedTuple):
    """A flag of one experiment.

    Attributes:
      flag: as it is typed, such as ``--[no]flow``.
      value: what stands for its value in help, such as N; empty for a switch.
      default: as it would be typed; empty if there is none.
      meaning: one sentence or more, with the accepted names of a choice.
    """

    flag: str
    value: str
    default: str
    meaning: str


class Described(NamedTuple):
    """An experiment: its question in a few words, and its flags in the order of help."""

    question: str
    rows: tuple[Row, ...]


def experiments() -> dict[str, Described]:
    """Every experiment by its name."""
    described = [flag for group in flags.GROUPS for flag in group.flags]
    (choice,) = (flag for flag in described if flag.name == "experiment")
    return {name: Described(choice.choices[name], rows(name)) for name in EXPERIMENTS}


def rows(experiment: str) -> tuple[Row, ...]:
    """The flags that have an effect on an experiment."""
    configuration = Configuration(experiment)
    defaults = dataclasses.asdict(configuration) | {"experiment": Configuration.experiment}
    return tuple(
        _row(flag, defaults[flag.name])
        for group in flags.GROUPS
        for flag in group.flags
        if flag.name not in WITHOUT_EFFECT[experiment]
    )


def _row(flag: Flag, default: object) -> Row:
    name, _, value = form(flag).partition("=")
    told = "" if default is None else default_in_words(default)
    return Row(name, value, told, _meaning(flag))


def _meaning(flag: Flag) -> str:
    accepted = [f"{name} ({text})" if text else name for name, text in flag.choices.items()]
    if not accepted or flag.name == "experiment":  # experiments have sections of their own
        return flag.meaning
    return f"{flag.meaning} Accepted: {', '.join(accepted)}."
