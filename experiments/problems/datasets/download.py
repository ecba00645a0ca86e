"""Files of data sets from the network, in a cache that holds whole files only."""

import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.problems.datasets.dataset import UnreachableError
from experiments.process import interruption

PROBE_SECONDS = 5.0
PATIENCE_SECONDS, PATIENCE_BYTES = 15.0, 50_000  # a download is slower than that, or given up


def probe(name: str, url: str) -> None:
    """Raises UnreachableError unless the server of a data set answers within PROBE_SECONDS."""
    failure: list[str] = ["no answer within five seconds"]

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            with urllib.request.urlopen(request, timeout=PROBE_SECONDS):
                failure.clear()
        except Exception as error:  # whatever keeps us from the data is a reason, none is a bug
            reason = getattr(error, "reason", error)
            failure[:] = [getattr(reason, "strerror", None) or str(reason)]

    # In a thread, since looking up a host's name obeys no time limit.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    interruption.call(lambda: thread.join(PROBE_SECONDS))
    if failure:
        raise UnreachableError(f"{name} is not reachable ({failure[0]})")


def into(folder: Path, name: str, urls: Sequence[str], verify: Callable[[Path], None]) -> None:
    """Downloads files of a data set into a folder, all of them once all are verified.

    Args:
      folder: where; it is made if it is not there.
      name: of the data set.
      urls: of the files, under whose own names they are kept.
      verify: raises UnreachableError if a file is not what it should be.

    Raises:
      UnreachableError: if they cannot be had, or come too slowly; the folder is then as it was.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix="downloads-") as temporary:
            _fetch(name, urls, Path(temporary))
            files = [Path(temporary, url.rpartition("/")[2]) for url in urls]
            for file in files:
                verify(file)
            for file in files:
                file.replace(folder / file.name)
    except OSError as error:
        raise UnreachableError(f"{name} could not be kept ({error})") from None


def _fetch(name: str, urls: Sequence[str], folder: Path) -> None:
    """Downloads files into a folder, in a process that is ended if they come too slowly.

    Raises:
      UnreachableError: with the reason.
    """
    command = [sys.executable, "-m", "experiments.fetch", str(folder), *urls]
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "text": True, "errors": "replace"}
    # In a session of its own an interrupt reaches this process alone, which then ends the other.
    with subprocess.Popen(command, start_new_session=True, **options) as fetching:
        try:
            reason = _watch(fetching, folder)
        finally:
            fetching.kill()
    if reason:
        raise UnreachableError(f"{name} could not be downloaded ({reason})")


def _watch(fetching: "subprocess.Popen[str]", folder: Path) -> str:
    """Waits for the files, which show progress; returns why they do not come, or nothing."""
    before = 0
    while True:
        try:
            told, _ = interruption.call(lambda: fetching.communicate(timeout=PATIENCE_SECONDS))
            return told.strip() if fetching.returncode else ""
        except subprocess.TimeoutExpired:
            now = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            if now - before < PATIENCE_BYTES:
                return f"{now - before:,} bytes came in {PATIENCE_SECONDS:g} seconds"
            before = now
