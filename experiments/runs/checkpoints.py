"""Checkpoints: arrays on a disk or in a bucket, kept by orbax.

A run leaves a sequence of records behind, numbered from 0, which are written once and kept
until it is complete: its segments, its flows. Beside the newest ones lies the state from which
descent goes on; of states the last few are kept. Both are written in the background, and each
is there as a whole or not at all.

    history/<number>/arrays, about    what was computed
    state/<number>/arrays, about      the state behind it
    unreadable-<n>/...                what could not be read when the run was resumed, and what
                                      lay behind it; nothing here removes or reads it again

``about`` is JSON: format, run, label, whether nothing of that label follows, shapes and dtypes,
and a digest of all of it. The arrays are bytes without a structure, see ``packing``, so that
nothing that is read here names a type, or is called.

Of several processes the first reads before the others do. They write together: the first what all
have, each what it alone has of a state, see ``packing``. orbax counts what a process saves, and
the counts have to agree, so that none saves anything by itself as long as they do.
"""

import contextlib
import itertools
import logging
import socket
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.options import MultiprocessingOptions

from experiments.process import peers
from experiments.process.mistakes import UsageError
from experiments.runs import packing
from experiments.runs.packing import Record, Rows, WriteError
from gf_jax import stacks
from gf_jax.study import files

NAME = "bytes"
STATES = 3  # that are kept: the newest, and two to fall back to
TRIAL = Record("trial", True, 0.0, [np.arange(3)])

# What orbax has to tell is told here, in a line.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)


class Kept(NamedTuple):
    """What checkpoints hold.

    Attributes:
      records: the pieces of the run, in order.
      state: behind the last of them, None if that is done.
      told: what could not be read and where it is kept now, in words; empty if all could be.
    """

    records: list[Record]
    state: Sequence[np.ndarray] | None
    told: str


class MissingError(Exception):
    """A checkpoint that is not there, as a kill leaves it that comes while it is written."""


class UnreadableError(Exception):
    """A checkpoint that is there and cannot be read.

    Attributes:
      writer: version of orbax that wrote it, None if that cannot be read either.
    """

    def __init__(self, text: str, writer: str | None) -> None:
        super().__init__(text)
        self.writer = writer


class Checkpoints:
    """The checkpoints of one run.

    Args:
      folder: where they lie, an absolute path or ``gs://...``.
      run: a text that identifies the run, as another one may have left its own there.
      together: whether all processes write their states together; they then make this together.

    Raises:
      WriteError: if there can be none.
    """

    def __init__(self, folder: str, run: str, *, together: bool = False) -> None:
        self._run, self._together = run, together
        with _failure():
            self._folder = epath.Path(folder)
            self._history = _manager(self._folder / "history", None, together=together)
            self._states = _manager(self._folder / "state", STATES, together=together)

    @property
    def used(self) -> bool:
        """Whether there are any."""
        return bool(self._history.all_steps() or self._states.all_steps())

    def write(self, number: int, record: Record, state: Sequence[np.ndarray] | Rows | None) -> None:
        """Begins to write a record, and the state behind it; ``wait`` tells how that ended.

        All processes that write together call it.
        """
        with _failure():
            for manager in (self._history, self._states):  # what could not be written as a whole
                if number in manager.all_steps():
                    manager.delete(number)
            self._save(self._history, number, *self._packed(record))
            if isinstance(state, Rows):
                self._save(self._states, number, *packing.pack_rows(record, state, **self._marks))
            elif state is not None:
                self._save(self._states, number, *self._packed(record._replace(leaves=state)))

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
        """All records up to the newest from which the run can go on.

        What cannot be read, and what lies behind it, is set aside.

        Raises:
          UsageError: if they are of a newer version or of another run, or it is not they that
            are at fault; they stay as they are.
          WriteError: if they cannot be set aside.
        """
        records, state = list[Record](), None
        trouble: Exception | None = None
        try:
            while len(records) in self._history.all_steps():
                record = self._load(self._history, len(records))
                records.append(record._replace(leaves=stacks.kept(record.leaves)))
            if any(step > len(records) for step in self._history.all_steps()):
                trouble = MissingError(f"checkpoint {len(records)} (history) is missing")
        except UnreadableError as error:
            trouble = error
            if not records:
                self._check_reader(error)
        while records and not records[-1].done and state is None:
            try:
                state = self._load(self._states, len(records) - 1).leaves
            except (MissingError, UnreadableError) as error:
                trouble = trouble or error
                records.pop()
        return Kept(records, state, self._make_room(len(records), trouble))

    def read_first(self, number: int) -> Kept:
        """So many records that another process has read, and the state behind them.

        Raises:
          UsageError: if they cannot be read here.
        """
        records, state = list[Record](), None
        try:
            for each in range(number):
                records.append(self._load(self._history, each))
            if records and not records[-1].done:
                state = self._load(self._states, number - 1).leaves
        except (MissingError, UnreadableError) as error:
            raise UsageError(
                f"--resume: {self._folder}: {error} on host {socket.gethostname()}, and is on "
                "another; give a folder that all hosts see alike"
            ) from None
        return Kept(records, state, "")

    def remove(self) -> None:
        """Removes all of them, of a run that is complete, but what was set aside."""
        self.close()
        discard(str(self._folder))

    def close(self) -> None:
        """Waits, and ends the threads that write."""
        for manager in (self._history, self._states):
            with contextlib.suppress(Exception):  # told by wait
                manager.close()

    def _make_room(self, number: int, trouble: Exception | None) -> str:
        """Clears the place of the records from a number on; what is told of that."""
        managers = (self._history, self._states)
        later = [(m, step) for m in managers for step in m.all_steps() if step >= number]
        place = "goes on from before it" if number else "starts from the beginning"
        told = f"{trouble}: the run {place}"
        with _failure():
            # A kill leaves at most a record without its state, or a state without its record.
            if not isinstance(trouble, UnreadableError) and all(s == number for _, s in later):
                for manager, step in later:
                    manager.delete(step)
                return told if trouble else ""
            aside = self._new_folder()
            for manager, step in later:
                (aside / manager.directory.name).mkdir(parents=True, exist_ok=True)
                step_folder = manager.directory / str(step)
                step_folder.rename(aside / manager.directory.name / str(step))
            for manager in managers:
                manager.reload()
        return f"{told}; what is left out is kept in {aside}"

    def _new_folder(self) -> epath.Path:
        """A folder that is not there, for what is set aside."""
        names = (self._folder / f"unreadable-{n}" for n in itertools.count(1))
        return next(folder for folder in names if not folder.exists())

    @property
    def _marks(self) -> dict[str, str]:
        return {"run": self._run, "orbax": ocp.__version__}

    def _packed(self, record: Record) -> tuple[dict[str, Any], np.ndarray]:
        return packing.pack(record, **self._marks)

    def _save(
        self, manager: ocp.CheckpointManager, number: int, about: dict[str, Any], content: Any
    ) -> None:
        args = {"arrays": ocp.args.PyTreeSave({NAME: content}), "about": ocp.args.JsonSave(about)}
        manager.save(number, args=ocp.args.Composite(**args), force=True)

    def _load(self, manager: ocp.CheckpointManager, number: int) -> Record:
        """A checkpoint.

        Raises:
          MissingError, UnreadableError: if it is not there, or cannot be read.
          UsageError: as ``read``.
        """
        name = f"checkpoint {number} ({manager.directory.name})"
        if number not in manager.all_steps():
            raise MissingError(f"{name} was not complete")
        folder = manager.directory / str(number)
        with _reading(name, folder):
            about = dict(_restore(manager, number, about=ocp.args.JsonRestore()))
        self._check(about)
        with _reading(name, folder, about.get("orbax")):
            arrays = ocp.args.PyTreeRestore(
                item={NAME: np.empty(packing.shape(about), np.uint8)},
                restore_args={NAME: ocp.RestoreArgs(restore_type=np.ndarray)},
            )
            return packing.unpack(about, _restore(manager, number, arrays=arrays)[NAME])

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

    def _check_reader(self, error: UnreadableError) -> None:
        """Refuses to go on without the first record if it is not that record that is at fault."""
        refusal = f"--resume: {error}; all checkpoints are as they were; "
        if peers.several():  # no process may save anything by itself
            raise UsageError(f"{refusal}resume the run on one host, which tries orbax")
        trial = Checkpoints(str(self._folder / "trial"), self._run)
        try:
            trial.write(0, TRIAL, None)
            trial.wait()
            trial._load(trial._history, 0)
        except (MissingError, UnreadableError) as failure:
            raise UsageError(
                f"{refusal}orbax {ocp.__version__} cannot read what it has just written either "
                f"({failure}): install another version"
            ) from None
        finally:
            trial.remove()
        if error.writer not in (None, ocp.__version__):
            raise UsageError(
                f"{refusal}they were written by orbax {error.writer}, and this is "
                f"{ocp.__version__}: install that version, or start anew"
            )


def discard(folder: str) -> None:
    """Removes all checkpoints in a folder, and the folder if nothing else is in it."""
    path = epath.Path(folder)
    for part in ("history", "state"):
        (path / part).rmtree(missing_ok=True)
    if path.exists() and not any(path.iterdir()):
        path.rmdir()


def _manager(
    folder: epath.Path, keep: int | None, *, together: bool = False
) -> ocp.CheckpointManager:
    """A manager of this process, which reads only if it is not the first; or of all of them."""
    if peers.leads():
        folder.mkdir(parents=True, exist_ok=True)
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        enable_async_checkpointing=True,
        cleanup_tmp_directories=peers.leads(),
        read_only=not (together or peers.leads()),
    )
    if peers.several():
        members = set(range(peers.count())) if together else {peers.index()}
        options.create = False
        options.multiprocessing_options = MultiprocessingOptions(
            primary_host=min(members),
            active_processes=members,
            barrier_sync_key_prefix=f"{folder.name}{'' if together else peers.index()}",
        )
    return ocp.CheckpointManager(folder, options=options)


def _restore(manager: ocp.CheckpointManager, number: int, **args: Any) -> Any:
    """The one item of a checkpoint that is asked for."""
    (item,) = args
    return manager.restore(number, args=ocp.args.Composite(**args))[item]


@contextlib.contextmanager
def _reading(name: str, folder: epath.Path, writer: str | None = None) -> Iterator[None]:
    """Whatever a reader raises says that a checkpoint cannot be read.

    Raises:
      UsageError: if its files cannot be opened, which says nothing about their contents.
      UnreadableError: else.
    """
    try:
        yield
    except Exception as error:
        try:
            _read_all(folder)
        except OSError as refused:
            raise UsageError(
                f"--resume: {name} cannot be read ({refused.strerror or refused}: "
                f"{refused.filename or folder}); make it readable, or move it away"
            ) from None
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UnreadableError(f"{name} cannot be read ({reason[:100]})", writer) from None


def _read_all(folder: epath.Path) -> None:
    """Reads every file in a folder.

    Raises:
      OSError: if one cannot be read.
    """
    for path in folder.iterdir():
        path.stat()
        if path.is_dir():
            _read_all(path)
        elif path.is_file():
            with path.open("rb") as file:
                while file.read(2**20):
                    pass


@contextlib.contextmanager
def _failure() -> Iterator[None]:
    """Whatever a file system, a bucket or what writes into them raises is told in one line."""
    try:
        yield
    except Exception as error:
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or [""])[0]
        raise WriteError(reason[:200] or type(error).__name__) from None
