"""Checkpoints: arrays on a disk or in a bucket, kept by orbax.

A run leaves a sequence of records behind, numbered from 0, which are written once and kept
until it is complete: its segments, its flows. Beside the newest ones lies the state from which
descent goes on; of states the last few are kept. Both are written in the background, and each
is there as a whole or not at all.

    history/<number>/arrays, about    what was computed
    state/<number>/arrays, about      the state behind it

``about`` is JSON: format, run, label, whether nothing of that label follows, shapes and dtypes,
and a digest of all of it. The arrays are the bytes of all of them, without a structure, so that
nothing that is read here names a type, or is called.
"""

import contextlib
import json
import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from experiments.configuration import UsageError
from gf_jax import files

FOLDER = "checkpoints"  # in the run directory, unless the user names another
NAME = "bytes"
STATES = 3  # that are kept: the newest, and two to fall back to

# What orbax has to tell is told here, in a line.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)


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


class Kept(NamedTuple):
    """What checkpoints hold.

    Attributes:
      records: the pieces of the run, in order.
      state: behind the last of them, None if that is done.
      damage: what had to be left out, in words.
    """

    records: list[Record]
    state: list[np.ndarray] | None
    damage: list[str]


class DamageError(Exception):
    """A checkpoint that is not what was written."""


class WriteError(Exception):
    """A checkpoint that could not be written."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
      folder: where they lie, a path or ``gs://...``.
      run: a text that identifies the run, as another one may have left its own there.

    Raises:
      WriteError: if there can be none.
    """

    def __init__(self, folder: str, run: str) -> None:
        self._run = run
        with _failure():
            self._folder = epath.Path(folder)
            self._history = _manager(self._folder / "history", None)
            self._states = _manager(self._folder / "state", STATES)

    @property
    def used(self) -> bool:
        """Whether there are any."""
        return bool(self._history.all_steps() or self._states.all_steps())

    def write(self, number: int, record: Record, state: Sequence[np.ndarray] | None) -> None:
        """Begins to write a record, and the state behind it; ``wait`` tells how that ended."""
        with _failure():
            if number in self._history.all_steps():  # whose state could not be written
                self._history.delete(number)
            self._save(self._history, number, record)
            if state is not None:
                self._save(self._states, number, record._replace(leaves=state))

    def wait(self) -> None:
        """Waits until all that was begun is written.

        Raises:
          WriteError: if it could not be.
        """
        with _failure():
            self._history.wait_until_finished()
            self._states.wait_until_finished()
            self._history.check_for_errors()
            self._states.check_for_errors()

    def read(self) -> Kept:
        """All records up to the newest from which the run can go on; later ones are removed.

        Raises:
          UsageError: if they are of a newer version, or of another run.
        """
        records, damage = self._records()
        while records and not records[-1].done:
            try:
                _, leaves = self._load(self._states, len(records) - 1)
            except DamageError as error:
                damage.append(str(error))
                records.pop()
                continue
            self._forget(len(records))
            return Kept(records, leaves, damage)
        self._forget(len(records))
        return Kept(records, None, damage)

    def remove(self) -> None:
        """Removes all of them, of a run that is complete."""
        self.close()
        discard(str(self._folder))

    def close(self) -> None:
        """Waits, and ends the threads that write."""
        for manager in (self._history, self._states):
            with contextlib.suppress(Exception):  # told by wait
                manager.close()

    def _records(self) -> tuple[list[Record], list[str]]:
        """The records up to the first that is missing or damaged."""
        records: list[Record] = []
        while len(records) in self._history.all_steps():
            try:
                about, leaves = self._load(self._history, len(records))
            except DamageError as error:
                return records, [str(error)]
            records.append(Record(about["label"], about["done"], about["seconds"], leaves))
        return records, []

    def _forget(self, number: int) -> None:
        """Removes what lies behind the first records."""
        for manager in (self._history, self._states):
            for step in manager.all_steps():
                if step >= number:
                    manager.delete(step)

    def _save(self, manager: ocp.CheckpointManager, number: int, record: Record) -> None:
        about = {
            "format": files.FORMAT,
            "run": self._run,
            "label": record.label,
            "done": record.done,
            "seconds": record.seconds,
            "leaves": [[leaf.dtype.str, list(leaf.shape)] for leaf in record.leaves],
        }
        content = _bytes(record.leaves)
        about["digest"] = _digest(about, content)
        args = {"arrays": ocp.args.PyTreeSave({NAME: content}), "about": ocp.args.JsonSave(about)}
        manager.save(number, args=ocp.args.Composite(**args), force=True)

    def _load(
        self, manager: ocp.CheckpointManager, number: int
    ) -> tuple[dict[str, Any], list[np.ndarray]]:
        """What is said of a checkpoint, and its arrays.

        Raises:
          DamageError: if it is not there, or not what was written.
          UsageError: as ``read``.
        """
        name = f"checkpoint {number} ({manager.directory.name})"
        if number not in manager.all_steps():
            raise DamageError(f"{name} was not complete")
        with _damage(name):
            args = ocp.args.Composite(about=ocp.args.JsonRestore())
            about: dict[str, Any] = dict(manager.restore(number, args=args)["about"])
        self._check(about)
        with _damage(name):
            kinds = [(np.dtype(dtype), tuple(shape)) for dtype, shape in about["leaves"]]
            size = sum(dtype.itemsize * math.prod(shape) for dtype, shape in kinds)
            arrays = ocp.args.PyTreeRestore(
                item={NAME: np.empty(size, np.uint8)},
                restore_args={NAME: ocp.RestoreArgs(restore_type=np.ndarray)},
            )
            args = ocp.args.Composite(arrays=arrays)
            content = manager.restore(number, args=args)["arrays"][NAME]
            if about.pop("digest") != _digest(about, content):
                raise ValueError("its digest is another")
            return about, _leaves(content, kinds)

    def _check(self, about: dict[str, Any]) -> None:
        """Refuses what another version, or another run, has written."""
        try:
            files.check_format("checkpoint", about.get("format"))
        except ValueError as error:
            raise UsageError(f"--resume: {error}; take that version, or start anew") from None
        if about.get("run") != self._run:
            raise UsageError(
                f"--resume: {self._folder} holds checkpoints of another run; give that of this "
                "one as --checkpoint_dir"
            )


def discard(folder: str) -> None:
    """Removes all checkpoints in a folder, and the folder if nothing else is in it."""
    path = epath.Path(folder)
    for part in ("history", "state"):
        (path / part).rmtree(missing_ok=True)
    if path.exists() and not any(path.iterdir()):
        path.rmdir()


def _manager(folder: epath.Path, keep: int | None) -> ocp.CheckpointManager:
    folder.mkdir(parents=True, exist_ok=True)
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, enable_async_checkpointing=True, cleanup_tmp_directories=True
    )
    return ocp.CheckpointManager(folder, options=options)


def _bytes(leaves: Sequence[np.ndarray]) -> np.ndarray:
    """All arrays as one: what is read in one piece fails in one piece, and may be empty."""
    return np.concatenate(
        [np.ascontiguousarray(leaf).reshape(-1).view(np.uint8) for leaf in leaves]
    )


def _leaves(
    content: np.ndarray, kinds: Sequence[tuple[np.dtype, tuple[int, ...]]]
) -> list[np.ndarray]:
    """The arrays that ``_bytes`` joined."""
    leaves, start = [], 0
    for dtype, shape in kinds:
        stop = start + dtype.itemsize * math.prod(shape)
        leaves.append(content[start:stop].copy().view(dtype).reshape(shape))
        start = stop
    return leaves


def _digest(about: dict[str, Any], content: np.ndarray) -> str:
    """Of a checkpoint, what is said of it included."""
    text = np.frombuffer(json.dumps(about, sort_keys=True).encode(), np.uint8)
    return files.digest([text, content])


@contextlib.contextmanager
def _damage(name: str) -> Iterator[None]:
    """Whatever a reader raises on bytes that were not written so says that they are damaged."""
    try:
        yield
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DamageError(f"{name} is damaged ({reason[:100]})") from None


@contextlib.contextmanager
def _failure() -> Iterator[None]:
    """Whatever a file system, a bucket or what writes into them raises is told in one line."""
    try:
        yield
    except Exception as error:
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or [""])[0]
        raise WriteError(reason[:200] or type(error).__name__) from None
