"""Run directories as folders: made, locked against a second process, tidied."""

import datetime
import fcntl
import fnmatch
import itertools
import os
from pathlib import Path

from experiments.process.mistakes import UsageError, expand

LOCK = "lock"  # the file that a process holds as long as it works in the folder

_held: list[tuple[Path, int]] = []


def create(output_dir: str | None, name: str) -> Path:
    """Creates an empty run directory and locks it.

    Args:
      output_dir: where; None makes ``runs/<name>-<date>-<time>``, numbered on if
        that is taken.
      name: what the run is about, for the default.

    Raises:
      UsageError: if the directory has contents, cannot be written, or is another process's.
    """
    stem = f"{name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    directory = expand("output_dir", f"runs/{stem}" if output_dir is None else output_dir)
    try:
        if output_dir is None:
            directory = _make_new(directory)
        else:
            directory.mkdir(parents=True, exist_ok=True)
        if any(not _is_left(path.name) for path in directory.iterdir()):
            raise UsageError(
                f"--output_dir={directory}: is not empty, and results are never overwritten; "
                "give a new or an empty folder"
            )
    except OSError as error:
        raise _unwritable("output_dir", directory, error) from None
    lock("output_dir", directory)
    tidy(directory)
    return directory


def _is_left(name: str) -> bool:
    """Whether a run that was killed before it had begun leaves a file of that name."""
    return name == LOCK or fnmatch.fnmatch(name, ".[0-9]*.configuration.json")


def _unwritable(flag: str, directory: Path, error: OSError) -> UsageError:
    return UsageError(
        f"--{flag}={directory}: cannot be written ({error.strerror}); give a folder that can"
    )


def _make_new(directory: Path) -> Path:
    """Makes the directory, numbered on if it is there, also by another program just now."""
    numbered = (directory.with_name(f"{directory.name}-{n}") for n in itertools.count(2))
    for candidate in itertools.chain([directory], numbered):
        try:
            candidate.mkdir(parents=True)
        except FileExistsError:
            continue
        return candidate
    raise AssertionError("there are infinitely many candidates")


def lock(flag: str, directory: Path) -> None:
    """Takes the directory for this process, until ``unlock`` or the end of the process.

    The system releases what a killed process held.

    Raises:
      UsageError: if another process has it, or it cannot be written; names the flag.
    """
    path = directory / LOCK
    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise _unwritable(flag, directory, error) from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            raise UsageError(
                f"--{flag}={directory}: another process works in this folder; wait for its end, "
                "or give another folder"
            ) from None
        except OSError:  # a file system without locks
            pass
        if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
            _held.append((path, file))
            return
        os.close(file)  # its holder removed it just now


def unlock() -> None:
    """Gives back every directory that this process holds."""
    while _held:
        path, file = _held.pop()
        path.unlink(missing_ok=True)
        os.close(file)


def tidy(directory: Path) -> None:
    """Removes what writers that were killed have left of files that were never whole."""
    for path in directory.glob(".[0-9]*.*"):
        path.unlink()


def discard(directory: Path) -> None:
    """Removes the directory of a run that is not made after all; one with results stays."""
    if any(directory.glob("metrics*.npz")):
        return
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()
