"""Files written so that they are whole or not there, and read so that none can do harm.

What is read may come from strangers: nothing is unpickled, and the sizes that a file declares
are compared with what is wanted, or with the file's own, before memory is taken for them.
"""

import contextlib
import hashlib
import io
import json
import math
import os
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FORMAT = 1  # of everything in a run directory
LARGEST_JSON = 2**26  # bytes; what gf_jax writes is far below
DEEPEST_JSON = 20  # levels, likewise
LARGEST_HEADER = 2**14  # bytes of what an array says of itself; NumPy itself reads 10,000


def printable(text: object, most: int = 200) -> str:
    """A text, perhaps a stranger's, in so many letters and without commands to terminals.

    Where it has any, or line breaks, its white space becomes single spaces.
    """
    start = str(text)[: 10 * most]
    if not start.isprintable():
        start = "".join(filter(str.isprintable, " ".join(start.split())))
    return start if len(start) <= most else start[: most - 1] + "…"


def clean_label(text: object, most: int = 200) -> str:
    """A text that is printable, and that Matplotlib takes for no mathematics."""
    return printable(str(text).replace("$", ""), most)


@contextlib.contextmanager
def atomically(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder, which takes the place of ``path`` at the end.

    It is on the disk by then. If the block fails, ``path`` is as it was, and the temporary
    file is gone. The name ends as that of ``path``, since some writers go by it.
    """
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Writes an npz file with its format."""
    with atomically(path) as temporary:
        np.savez(temporary, **{"format": np.array(FORMAT), **arrays})


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file with its format."""
    with atomically(path) as temporary:
        text = json.dumps({"format": FORMAT} | content, indent=2, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file that ``write_json`` wrote.

    Raises:
      OSError: if it cannot be read.
      ValueError: if it is damaged, or of another format.
    """
    _check_regular(path)
    if path.stat().st_size > LARGEST_JSON:
        raise ValueError(f"{path.name} has more than {LARGEST_JSON:,} bytes")
    try:
        content = json.loads(
            path.read_text(encoding="utf-8"),
            object_pairs_hook=_object,
            parse_int=_number(int),
            parse_float=_number(float),
            parse_constant=_number(float),
        )
        _check_depth(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is damaged: {printable(error)}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds no object")
    check_format(path.name, content.get("format"))
    return content


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, each of whose names stands for one value."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is given twice")
    return found


def _number(kind: type) -> Callable[[str], Any]:
    """Reads numbers that are finite, and integers of no more digits than floats have."""

    def read(text: str) -> Any:
        if len(text) > 30 or not math.isfinite(number := kind(text)):
            raise ValueError(f"{printable(text, 20)} is out of range")
        return number

    return read


def _check_depth(content: object) -> None:
    """Raises ValueError on what is nested deeper than anything that is written."""
    layer = [content]
    for _ in range(DEEPEST_JSON):
        holders = [each for each in layer if isinstance(each, (dict, list))]
        layer = [each for it in holders for each in (it.values() if isinstance(it, dict) else it)]
    if layer:
        raise ValueError(f"it is nested more than {DEEPEST_JSON} deep")


def check_format(name: str, found: object) -> None:
    """Raises ValueError on any format but this version's."""
    if isinstance(found, np.ndarray) and found.ndim == 0:
        found = found.item()
    if type(found) is int and found > FORMAT:
        raise ValueError(f"{name} has format {found}, of a newer gf_jax; this one reads {FORMAT}")
    if type(found) is not int or found != FORMAT:
        raise ValueError(f"{name} has no format that is known; accepted is {FORMAT}")


def digest(arrays: Iterable[np.ndarray]) -> str:
    """SHA-256 of arrays, with their shapes and dtypes."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(f"{array.dtype.str}{array.shape}".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


class Header(NamedTuple):
    """What an array in an npz file says of itself; its data have the size that follows."""

    shape: tuple[int, ...]
    dtype: np.dtype


class Archive:
    """The arrays of an open npz file, whose headers are known and whose data are not yet read."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self._path, self._archive = path, archive
        found = archive.infolist()
        self._members = {info.filename.removesuffix(".npy"): info for info in found}
        if len(self._members) < len(found):
            raise ValueError("two arrays have the same name")
        self.headers = {name: _header(name, archive, at) for name, at in self._members.items()}

    def read(self, *names: str) -> dict[str, np.ndarray]:
        """The arrays of these names.

        Raises:
          ValueError: if one is missing or damaged.
        """
        arrays = {}
        for name in names:
            if name not in self._members:
                raise ValueError(f"{self._path.name}: {printable(name, 60)} is missing")
            with _damage(self._path), self._archive.open(self._members[name]) as file:
                arrays[name] = np.lib.format.read_array(file, allow_pickle=False)
                file.read()  # to the end, where the checksum is compared
        return arrays

    def check_stored(self) -> None:
        """Raises ValueError if arrays are larger than the file, as no file of ours declares."""
        declared = sum(info.file_size for info in self._members.values())
        if declared > self._path.stat().st_size:
            raise ValueError(f"{self._path.name} declares more bytes of arrays than it has")


@contextlib.contextmanager
def open_arrays(path: Path) -> Iterator[Archive]:
    """Opens an npz file of numbers; reads headers, and no data.

    Raises:
      OSError: if the file cannot be read.
      ValueError: if it is damaged, not an npz file, or holds anything but numbers.
    """
    _check_regular(path)
    with path.open("rb") as file:
        if file.read(6) == b"\x93NUMPY":
            raise ValueError(f"{path.name} is a single array")
        with contextlib.ExitStack() as stack:
            with _damage(path):
                archive = Archive(path, stack.enter_context(zipfile.ZipFile(file)))
            yield archive


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Whatever a parser raises on a stranger's bytes says that they are damaged."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of a parser, about what no writer of ours makes
            yield
    except Exception as error:
        reason = printable(error) or type(error).__name__
        raise ValueError(f"{path.name}: {reason}") from None


def _header(name: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Header:
    """Reads a header and compares the size that it declares with that of the member."""
    name = printable(name, 60)
    with archive.open(member) as file:
        start = io.BytesIO(file.read(LARGEST_HEADER))  # all of it, however long it says it is
    version = np.lib.format.read_magic(start)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(start)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(start)
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects, which are never loaded")
    if dtype.kind not in "biufc":
        raise ValueError(f"{name} has dtype {dtype}, which is no number")
    if min(shape, default=0) < 0:
        raise ValueError(f"{name} has shape {shape}")
    declared, held = math.prod(shape) * dtype.itemsize, member.file_size - start.tell()
    if declared != held:
        raise ValueError(f"{name} of shape {shape} has {held:,} of {declared:,} bytes")
    return Header(shape, dtype)


def _check_regular(path: Path) -> None:
    """Raises OSError on what is not there, ValueError on pipes and devices, which never end."""
    path.stat()
    if path.is_dir():
        raise IsADirectoryError(None, "is a folder", str(path))
    if not path.is_file():
        raise ValueError(f"{path.name} is no regular file")
