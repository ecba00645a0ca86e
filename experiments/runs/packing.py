"""Pieces of a run as bytes: what a checkpoint holds, and what is said of it.

The arrays are the bytes of all of them, one after another: what is read in one piece fails in
one piece, and may be empty. Shapes and dtypes are JSON, with a digest of all of it.

What lies in parts on several processes has a row of bytes for every start, so that each process
writes the rows that it has, and any number of them can read them. Each row has its own digest.
"""

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding

from experiments.process import peers
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


class Rows(NamedTuple):
    """Arrays in parts on several processes, as bytes, a row for each start.

    Attributes:
      content: shape (starts, bytes).
      kinds: dtype and shape of every array.
    """

    content: jax.Array
    kinds: list[tuple[str, list[int]]]


def copied(state: Sequence[jax.Array]) -> list[np.ndarray] | Rows:
    """A copy of a state, as rows if no process has the whole of it."""
    if all(leaf.is_fully_addressable or leaf.is_fully_replicated for leaf in state):
        return [np.array(leaf) for leaf in state]
    return rows_of(state)


def rows_of(state: Sequence[jax.Array]) -> Rows:
    """A copy of a state that is split by starts, their rows where their arrays are."""
    kinds = [(leaf.dtype.str, list(leaf.shape)) for leaf in state]
    sharding = state[0].sharding
    assert isinstance(sharding, NamedSharding)

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None
        arrays = [
            next(np.asarray(s.data) for s in leaf.addressable_shards if s.index[0] == index[0])
            for leaf in state
        ]
        return np.concatenate([_bytes(a, len(a)) for a in arrays], axis=1)

    width = sum(_widths(kinds))
    return Rows(jax.make_array_from_callback((len(state[0]), width), sharding, part), kinds)


def _widths(kinds: Sequence[tuple[str, list[int]]]) -> list[int]:
    """Bytes of a row that are of each of the arrays."""
    return [np.dtype(dtype).itemsize * math.prod(shape[1:]) for dtype, shape in kinds]


def _bytes(array: np.ndarray, rows: int) -> np.ndarray:
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return flat.reshape(rows, flat.size // rows)


def pack_rows(record: Record, rows: Rows, **more: str) -> tuple[dict[str, Any], jax.Array]:
    """As ``pack``, of rows in the place of the arrays; all processes call it."""
    own = {
        shard.index[0].indices(len(rows.content))[0] + number: files.digest([row])
        for shard in rows.content.addressable_shards
        for number, row in enumerate(np.asarray(shard.data))
    }
    said = [json.loads(each) for each in peers.exchange(json.dumps(own), interruptible=False)]
    digests = {int(row): digest for each in said for row, digest in each.items()}
    about = _about(record, rows.kinds, **more) | {"rows": [digests[row] for row in sorted(digests)]}
    return about | {"digest": _digest(about, np.zeros(0, np.uint8))}, rows.content


def pack(record: Record, **more: str) -> tuple[dict[str, Any], np.ndarray]:
    """What is said of a record, and of whoever wrote it, as JSON; and its arrays as bytes."""
    kinds = [(leaf.dtype.str, list(leaf.shape)) for leaf in record.leaves]
    about = _about(record, kinds, **more)
    content = np.concatenate(
        [np.ascontiguousarray(leaf).reshape(-1).view(np.uint8) for leaf in record.leaves]
    )
    return about | {"digest": _digest(about, content)}, content


def _about(record: Record, kinds: Sequence[tuple[str, list[int]]], **more: str) -> dict[str, Any]:
    return {
        "format": files.FORMAT,
        **more,
        "label": record.label,
        "done": record.done,
        "seconds": record.seconds,
        "leaves": [list(kind) for kind in kinds],
    }


def shape(about: dict[str, Any]) -> tuple[int, ...]:
    """Shape of the bytes of the arrays that are spoken of."""
    if "rows" in about:
        return len(about["rows"]), sum(_widths(about["leaves"]))
    return (sum(dtype.itemsize * math.prod(shape) for dtype, shape in _kinds(about)),)


def unpack(about: dict[str, Any], content: np.ndarray) -> Record:
    """The record that ``pack`` was given.

    Raises:
      Exception: of any kind, if these are not what it returned.
    """
    if "rows" in about:
        return _unpack_rows(about, content)
    if about["digest"] != _digest({n: v for n, v in about.items() if n != "digest"}, content):
        raise ValueError("its contents are not what was written")
    leaves, start = [], 0
    for dtype, shape in _kinds(about):
        stop = start + dtype.itemsize * math.prod(shape)
        leaves.append(content[start:stop].copy().view(dtype).reshape(shape))
        start = stop
    return Record(about["label"], about["done"], about["seconds"], leaves)


def _unpack_rows(about: dict[str, Any], content: np.ndarray) -> Record:
    said = {n: v for n, v in about.items() if n != "digest"}
    rows = [files.digest([row]) for row in content]
    if about["rows"] != rows or about["digest"] != _digest(said, np.zeros(0, np.uint8)):
        raise ValueError("its contents are not what was written")
    leaves, start = [], 0
    for width, (dtype, shape) in zip(_widths(about["leaves"]), _kinds(about), strict=True):
        part = np.ascontiguousarray(content[:, start : start + width])
        leaves.append(part.reshape(-1).view(dtype).reshape(shape))
        start += width
    return Record(about["label"], about["done"], about["seconds"], leaves)


def _kinds(about: dict[str, Any]) -> list[tuple[np.dtype, tuple[int, ...]]]:
    return [(np.dtype(dtype), tuple(shape)) for dtype, shape in about["leaves"]]


def _digest(about: dict[str, Any], content: np.ndarray) -> str:
    """Of a checkpoint, what is said of it included."""
    text = np.frombuffer(json.dumps(about, sort_keys=True).encode(), np.uint8)
    return files.digest([text, content])
