"""Pieces of a run as bytes: what a checkpoint holds, and what is said of it.

The arrays are the bytes of all of them, one after another: what is read in one piece fails in
one piece, and may be empty. Shapes and dtypes are JSON, with a digest of all of it.
"""

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gf_jax.study import files


class WriteError(Exception):
    """A checkpoint that could not be written."""


class Record(NamedTuple):
    """A piece of a run.

    Attributes:
      label: what it is a piece of.
      done: whether nothing of that label follows.
      seconds: that it took.
      leaves: its arrays.
    """

    label: str
    done: bool
    seconds: float
    leaves: Sequence[np.ndarray]


def pack(record: Record, **more: str) -> tuple[dict[str, Any], np.ndarray]:
    """What is said of a record, and of whoever wrote it, as JSON; and its arrays as bytes."""
    about: dict[str, Any] = {
        "format": files.FORMAT,
        **more,
        "label": record.label,
        "done": record.done,
        "seconds": record.seconds,
        "leaves": [[leaf.dtype.str, list(leaf.shape)] for leaf in record.leaves],
    }
    content = np.concatenate(
        [np.ascontiguousarray(leaf).reshape(-1).view(np.uint8) for leaf in record.leaves]
    )
    return about | {"digest": _digest(about, content)}, content


def size(about: dict[str, Any]) -> int:
    """Number of bytes of the arrays that are spoken of."""
    return sum(dtype.itemsize * math.prod(shape) for dtype, shape in _kinds(about))


def unpack(about: dict[str, Any], content: np.ndarray) -> Record:
    """The record that ``pack`` was given.

    Raises:
      Exception: of any kind, if these are not what it returned.
    """
    if about["digest"] != _digest({n: v for n, v in about.items() if n != "digest"}, content):
        raise ValueError("its contents are not what was written")
    leaves, start = [], 0
    for dtype, shape in _kinds(about):
        stop = start + dtype.itemsize * math.prod(shape)
        leaves.append(content[start:stop].copy().view(dtype).reshape(shape))
        start = stop
    return Record(about["label"], about["done"], about["seconds"], leaves)


def _kinds(about: dict[str, Any]) -> list[tuple[np.dtype, tuple[int, ...]]]:
    return [(np.dtype(dtype), tuple(shape)) for dtype, shape in about["leaves"]]


def _digest(about: dict[str, Any], content: np.ndarray) -> str:
    """Of a checkpoint, what is said of it included."""
    text = np.frombuffer(json.dumps(about, sort_keys=True).encode(), np.uint8)
    return files.digest([text, content])
