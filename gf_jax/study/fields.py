"""What the fields of records hold, declared once, and the one check of records by that.

Files may come from strangers, and no number of theirs is used before it is known to be one that
a record can hold. So every record that is read back has a declaration of all of its fields, and
``build`` makes the record of what was found, or says which field is wrong.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from types import EllipsisType
from typing import Any, NamedTuple

import numpy as np

from gf_jax.study.files import clean_label

FLOATS = ("float16", "float32", "float64")
INTEGERS = ("int32", "int64")
BOOLEANS = ("bool",)
MOST = 2**63 - 1  # of an integer

# Length of every axis by its name; None where records have no such axis. An axis that is not
# there gets the length of the first array that has it.
Sizes = dict[str, int | None]


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Numbers of one field.

    Attributes:
      axes: names of its axes, or their lengths; ``...`` at the end stands for any more. None
        is a single number.
      dtypes: accepted ones.
      least, most: of every entry. So there are infinities only where these are infinite.
      unknown: whether an entry may be NaN.
      ascending: whether each is larger than the one before.
      listed: whether the field is a tuple of Python's numbers.
    """

    axes: tuple[str | int | EllipsisType, ...] = ()
    dtypes: tuple[str, ...] = FLOATS
    least: float = -np.inf
    most: float = np.inf
    unknown: bool = False
    ascending: bool = False
    listed: bool = False


class Text(NamedTuple):
    """A text, of which so many letters are kept."""

    most: int = 300


class Texts(NamedTuple):
    """A tuple of sentences, of which so many are kept, and so many letters of each."""

    most: int = 50
    each: int = 500


class Record(NamedTuple):
    """A class whose fields are stored, and what each may hold; with a default it may be None."""

    kind: type
    fields: "Mapping[str, Numbers | Text | Texts | Record]"


def declare(kind: Any, **fields: "Numbers | Text | Texts | Record") -> Record:
    """The declaration of a record; all of its fields have to be named, in their order."""
    names = tuple(field.name for field in dataclasses.fields(kind))
    assert tuple(fields) == names, f"{kind.__name__} has the fields {names}"
    return Record(kind, fields)


def build(record: Record, found: Mapping[str, Any], sizes: Sizes, name: str = "") -> Any:
    """A record of what was found, which may be a stranger's.

    Args:
      record: its declaration.
      found: arrays, numbers and texts by field; of a record in it, a mapping again. What is not
        there, or None, gets its default.
      sizes: length of every axis; those that are found are added.
      name: of the record, in front of those of its fields, in messages.

    Raises:
      ValueError: if a field is missing or not what was declared; names the field.
    """
    values, not_needed = {}, optional(record.kind)
    for field, declared in record.fields.items():
        value = found.get(field)
        if value is not None:
            values[field] = _value(name + field, value, declared, sizes)
        elif field not in not_needed:
            raise ValueError(f"{name}{field} is missing")
    return record.kind(**values)


def check_numbers(name: str, values: np.ndarray, declared: Numbers, sizes: Sizes) -> None:
    """Raises ValueError, which names the field, unless an array is what was declared."""
    wanted = _shape(values.shape, declared, sizes)
    if values.shape != wanted:
        raise ValueError(f"{name} is {values.dtype} of shape {values.shape}, wanted is {wanted}")
    if values.dtype.str not in [np.dtype(each).str for each in declared.dtypes]:
        accepted = " or ".join(declared.dtypes)
        raise ValueError(f"{name} is {values.dtype} of shape {values.shape}, wanted is {accepted}")
    right = (values >= _bound(declared.least)) & (values <= _bound(declared.most))
    if declared.unknown:
        right |= np.isnan(values)
    if not right.all():
        wrong = values[~right].ravel()[0]
        raise ValueError(
            f"{name} holds {wrong:.6g}, accepted is {declared.least:.6g} to {declared.most:.6g}"
        )
    if declared.ascending and (values[1:] <= values[:-1]).any():
        raise ValueError(f"{name} is not ascending")


def _value(name: str, value: Any, declared: Any, sizes: Sizes) -> Any:
    """The value of a field as the record has it."""
    if isinstance(declared, Record):
        if not isinstance(value, Mapping):
            raise ValueError(f"{name} is missing")
        return build(declared, value, sizes, f"{name}.")
    if isinstance(declared, Text):
        return clean_label(_text(name, value), declared.most)
    if isinstance(declared, Texts):
        found = _text(name, value).split("\n") if isinstance(value, np.ndarray) else value
        return tuple(clean_label(each, declared.each) for each in found[: declared.most])
    array = np.asarray(value)
    if declared.listed and array.ndim != 1:
        raise ValueError(f"{name} is of shape {array.shape}, wanted is a list")
    check_numbers(name, array, declared, sizes)
    if declared.listed:
        return tuple(array.tolist())
    return array.item() if array.ndim == 0 else array


def encode(text: str | Sequence[str]) -> np.ndarray:
    """The UTF-8 bytes of a text, or of sentences with a line for each."""
    whole = text if isinstance(text, str) else "\n".join(" ".join(t.split()) for t in text)
    return np.frombuffer(whole.encode(errors="replace"), np.uint8)


def _text(name: str, value: object) -> str:
    """A text, or the one whose UTF-8 bytes an array holds."""
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype == np.uint8:
        return value.tobytes().decode()
    if not isinstance(value, str):
        raise ValueError(f"{name} is no text")
    return value


def _shape(found: tuple[int, ...], declared: Numbers, sizes: Sizes) -> tuple[int, ...]:
    """The shape that was declared; an axis of unknown length has that which is found."""
    wanted: list[int] = []
    for axis in declared.axes:
        if isinstance(axis, EllipsisType):
            return (*wanted, *found[len(wanted) :])
        if isinstance(axis, str) and axis not in sizes and len(wanted) < len(found):
            sizes[axis] = found[len(wanted)]
        length = sizes.get(axis, 0) if isinstance(axis, str) else axis
        wanted += [] if length is None else [length]
    return tuple(wanted)


def _bound(value: float) -> Any:
    """A bound in float64, so that numbers of lower precision are not compared with it rounded."""
    return np.float64(value) if isinstance(value, float) else value


def optional(kind: Any) -> Sequence[str]:
    """Names of the fields of a record that have a default."""
    return [f.name for f in dataclasses.fields(kind) if f.default is not dataclasses.MISSING]
