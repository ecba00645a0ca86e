"""Mistakes of the user's, each one line, and the exit statuses of the programs."""

import errno
import os
from pathlib import Path

EXIT_USAGE = 2
EXIT_DIVERGED = 3
EXIT_UNWRITTEN = 4
EXIT_LOST = 5
EXIT_HUNG_UP = 129
EXIT_INTERRUPTED = 130  # as shells report an interrupt
EXIT_TERMINATED = 143
# What help tells of them.
EXIT_STATUSES = {
    0: "done",
    EXIT_USAGE: "a mistake in flags or files, or too little memory; nothing was run",
    EXIT_DIVERGED: "a run diverged; the results are written and say which, and when",
    EXIT_UNWRITTEN: "results could not be written; --resume finishes the run when they can",
    EXIT_LOST: "another process of a run on several hosts is lost; --resume goes on from its "
    "newest checkpoint",
    EXIT_INTERRUPTED: "interrupted; what was computed is written, and --resume goes on",
    EXIT_TERMINATED: "terminated, likewise",
    EXIT_HUNG_UP: "the terminal was closed, likewise",
}

# What systems report of a place that takes no more.
UNWRITABLE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),
    *(errno.EROFS, errno.EACCES, errno.EPERM),
)

# Of numbers that float32 holds, less what a product of two needs.
SMALLEST, LARGEST = 1e-30, 1e30


class UsageError(Exception):
    """A mistake of the user's; its text is the one line that is shown."""


class UnwrittenError(Exception):
    """Results that could not be written; its text is the one line that is shown."""


def expand(flag: str, path: str) -> Path:
    """The absolute path that a flag names, with the home folder for ``~``.

    A run may be resumed from another working directory, and orbax takes no relative paths.

    Raises:
      UsageError: if it is empty, an address, or there is no such home folder or no working
        directory.
    """
    if not path:
        raise UsageError(f"--{flag}=: names nothing; accepted is a path")
    if "://" in path:
        raise UsageError(f"--{flag}={path}: is an address; accepted is a path on this machine")
    try:
        absolute = Path(path).expanduser().absolute()
        return Path(os.path.realpath(absolute)) if ".." in absolute.parts else absolute
    except RuntimeError:
        raise UsageError(
            f"--{flag}={path}: there is no such home folder; accepted is a path, as ./{path}"
        ) from None
    except OSError:
        raise UsageError(
            f"--{flag}={path}: the working directory is gone; accepted is an absolute path"
        ) from None
