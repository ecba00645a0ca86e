"""What a run has computed so far, kept so that it is not computed again when it is resumed.

An experiment asks its journal before it computes a piece, and adds what it has computed. The
journal writes checkpoints of that: of a descent when ``--checkpoint_every`` seconds have passed,
and of every piece when it is complete.

Several processes keep a descent together, each in a journal of its own, of which the first decides
when a checkpoint is written. All else is the first one's.
"""

import contextlib
import importlib
import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax import Array

from experiments.process import interruption, peers
from experiments.process.mistakes import UsageError
from experiments.runs import packing, structures
from experiments.runs.packing import Record, Rows, WriteError
from gf_jax import stacks

if TYPE_CHECKING:
    from experiments.runs.checkpoints import Checkpoints

CHECKPOINTS = "checkpoints"  # in the run directory, unless the user names another
PyTree = Any
Made = TypeVar("Made")


class _Piece(NamedTuple):
    """What is not yet written: consecutive parts with one label, and the state behind them."""

    label: str
    done: bool
    parts: list[PyTree]
    state: list[np.ndarray] | Rows | None
    seconds: float

    def record(self) -> Record:
        leaves = [jax.tree.leaves(part) for part in self.parts]
        joined = [
            np.concatenate(arrays) if len(arrays) > 1 else np.asarray(arrays[0])
            for arrays in zip(*leaves, strict=True)
        ]
        return Record(self.label, self.done, self.seconds, joined)


class Journal:
    """The journal of one run.

    Args:
      folder: of the checkpoints; None keeps none.
      every: seconds between checkpoints.
      run: a text that identifies the run.
      say: shows a line.
    """

    def __init__(
        self, folder: str | None, every: float, run: str, say: Callable[[str], None]
    ) -> None:
        self._folder, self._every, self._run, self._say = folder, every, run, say
        self._checkpoints: Checkpoints | None = None
        self._records: list[Record] = []
        self._state: Sequence[np.ndarray] | None = None
        self._number = 0  # of records that are written
        self._pending: list[_Piece] = []
        self._flying: _Piece | None = None  # that is being written
        self._written = self._added = time.monotonic()
        self._trouble: WriteError | None = None  # with what is being written
        self._together = folder is not None and peers.several()

    @property
    def keeps(self) -> bool:
        """Whether anything is kept."""
        return self._folder is not None

    def begin(self) -> None:
        """Makes sure that a folder that the user has chosen can be written and holds nothing.

        Raises:
          UsageError: if it does not.
        """
        flag = f"--checkpoint_dir={self._folder}"
        try:
            used = self._open_alone().used
        except WriteError as error:
            raise UsageError(
                f"{flag}: cannot be written ({error}); give a folder that can"
            ) from None
        self._close_alone()
        if used:
            raise UsageError(f"{flag}: holds checkpoints of a run; give another folder")

    def read(self, *, expected: bool) -> None:
        """Reads what an earlier process has kept, and says from where the run goes on.

        Args:
          expected: whether the folder has to be there, as one that the user has named.

        Raises:
          UsageError: if that cannot be read here, or is of another run.
        """
        flag = f"--checkpoint_dir={self._folder}"
        accepted = "give the folder where the checkpoints lie"
        try:
            if not self._exists():
                if expected:
                    raise UsageError(f"{flag}: no such folder; {accepted}, or an empty one")
                self._say("no checkpoint was written yet: the run starts from the beginning")
                return
            kept = self._open_alone().read()
        except WriteError as error:
            raise UsageError(f"{flag}: cannot be used ({error}); {accepted}") from None
        self._close_alone()
        self._records, self._state, self._number = kept.records, kept.state, len(kept.records)
        if kept.told:
            self._say(kept.told)
        elif not kept.records:
            self._say("there is no complete checkpoint: the run starts from the beginning")

    def read_first(self, number: int) -> None:
        """Reads as many records as the first process has read.

        Raises:
          UsageError: if that cannot be done here.
        """
        if not number:
            return
        try:
            kept = self._open_alone().read_first(number)
        except WriteError as error:
            raise UsageError(f"--resume: {self._folder}: cannot be used ({error})") from None
        self._close_alone()
        self._records, self._state, self._number = kept.records, kept.state, number

    @property
    def number(self) -> int:
        """How many records are written."""
        return self._number

    def _exists(self) -> bool:
        """Whether there is a folder of checkpoints; one in a bucket is taken to be there.

        Raises:
          WriteError: if the system does not say.
        """
        assert self._folder is not None
        if "://" in self._folder:
            return True
        try:
            os.stat(self._folder)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise WriteError(error.strerror) from None
        return True

    def records(self, label: str) -> list[Record]:
        """What an earlier process has kept under a label; the last may be done."""
        return [record for record in self._records if record.label == label]

    def state(self, label: str) -> Sequence[np.ndarray] | None:
        """The state behind them, None if they are done or there are none."""
        return self._state if self._records and self._records[-1].label == label else None

    def add(self, label: str, part: PyTree, state: Sequence[Array], *, done: bool) -> None:
        """Adds a part, a pytree of arrays with a common first axis, and the state behind it."""
        if self._folder is None:
            return
        same = bool(self._pending) and self._pending[-1].label == label
        before = self._pending.pop() if same else _Piece(label, False, [], None, 0.0)
        kept = None if done else packing.copied(state)
        parts = [*before.parts, part]
        self._pending.append(_Piece(label, done, parts, kept, before.seconds + self._lap()))
        large = sum(map(stacks.size, parts)) >= stacks.LARGE
        due = done or large or time.monotonic() - self._written >= self._every
        if self._together:
            due = peers.exchange("due" if due else "", interruptible=False)[0] == "due"
        if due:
            self.flush(wait=self._together and done)

    def alone(self) -> None:
        """Parts from the other processes; what is added from here on is of this one."""
        if self._together:
            self._together = False
            self.close()
            self._checkpoints = None
            with contextlib.suppress(WriteError):  # told when something is to be written
                self._open()

    def once(self, label: str, make: Callable[[], Made], like: Made) -> Made:
        """What is made, or was by an earlier process; what is too large for memory is not kept.

        Args:
          label: of it.
          make: makes it: a pytree of arrays and numbers.
          like: its structure, see ``structures``.

        Raises:
          UsageError: if an earlier process has kept something else.
        """
        records = self.records(label)
        if records:
            return structures.restored(label, like, records[0].leaves)
        made = make()
        if self._folder is not None and stacks.size(made) <= stacks.LARGE:
            self._pending.append(_Piece(label, True, [made], None, self._lap()))
            self.flush()
        return made

    def flush(self, *, wait: bool = False) -> None:
        """Begins to write what is not yet written; a failure is told, and the run goes on."""
        with interruption.shielded():
            while self._landed() and self._pending:
                self._flying = self._pending.pop(0)
                try:
                    self._open().write(self._number, self._flying.record(), self._flying.state)
                except WriteError as error:
                    self._trouble = error  # of which the other processes learn when they wait
            if wait:
                self._landed()
        self._written = time.monotonic()

    def close(self) -> None:
        """Waits for what is being written."""
        if self._checkpoints is not None:
            self._landed()
            self._checkpoints.close()

    def remove(self) -> None:
        """Removes all checkpoints, of a run that is complete."""
        if self._checkpoints is not None:
            self._landed()
            self._checkpoints.remove()

    def _lap(self) -> float:
        """Seconds since something was added."""
        before, self._added = self._added, time.monotonic()
        return self._added - before

    def _open(self) -> "Checkpoints":
        if self._checkpoints is None:
            self._checkpoints = self._made(together=self._together)
        return self._checkpoints

    def _open_alone(self) -> "Checkpoints":
        """Those of this process, before all processes write together."""
        self._checkpoints = self._checkpoints or self._made(together=False)
        return self._checkpoints

    def _close_alone(self) -> None:
        if self._together and self._checkpoints is not None:
            self._checkpoints.close()
            self._checkpoints = None

    def _made(self, *, together: bool) -> "Checkpoints":
        assert self._folder is not None
        module = importlib.import_module("experiments.runs.checkpoints")  # slow to load
        made: Checkpoints = module.Checkpoints(self._folder, self._run, together=together)
        return made

    def _landed(self) -> bool:
        """Whether what was being written is; if it could not be, it is to be written again."""
        if self._flying is None:
            return True
        error = self._waited()
        if error is not None:
            self._failed(error)
            return False
        self._flying, self._number = None, self._number + 1
        return True

    def _waited(self) -> WriteError | None:
        """Waits for what is being written, on all processes; why it could not be, if so."""
        error, self._trouble = self._trouble, None
        try:
            self._open().wait()
        except WriteError as caught:
            error = error or caught
        if self._together:
            failures = peers.exchange(str(error or ""), interruptible=False)
            error = next((WriteError(each) for each in failures if each), None)
        return error

    def _failed(self, error: WriteError) -> None:
        assert self._flying is not None
        self._pending.insert(0, self._flying)
        self._flying = None
        self._say(f"a checkpoint could not be written ({error}); the run goes on without it")
