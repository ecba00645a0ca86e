"""Mistakes of the user's, and paths that flags name."""

import os
from pathlib import Path


class UsageError(Exception):
    """A mistake of the user's; its text is the one line that is shown."""


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
