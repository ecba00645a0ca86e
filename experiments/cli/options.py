"""What a program can be told: fields of frozen dataclasses, each of which is a flag.

A field says all there is to know of it: its name, its kind by its annotation, what it means, what
it is if it is not given, what is accepted. Classes of options inherit from each other, and each
checks its own fields and how they go together. So flags, help and mistakes follow from them.
"""

import dataclasses
import math
import types
import typing
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

from experiments.cli import usage
from experiments.cli.usage import in_words
from experiments.process.mistakes import LARGEST, SMALLEST, UsageError, expand

PATHS = ("FILE", "FOLDER")  # values that help calls so are paths
KINDS: dict[Any, usage.Kind] = {
    int: "integer",
    float: "number",
    bool: "switch",
    str: "text",
    tuple[int, ...]: "integers",
    tuple[float, ...]: "numbers",
    tuple[str, ...]: "texts",
}
# Headings of help, in its order; others follow.
TITLES = (
    "What to run",
    "Step sizes and time",
    "Network and starting point",
    "Data",
    "Results",
    "Machine",
)


class Option(NamedTuple):
    """What is known of a field besides its name, its kind and its default.

    Attributes:
      meaning: one or two sentences, with the unit.
      under: heading of help.
      value: what help calls the value; FILE and FOLDER are paths, made absolute.
      choices: accepted values, each with its meaning or an empty text; none are any.
      accepted: says of a value what is accepted instead, or nothing if it is right.
      address: of a path: whether it may be an address such as ``gs://...``, which stays.
    """

    meaning: str
    under: str
    value: str = ""
    choices: Mapping[str, str] = types.MappingProxyType({})
    accepted: Callable[[Any], str] = lambda value: ""
    address: bool = False


def option(meaning: str, default: Any, under: str, **more: Any) -> Any:
    """A field of options, see ``Option`` for what it may say besides."""
    return dataclasses.field(default=default, metadata={"option": Option(meaning, under, **more)})


def positive(value: int) -> str:
    """Accepts positive integers."""
    return "" if value >= 1 else "accepted is a positive integer"


def positive_number(value: float) -> str:
    """Accepts positive numbers of which float32 holds products."""
    if not (math.isfinite(value) and value > 0):
        return "accepted is a positive finite number"
    inside = SMALLEST <= value <= LARGEST
    return "" if inside else f"accepted is {SMALLEST:g} to {LARGEST:g}"


def seed(value: int) -> str:
    """Accepts seeds of random numbers."""
    return "" if 0 <= value < 2**32 else "accepted is an integer from 0 to 2^32 - 1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What a program is told; fields are made by ``option``.

    A class may change the default of a field that it inherits, ``name: kind = value``, or all of
    it by ``option`` anew.

    Raises:
      UsageError: on values or combinations that are not accepted.
    """

    def __post_init__(self) -> None:
        for name, each in described(type(self)).items():
            value = getattr(self, name)
            if value is None:
                continue
            if each.choices and value not in each.choices:
                accepted = f"unknown; accepted are {', '.join(each.choices)}"
            else:
                accepted = each.accepted(value)
            if accepted:
                raise UsageError(f"--{name}={in_words(value)}: {accepted}")
        self.check()

    @classmethod
    def of(cls, **given: Any) -> Self:
        """The options of what was given; None is not given.

        Raises:
          UsageError: on what is not accepted, also if it has no effect beside the others.
        """
        told = located(cls, {name: value for name, value in given.items() if value is not None})
        options = cls(**cls.implied(told))
        for name, reason in options.unused().items():
            if name in told:
                raise UsageError(f"--{name}: {reason}")
        return options

    @classmethod
    def implied(cls, given: dict[str, Any]) -> dict[str, Any]:
        """What was given, and what follows from it for other fields than those."""
        return given

    def check(self) -> None:
        """Raises UsageError if fields do not go together."""

    def unused(self) -> dict[str, str]:
        """Fields that have no effect beside the others, each with the reason and the fix."""
        return {}

    def values(self) -> dict[str, Any]:
        """All fields by name, None where they have no effect."""
        unused = self.unused()
        return {
            name: None if name in unused else getattr(self, name) for name in described(type(self))
        }


def described(kind: type[Options]) -> dict[str, Option]:
    """The options of a class by name, each as the nearest class says it that does."""
    found: dict[str, Option] = {}
    for field in dataclasses.fields(kind):
        declared = (vars(each).get("__dataclass_fields__", {}) for each in kind.__mro__)
        metadata = (fields[field.name].metadata for fields in declared if field.name in fields)
        found[field.name] = next(each["option"] for each in metadata if "option" in each)
    return found


def kinds(kind: type[Options]) -> dict[str, Any]:
    """The annotations of the options of a class by name."""
    hints = typing.get_type_hints(kind)
    return {name: hints[name] for name in described(kind)}


def fits(value: object, kind: Any) -> bool:
    """Whether a value is of a kind such as int, int | None or tuple[int, ...] | None."""
    if isinstance(kind, types.UnionType):
        return any(fits(value, each) for each in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        each = typing.get_args(kind)[0]
        return isinstance(value, tuple) and all(fits(entry, each) for entry in value)
    return type(value) is kind or (kind is float and type(value) is int)


def located(kind: type[Options], values: dict[str, Any]) -> dict[str, Any]:
    """Values with every path among them absolute; addresses stay where they are accepted.

    Raises:
      UsageError: as ``expand``.
    """
    paths = {
        name: str(expand(name, values[name]))
        for name, each in described(kind).items()
        if each.value in PATHS and name in values and not (each.address and "://" in values[name])
    }
    return values | paths


def flag(kind: type[Options], name: str) -> usage.Flag:
    """The flag of an option."""
    each, hint = described(kind)[name], kinds(kind)[name]
    if isinstance(hint, types.UnionType):
        (hint,) = (part for part in typing.get_args(hint) if part is not types.NoneType)
    shape = "choice" if each.choices else KINDS[hint]
    return usage.Flag(name, shape, each.meaning, each.value, each.choices)


def groups(programs: Mapping[str, type[Options]]) -> tuple[usage.Group, ...]:
    """The flags of programs under their headings; where one means another thing, it is said."""
    found: dict[str, dict[str, usage.Flag]] = {title: {} for title in TITLES}
    for name, (title, meanings) in _meanings(programs).items():
        first, *others = meanings
        kind = programs[meanings[first][0]]
        meaning = " ".join(
            [first, *(f"In {' and '.join(meanings[each])}: {each}" for each in others)]
        )
        found.setdefault(title, {})[name] = flag(kind, name)._replace(meaning=meaning)
    return tuple(
        usage.Group(title, tuple(flags.values())) for title, flags in found.items() if flags
    )


def _meanings(
    programs: Mapping[str, type[Options]],
) -> dict[str, tuple[str, dict[str, list[str]]]]:
    """Of every option its heading, and the programs by what it means in them."""
    found: dict[str, tuple[str, dict[str, list[str]]]] = {}
    for program, kind in programs.items():
        for name, each in described(kind).items():
            _, meanings = found.setdefault(name, (each.under, {}))
            meanings.setdefault(each.meaning, []).append(program)
    return found


def defaults(programs: Mapping[str, type[Options]]) -> dict[str, str]:
    """What holds if a flag is not given: in most programs that have it, and in the others."""
    found: dict[str, dict[str, str]] = {}
    for program, kind in programs.items():
        for name, value in kind.of().values().items():
            if value is not None:
                found.setdefault(name, {})[program] = in_words(value)
    return {name: _usual(words) for name, words in found.items()}


def _usual(words: dict[str, str]) -> str:
    usual = Counter(words.values()).most_common(1)[0][0]
    others = [f"; {program}: {text}" for program, text in words.items() if text != usual]
    return usual + "".join(others)
