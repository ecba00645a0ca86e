"""What the page on flags tells of each experiment, taken from where flags are described."""

from typing import NamedTuple

from experiments import studies
from experiments.cli import options
from experiments.cli.usage import Flag, form, in_words


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
    choice = Row("--experiment", "NAME", next(iter(studies.MODULES)), "What is studied.")
    return {
        name: Described(studies.load(name).studies, (choice, *rows(name)))
        for name in studies.MODULES
    }


def rows(experiment: str) -> tuple[Row, ...]:
    """The flags that have an effect on an experiment."""
    kind = studies.load(experiment).options
    defaults = kind.of().values()
    return tuple(
        _row(flag, defaults[flag.name])
        for group in options.groups({experiment: kind})
        for flag in group.flags
    )


def _row(flag: Flag, default: object) -> Row:
    name, _, value = form(flag).partition("=")
    told = "" if default is None else in_words(default)
    return Row(name, value, told, _meaning(flag))


def _meaning(flag: Flag) -> str:
    accepted = [f"{name} ({text})" if text else name for name, text in flag.choices.items()]
    if not accepted:
        return flag.meaning
    return f"{flag.meaning} Accepted: {', '.join(accepted)}."
