"""What a process says when JAX ends it, as its service is gone with the first process.

JAX does so in C++, with a page of addresses. Within an ``Aborts`` what C++ writes to standard
error is held back, and a line takes its place; what it says of anything else is shown.
"""

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

NAMES = (b"distributed service", b"coordination service")


@contextlib.contextmanager
def unheard() -> Iterator[None]:
    """Within it nothing is heard of what is written to standard error, but by Python's errors."""
    sys.stderr.flush()
    shown, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(shown, 2)
        os.close(shown)
        os.close(nowhere)


class Aborts:
    """Holds back what C++ says, from now on to the end of the process.

    Args:
      line: what to say instead of the loss of the service; None is nothing.
      status: with which the process ends then.
    """

    def __init__(self, line: Callable[[], str | None], status: int) -> None:
        self._line, self.status = line, status
        sys.stderr.flush()
        self._shown, self._held = os.dup(2), os.memfd_create("stderr")
        os.dup2(self._held, 2)
        sys.stderr = open(self._shown, "w", buffering=1, closefd=False)  # noqa: SIM115
        # Python's own handlers run later, in the main thread; after an abort there is no later.
        self._handler: Any = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._end)
        ctypes.CDLL(None).signal(int(signal.SIGABRT), self._handler)

    def _end(self, _: int) -> None:
        said = os.pread(self._held, 2**20, 0)
        if not any(name in said.lower() for name in NAMES):
            os.write(self._shown, said)
            os._exit(128 + signal.SIGABRT)
        line = self._line()
        if line is not None:
            os.write(self._shown, f"{line}\n".encode())
        os._exit(self.status)
