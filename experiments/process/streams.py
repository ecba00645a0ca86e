"""Standard output and error that end no run: a stream that takes no more is dropped.

The reader may have gone (``| head``), the disk may be full, the terminal closed. What could not
be said is kept, and written into the run directory when the program ends.
"""

import errno
import io
import os
import re
import select
import sys
from pathlib import Path

FILE = "unsaid.txt"
MOST = 1_000_000  # bytes that are kept of each stream
GONE = (errno.EPIPE, errno.EBADF)  # the reader wanted no more, or wanted nothing
_CONTROLS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class _Raw(io.RawIOBase):
    """A file descriptor whose failure is kept instead of raised."""

    def __init__(self, number: int, *, closed: bool) -> None:
        super().__init__()
        self._number = number
        self.failure = errno.EBADF if closed else 0
        self.missed = bytearray()

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return not self.failure and os.isatty(self._number)

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        content = bytes(data)  # type: ignore[call-overload]
        while not self.failure:
            try:
                return os.write(self._number, content)
            except BlockingIOError:  # a pipe that others have set so
                select.select([], [self._number], [])
            except OSError as error:
                self.failure = error.errno or errno.EIO
        self.missed += content[: MOST - len(self.missed)]
        return len(content)


class _Kept:
    """Of this process: its streams, and where to what they miss."""

    raw: dict[str, _Raw] = {}  # noqa: RUF012
    directory: Path | None = None


def install() -> None:
    """Puts such streams in place of Python's own; those that others have replaced stay."""
    closed = [_reopened(number) for number in range(3)]
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__") or name in _Kept.raw:
            continue
        raw = _Kept.raw[name] = _Raw(number, closed=closed[number])
        # A terminal without Greek shows question marks.
        replaced = io.TextIOWrapper(
            io.BufferedWriter(raw),
            encoding=getattr(stream, "encoding", "utf-8"),
            errors="replace",
            line_buffering=True,
        )
        setattr(sys, name, replaced)
        setattr(sys, f"__{name}__", replaced)


def _reopened(number: int) -> bool:
    """Whether a descriptor was closed; then the next file that is opened would take its place."""
    try:
        os.fstat(number)
    except OSError:
        os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        return True
    return False


def keep(directory: Path) -> None:
    """Names the folder into which goes what cannot be said."""
    _Kept.directory = directory


def close() -> None:
    """Writes what could not be said, and says so where that is still possible."""
    lines = []
    for name, raw in _Kept.raw.items():
        getattr(sys, name).flush()
        text = _CONTROLS.sub("", raw.missed.decode(errors="replace"))
        # Of a line that was written over again and again, as a progress bar is, the last state.
        lines += [line.rpartition("\r")[2] for line in text.rstrip("\r\n").split("\n") if text]
        raw.missed.clear()
    if not lines or _Kept.directory is None:
        return
    try:
        (_Kept.directory / FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError:  # no folder was made, or it takes no more either
        return
    failures = {raw.failure for raw in _Kept.raw.values()} - {0, *GONE}
    for failure in failures:
        text = f"warning: not all could be shown ({os.strerror(failure)}); the rest is in "
        print(f"{text}{_Kept.directory / FILE}", file=sys.stderr)
