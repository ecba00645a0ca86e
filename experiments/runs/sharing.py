"""What several processes of a run must have in common, looked at before anything is computed."""

import contextlib
import json
import time
import uuid
from typing import Any

from etils import epath

from experiments.process import peers
from experiments.process.mistakes import UsageError

PATIENCE = 10.0  # seconds after which a network file system shows what another host has written
# Flags that may differ: where a host has its files, or what the first process alone looks at.
OWN = ("data_dir", "output_dir", "initial_params", "checkpoint_dir", "checkpoint_every", "resume")


def check_alike(values: dict[str, Any], digests: dict[str, str]) -> None:
    """Refuses processes that would not compute the same.

    Args:
      values: the options of this process.
      digests: of its data and starting point.

    Raises:
      UsageError: if those of the first are others.
    """
    if not peers.several():
        return
    mine = {f"--{name}": value for name, value in values.items() if name not in OWN} | digests
    said = [json.loads(each) for each in peers.exchange(json.dumps(mine, default=str))]
    for number, other in enumerate(said):
        names = [name for name in said[0] | other if other.get(name) != said[0].get(name)]
        if names:
            raise UsageError(
                f"process {number} has other {', '.join(names)} than process 0; run the same "
                "command on all hosts, with the same files"
            )


def common_folder(folder: str) -> str:
    """The first process's folder of checkpoints, once it is known that all see the same.

    Raises:
      UsageError: if they do not.
    """
    if not peers.several():
        return folder
    folder, name = json.loads(peers.from_first(json.dumps([folder, f"seen-{uuid.uuid4().hex}"])))
    mark = epath.Path(folder) / name
    peers.agreed(lambda: _write(mark) if peers.leads() else None)
    seen = peers.exchange("seen" if _sees(mark) else "")
    if peers.leads():
        with contextlib.suppress(OSError):
            mark.unlink()
    if not all(seen):
        if peers.leads():
            with contextlib.suppress(OSError):
                mark.parent.rmdir()
        blind = ", ".join(str(number) for number, each in enumerate(seen) if not each)
        raise UsageError(
            f"--checkpoint_dir={folder}: process {blind} does not see what process 0 writes there; "
            "give a folder that all hosts share, or gs://..."
        )
    return folder


def _write(mark: epath.Path) -> None:
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except Exception as error:  # of any kind, of a bucket
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or [""])[0]
        raise UsageError(
            f"--checkpoint_dir={mark.parent}: cannot be written ({reason}); give a folder that can"
        ) from None


def _sees(mark: epath.Path) -> bool:
    end = time.monotonic() + PATIENCE
    while True:
        with contextlib.suppress(Exception):  # whatever it is, this process does not see it
            if mark.exists():
                return True
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
