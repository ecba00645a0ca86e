"""What a run shows in numbers: a summary for programs, a table for people."""

from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from experiments.store import Run

COLUMNS = ("run", "loss", "accuracy", "from start", "gap", "largest gap", "relative")
LEGEND = """\
loss, accuracy, from start and gap are those of the last iteration.
from start: Euclidean distance to the initial point, over all parameters.
gap: the same to the base run η₀; largest gap: over all iterations.
relative: the largest ratio of the gap to the distance that the base run has
travelled from its start by then."""


def summarise(run: Run) -> dict[str, Any]:
    """The numbers of the final table, one entry per lane.

    ``largest_gap`` is the largest distance between a run and the base run, and
    ``largest_relative_gap`` the largest ratio of that distance to the distance the
    base run has travelled from its start by then, each with the base iteration at
    which it occurs. Numbers that are not finite are None; ``diverged_at`` is the
    first base iteration at which the loss is not finite, None if there is none.
    """
    return {
        "network": run.network_label,
        "data": run.data_label,
        "step_size": run.step_size,
        "iterations": int(run.iterations[-1]),
        "time": float(run.times[-1]),
        "runs": [_lane(run, lane) for lane in range(len(run.ratios))],
    }


def divergences(summary: dict[str, Any]) -> list[str]:
    """One line per lane that diverged."""
    return [
        f"the run with step size {lane['step_size']:g} (ratio {lane['ratio']}) diverged: its loss "
        f"is not finite from base iteration {lane['diverged_at']} on"
        for lane in summary["runs"]
        if lane["diverged_at"] is not None
    ]


def print_table(summary: dict[str, Any], console: Console) -> None:
    """Prints the summary as a table."""
    table = Table(
        title=f"{summary['network']} on {summary['data']}\n"
        f"{summary['iterations']:,} base iterations of step size {summary['step_size']:g}, "
        f"to time {summary['time']:g}",
        box=box.SIMPLE_HEAD,
        title_style="bold",
    )
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for lane in summary["runs"]:
        table.add_row(
            "η₀" if lane["ratio"] == 1 else f"η₀/{lane['ratio']}",
            _text(lane["final_loss"], ".6f"),
            _text(lane["final_accuracy"], ".1%"),
            _text(lane["final_distance_from_init"], ".5f"),
            _text(lane["final_distance_to_base"], ".3e"),
            _text(lane["largest_gap"]["value"], ".3e"),
            _text(lane["largest_relative_gap"]["value"], ".3%"),
        )
    console.print(table)
    console.print(LEGEND, highlight=False)


def _lane(run: Run, lane: int) -> dict[str, Any]:
    metrics = run.metrics
    gaps, travelled = metrics.distance_to_base[:, lane], metrics.distance_from_init[:, 0]
    with np.errstate(invalid="ignore"):  # a diverged run over itself is no number
        # At the start both are zero: no gap over no distance is no gap.
        relative = gaps / np.where(travelled > 0, travelled, 1)
    return {
        "ratio": int(run.ratios[lane]),
        "step_size": run.step_size / run.ratios[lane],
        "final_loss": _finite(metrics.loss[-1, lane]),
        "final_accuracy": _finite(run.accuracy[-1, lane]) if len(run.accuracy) else None,
        "final_distance_from_init": _finite(metrics.distance_from_init[-1, lane]),
        "final_distance_to_base": _finite(gaps[-1]),
        "final_gradient_norm": _finite(metrics.gradient_norm[-1, lane]),
        "largest_gap": _largest(gaps, run.iterations),
        "largest_relative_gap": _largest(relative, run.iterations),
        "diverged_at": run.diverged_at(lane),
    }


def _largest(values: np.ndarray, iterations: np.ndarray) -> dict[str, Any]:
    """The largest finite value and where it stands."""
    finite = np.isfinite(values)
    if not finite.any():
        return {"value": None, "iteration": None}
    where = int(np.where(finite, values, -np.inf).argmax())
    return {"value": float(values[where]), "iteration": int(iterations[where])}


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _text(value: float | None, form: str) -> str:
    return "nan" if value is None else format(value, form)
