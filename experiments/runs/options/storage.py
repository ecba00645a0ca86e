"""Where results and checkpoints lie."""

import dataclasses
from typing import Any

from experiments.cli.options import Options, option
from experiments.process.mistakes import LARGEST

RESULTS = "Results"


def output_dir() -> Any:
    """The option that names the folder of results."""
    return option(
        "New or empty folder for the results, instead of one in runs/ that bears the time.",
        None,
        RESULTS,
        value="FOLDER",
    )


def _seconds(value: float) -> str:
    inside = 0 <= value <= LARGEST
    return "" if inside else f"accepted is a number of seconds, 0 to {LARGEST:g}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Storage(Options):
    """Of every experiment."""

    output_dir: str | None = output_dir()
    resume: str | None = option(
        "Run directory of a run that was cut short, which goes on from its newest checkpoint, "
        "in the same directory and with the flags that it had.",
        None,
        RESULTS,
        value="FOLDER",
    )
    checkpoint_dir: str | None = option(
        "Where checkpoints lie, a folder or gs://..., instead of a folder of the run directory.",
        None,
        RESULTS,
        value="FOLDER",
        address=True,
    )
    checkpoint_every: float = option(
        "Seconds between checkpoints: the next is made at the first end of a segment after that.",
        30.0,
        RESULTS,
        accepted=_seconds,
    )
