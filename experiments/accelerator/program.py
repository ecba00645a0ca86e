"""The check of a device: which items there are, in which order, and what becomes of their rows."""

import dataclasses
import datetime
import os
from collections import Counter
from typing import Any

import jax
from jax.extend import backend
from rich.console import Console

from experiments.accelerator import agreement, speed
from experiments.accelerator.bench import QUICK, Bench, Limits
from experiments.accelerator.rows import (
    FAILED,
    FINE,
    LEFT_OUT,
    MEASURED,
    NOT_FINE,
    Clock,
    Item,
    Row,
)
from experiments.accelerator.rows import measure as measure
from experiments.benchmark import program
from experiments.cli import usage
from experiments.cli.options import option, positive_number
from experiments.output import report
from experiments.problems import problem
from experiments.process import folders, streams
from experiments.process.mistakes import EXIT_INTERRUPTED, UsageError
from experiments.runs import harness, store
from gf_jax.study.files import write_json

# The most important first: what there is no time for is left out.
ITEMS: dict[str, Item] = {
    "products": agreement.products,
    "compensation": agreement.compensation,
    "gaps": agreement.gaps,
    "gradients": agreement.gradients,
    "times": speed.times,
    "rounding": agreement.rounding,
    "float64": agreement.float64,
    "memory": speed.peak,
    "flags": speed.flags,
    "share": speed.share,
    "convolutions": speed.convolutions,
    "starts": speed.starts,
    "loops": speed.loops,
}
COLUMNS = ("", "value", "expected", "")
STATES = (FINE, NOT_FINE, MEASURED, FAILED, LEFT_OUT)


def _items(names: tuple[str, ...]) -> str:
    unknown = next((name for name in names if name not in ITEMS), "")
    if names and not unknown:
        return ""
    return f"{usage.nearest(unknown, ITEMS)}accepted are some of {', '.join(ITEMS)}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(program.Runs):
    """What is checked, and for how long."""

    items: tuple[str, ...] = option(
        f"Some of {', '.join(ITEMS)}, separated by commas; taken in this order.",
        tuple(ITEMS),
        program.MEASURED,
        value="NAME,...",
        accepted=_items,
    )
    minutes: float = option(
        "Time that there is; what does not fit is left out.",
        8.0,
        program.MEASURED,
        accepted=positive_number,
    )
    quick: bool = option(
        "Small sizes and short runs, to see that it works.", False, program.MEASURED
    )

    def check(self) -> None:
        """Raises UsageError where there is nothing to compare."""
        super().check()
        if not set(self.ratios) - {1}:
            raise UsageError("--ratios: gaps to a second run are checked; accepted is one above 1")


def run(settings: Settings) -> int:
    """Checks the device, and writes the run directory.

    Returns:
      The exit status: 0 if every item has given its rows, whatever they say; 130 if it was
      interrupted.

    Raises:
      UsageError: on data, an output directory or a device that are not there.
    """
    clock = Clock(60 * settings.minutes)
    device = problem.device()
    bench = Bench(settings, QUICK if settings.quick else Limits(), clock)
    dataset = bench.first.study.dataset
    directory = folders.create(settings.output_dir, "accelerator")
    console = Console()
    harness.warn(dataset)
    streams.keep(directory)
    summary = {
        **_surroundings(),
        "configuration": dataclasses.asdict(settings),
        "data": dataset.label,
        "interrupted": False,
    }
    rows: list[dict[str, Any]] = []

    def write(**changes: Any) -> None:
        write_json(
            directory / "summary.json", summary | {"rows": rows, "seconds": clock.elapsed} | changes
        )

    def keep(item: str, row: Row) -> None:
        value = None if row.value is None else report.finite(row.value)
        rows.append({"item": item, **row._asdict(), "value": value, "at": clock.elapsed})
        write()
        console.print(_line(row, clock), soft_wrap=True, highlight=False, markup=False)

    _say(console, f"{program.name_of(device)}; {dataset.label}; {_minutes(clock.left)} minutes")
    items = {name: item for name, item in ITEMS.items() if name in settings.items}
    try:
        measure(items, bench, clock, keep)
    except KeyboardInterrupt:
        write(interrupted=True)
        _say(console, f"interrupted: this is less than was asked for; it lies in {directory}")
        return EXIT_INTERRUPTED
    _show(rows, f"{dataset.label}, {program.name_of(device)}", console)
    _say(console, f"everything lies in {directory}")
    return 0


def _surroundings() -> dict[str, Any]:
    """The device, versions, and settings of the compiler."""
    found = store.surroundings()
    driver = " ".join(backend.get_backend().platform_version.split())
    return {
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "device": found["device"] | {"memory": jax.devices()[0].memory_stats(), "driver": driver},
        "versions": found["versions"],
        "cores": os.cpu_count(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def _line(row: Row, clock: Clock) -> str:
    """A row as it is told at once, with the time that is left."""
    words = [f"{row.name}: {row.shown}" if row.value is not None else f"{row.name}:"]
    words.append(f", {row.expected}" if row.expected else "")
    words.append("" if row.state == MEASURED else f" {row.state}")
    words.append(f" ({row.note})" if row.note else "")
    return f"{_minutes(clock.left)} left  {''.join(words)}"


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def _show(rows: list[dict[str, Any]], title: str, console: Console) -> None:
    """Prints the table, and how many rows of each kind there are."""
    cells = []
    for kept in rows:
        row = Row(**{name: kept[name] for name in Row._fields})
        cells.append(
            (row.name, row.shown, row.expected, "" if row.state == MEASURED else row.state)
        )
    report.show_table(console, title, COLUMNS, cells, left=1)
    counts = Counter(kept["state"] for kept in rows)
    told = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    _say(console, f"{len(rows)} rows: {told}")


def _say(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=False)
