"""Stacks of points of weight space, which may be too large for memory.

A stack is a pytree whose leaves have an axis of times in front. A large one lies in a temporary
file without a name, which is gone with its arrays, in the folder of ``tempfile``, which the
environment variable TMPDIR names. Stacks are worked on in blocks of consecutive times; a small one
is a single block.
"""

import math
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

PyTree = Any

LARGE = 2**28  # bytes of a stack, beyond which it lies on the disk
BLOCK = 2**25  # bytes that are worked on at a time
ALIGNED = 64  # bytes


def empty(point: PyTree, times: int) -> PyTree:
    """A stack to be filled; on the disk if it is large.

    Args:
      point: arrays of one time, or their shapes.
      times: length of the axis in front.

    Raises:
      OSError: if there is no room on the disk; names the folder and the fix.
    """
    leaves, structure = jax.tree.flatten(point)
    return jax.tree.unflatten(
        structure, _arrays([((times, *leaf.shape), leaf.dtype) for leaf in leaves])
    )


def kept(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Arrays of any shapes, on the disk if they are large.

    Raises:
      OSError: as ``empty``.
    """
    if sum(array.nbytes for array in arrays) <= LARGE:
        return list(arrays)
    copies = _arrays([(array.shape, array.dtype) for array in arrays])
    for copy, array in zip(copies, arrays, strict=True):
        copy[...] = array
    release(copies)
    return copies


def _arrays(shapes: Sequence[tuple[tuple[int, ...], Any]]) -> list[np.ndarray]:
    """Arrays of these shapes and dtypes, in one file if they are large."""
    sizes = [math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in shapes]
    if sum(sizes) <= LARGE:
        return [np.empty(*each) for each in shapes]
    # One file for all: every file that is mapped is kept open.
    ends = np.cumsum([-(-size // ALIGNED) * ALIGNED for size in sizes]).tolist()
    file = _file(ends[-1])
    return [
        np.ndarray(*each, buffer=file, offset=start)
        for each, start in zip(shapes, [0, *ends], strict=False)
    ]


def blocks(*stacks: PyTree) -> Iterator[slice]:
    """The times of every block of stacks that are worked on together.

    What of them is on the disk leaves memory when the block is done.
    """
    point = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), stacks)
    for at in blocks_of(point, len(jax.tree.leaves(stacks)[0])):
        yield at
        release(*stacks)


def blocks_of(point: PyTree, times: int) -> Iterator[slice]:
    """The times of every block of a stack of points like this one; of no times an empty block."""
    leaves = jax.tree.leaves(point)
    whole = sum(np.dtype(leaf.dtype).itemsize * math.prod(np.shape(leaf)) for leaf in leaves)
    length = max(1, BLOCK // max(whole, 1))
    for start in range(0, max(times, 1), length):
        yield slice(start, min(start + length, times))


def size(stack: PyTree) -> int:
    """Bytes of all leaves."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(stack) if hasattr(leaf, "nbytes"))


def take(stack: PyTree, at: slice | int) -> PyTree:
    """Some times of a stack, or one."""
    return jax.tree.map(lambda leaf: leaf[at], stack)


def put(stack: PyTree, at: slice, block: PyTree) -> None:
    """Fills some times of a stack, from which what is on the disk then leaves memory."""
    for leaf, part in zip(jax.tree.leaves(stack), jax.tree.leaves(block), strict=True):
        leaf[at] = part
    release(stack)


def along(function: Callable[..., PyTree], *stacks: PyTree) -> PyTree:
    """What a function makes of stacks, block by block, as a stack.

    Args:
      function: maps blocks of all stacks to arrays with as many times.
      stacks: of the same times.
    """
    times, whole = len(jax.tree.leaves(stacks)[0]), None
    for at in blocks(*stacks):
        if at.stop - at.start == times:
            return function(*stacks)
        found = function(*(take(stack, at) for stack in stacks))
        if whole is None:
            whole = empty(jax.tree.map(lambda leaf: leaf[0], found), times)
        put(whole, at, found)
    return whole


def release(*stacks: PyTree) -> None:
    """What of stacks is on the disk leaves the memory of this process."""
    files = {id(file): file for leaf in jax.tree.leaves(stacks) if (file := _file_of(leaf))}
    for file in files.values():
        if hasattr(mmap, "MADV_DONTNEED"):  # elsewhere the system decides
            file.madvise(mmap.MADV_DONTNEED)


def _file(size: int) -> mmap.mmap:
    """A file of so many bytes, without a name, as memory."""
    with tempfile.TemporaryFile() as file:
        try:
            # Room is taken now: a full disk would end the process later, without a word.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:  # macOS and Windows only say how long the file is
                file.truncate(size)
        except OSError as error:
            raise OSError(
                error.errno,
                f"{size / 2**30:.3g} GiB of snapshots have no room in {tempfile.gettempdir()} "
                f"({error.strerror}); name a folder with room by TMPDIR, or take fewer snapshots",
            ) from None
        return mmap.mmap(file.fileno(), size)


def _file_of(leaf: Any) -> mmap.mmap | None:
    while isinstance(leaf, np.ndarray):
        leaf = leaf.base
    return leaf if isinstance(leaf, mmap.mmap) else None
