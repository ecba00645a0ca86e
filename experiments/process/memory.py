"""Whether a run fits into memory, told before it begins."""

import itertools
import math
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import jax

from experiments.process.mistakes import UsageError
from gf_jax.descent.placement import Memory

MIB, GIB = 2.0**20, 2.0**30
# Where control groups of version 2 and of version 1 have their folders, and in them what a
# container may take, what it takes, and the part of that which is cache of files.
GROUPS = {
    "": ("sys/fs/cgroup", "memory.max", "memory.current", ("active_file", "inactive_file")),
    "memory": (
        "sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        ("total_active_file", "total_inactive_file"),
    ),
}


class Demand(NamedTuple):
    """What is needed of one kind of memory, and what of it is free, in bytes."""

    need: int
    free: int
    where: str

    @property
    def share(self) -> float:
        """Of what is free; above 1 it does not fit."""
        return self.need / self.free if self.free else math.inf

    @property
    def words(self) -> str:
        """Both amounts."""
        return f"about {in_words(self.need)} and {in_words(self.free)} are free on {self.where}"


def largest(needed: Memory) -> Demand | None:
    """The demand, of the device or of the machine, that takes the largest share of what is free.

    None where the system does not tell what is free.
    """
    return max(_demands(needed), key=lambda demand: demand.share, default=None)


def _demands(needed: Memory) -> Iterator[Demand]:
    """What is needed of device and machine, which may be the same."""
    device, machine = jax.local_devices()[0], available()
    stats, host = device.memory_stats(), needed.host
    if stats and "bytes_limit" in stats:
        free = stats["bytes_limit"] - stats["bytes_in_use"]
        yield Demand(needed.device, free, device.device_kind)
    else:  # devices that are the machine itself
        host += needed.device * needed.devices
    if machine is not None:
        yield Demand(host, machine, "this machine")


def check(needed: Memory, *, several: str = "", of_examples: str = "--examples") -> None:
    """Refuses a run that does not fit.

    Args:
      needed: what it needs.
      several: the flag that says how many runs there are with every step size, if it is one.
      of_examples: the flag that says how many examples are taken at once.

    Raises:
      UsageError: with what it needs, what there is, and which flag to change.
    """
    most = largest(needed)
    if most is not None and most.need > most.free:
        flag = "--snapshots" if needed.host > needed.device else of_examples
        flags = f"{several} or {flag}" if several else flag
        raise UsageError(f"memory: the run needs {most.words}; take a smaller {flags}")
    folder = tempfile.gettempdir()
    if needed.disk > (free := shutil.disk_usage(folder).free):
        raise UsageError(
            f"memory: snapshots need about {in_words(needed.disk)} and {in_words(free)} are free "
            f"in {folder}; name a folder with room by TMPDIR, or take a smaller --snapshots"
        )


def in_words(amount: float) -> str:
    """Bytes in the unit that suits them."""
    return f"{amount / GIB:.3g} GiB" if amount >= GIB else f"{amount / MIB:.3g} MiB"


def available(root: Path = Path("/")) -> int | None:
    """Bytes that this process may still take, of the machine or of a container that has less.

    None where the system does not tell.

    Args:
      root: the folder in which the system's files lie.
    """
    return min((*_of_machine(root), *_of_groups(root)), default=None)


def _of_machine(root: Path) -> Iterator[int]:
    try:
        yield _table(root / "proc/meminfo")["MemAvailable"] * 1024
    except (OSError, KeyError):
        return


def _of_groups(root: Path) -> Iterator[int]:
    """What is left to each control group that the process is in, the outer ones included."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for controller in {*controllers.split(",")} & {*GROUPS}:
            mount, limit, usage, cache = GROUPS[controller]
            # Inside a container its own folder may be the outermost, whatever the path says.
            inner = PurePosixPath(path.lstrip("/"))
            for group in itertools.chain([inner], inner.parents):
                folder = root / mount / group
                try:
                    most, taken = (int((folder / name).read_text()) for name in (limit, usage))
                    table = _table(folder / "memory.stat")
                except (OSError, ValueError):  # not a folder of it, or "max": no limit
                    continue
                yield max(most - taken + sum(table.get(name, 0) for name in cache), 0)


def _table(path: Path) -> dict[str, int]:
    """A file of lines that are a name and a number, and perhaps a unit."""
    rows = (line.replace(":", "").split() for line in path.read_text().splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1}
