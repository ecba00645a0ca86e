"""What became of the starts in numbers."""

from typing import Any

import numpy as np
from rich.console import Console

from experiments.output import report
from experiments.studies.deep_linear.records import Starts
from gf_jax.study.record import percentiles

COLUMNS = ("depth", "run", "reached", "after time", "gap", "unbalanced")
LEGEND = """\
reached: share of the starts whose loss falls within the accuracy of its
minimum. after time: that it takes, median over the starts, and percentiles 5
and 95. gap: largest Euclidean distance between descent and flow over time,
median. unbalanced: largest ‖W_{j+1}ᵀ W_{j+1} − W_j W_jᵀ‖ over time and layers,
median."""


def summarise(done: list[Starts], labels: list[str], seeds: int, epsilon: float) -> dict[str, Any]:
    """The numbers of the tables, of so many starts and for an accuracy."""
    summary = {
        "data": labels,
        "starts": seeds,
        "epsilon": epsilon,
        "time": float(done[0].times[-1]),
        "depths": [
            {
                "depth": starts.depth,
                "flow_error": report.finite(float(starts.flow_error)),
                "data": [_of_data(starts, number) for number in range(len(labels))],
            }
            for starts in done
        ],
    }
    return summary | {"verdict": _verdict(summary)}


def _of_data(starts: Starts, number: int) -> dict[str, Any]:
    """One depth on one data set."""
    arrivals, gaps, unbalancedness = (
        percentiles(values[:, number])
        for values in (starts.arrival, starts.gap, starts.unbalancedness)
    )
    opposite = np.where(np.isnan(starts.opposite), np.inf, starts.opposite)[..., number]
    return {
        "runs": [
            {
                "step_size": float(step_size),  # 0 is the flow
                "reached": float(np.isfinite(starts.arrival[lane, number]).mean()),
                "arrival": [report.finite(value) for value in arrivals[:, lane]],
                "gap": [report.finite(value) for value in gaps[:, lane]],
                "unbalancedness": [report.finite(value) for value in unbalancedness[:, lane]],
                "opposite": report.finite(opposite[:, lane].min()),
            }
            for lane, step_size in enumerate((0.0, *starts.step_sizes))
        ],
        "gap_order": _order(starts.step_sizes, gaps[1, 1:]),
        "unbalancedness_order": _order(starts.step_sizes, unbalancedness[1, 1:]),
        "reduced_difference": report.finite(starts.reduced_difference[number].max()),
        "smallest_cosine": float(starts.cosine[number].min()),
    }


def _order(step_sizes: np.ndarray, values: np.ndarray) -> float | None:
    """Slope of log value against log step size; None with a single or a diverged run."""
    if len(values) < 2 or not (np.isfinite(values) & (values > 0)).all():
        return None
    return float(np.polyfit(np.log(step_sizes), np.log(values), 1)[0])


def _verdict(summary: dict[str, Any]) -> list[str]:
    """Who reaches the minimum and who does not, and how near descent and theory are."""
    found = [
        (depth["depth"], data, run)
        for depth in summary["depths"]
        for data in depth["data"]
        for run in data["runs"]
    ]
    share = min(run["reached"] for _, _, run in found)
    amount = "every one" if share == 1 else f"at least {share:.1%}"
    escaped = sorted({depth for depth, _, run in found if _escapes(run, summary["epsilon"])})
    lines = [
        f"Verdict: {amount} of {summary['starts']:,} random balanced starts near zero comes "
        f"within {summary['epsilon']:g} of the global minimum by time {summary['time']:g}: at "
        "every depth, on both data sets, under gradient flow and under descent at every step size."
    ]
    if escaped:
        lines.append(
            "The start exactly opposite to the target, which in exact arithmetic falls to zero and "
            f"stays, is carried away from it by rounding at depth {', '.join(map(str, escaped))}."
        )
    else:
        least = min(run["opposite"] for _, _, run in found if run["opposite"] is not None)
        lines.append(
            "The start exactly opposite to the target, which has probability zero, falls to zero "
            f"instead: its loss never comes nearer to the minimum than {least:.3g}."
        )
    orders = [data[name] for _, data, _ in found for name in ("gap_order", "unbalancedness_order")]
    known = [order for order in orders if order is not None]
    if known:
        lines.append(
            "Distance to the flow and unbalancedness of descent, in the median, fall with the step "
            f"size to powers from {min(known):.2f} to {max(known):.2f}."
        )
    worst = max(data["reduced_difference"] or np.inf for _, data, _ in found)
    lines.append(
        "The flow's end-to-end vectors obey the reduced equation of balanced networks within "
        f"{worst:.1g}, at every start and time."
    )
    return lines


def _escapes(run: dict[str, Any], epsilon: float) -> bool:
    """Whether the opposite start reaches the minimum after all, by rounding."""
    return run["opposite"] is not None and run["opposite"] <= epsilon


def show(summary: dict[str, Any], console: Console) -> None:
    """Prints a table for every data set."""

    def cell(value: float | None, form: str) -> str:
        return "none" if value is None else format(value, form)

    for number, label in enumerate(summary["data"]):
        rows = []
        for depth in summary["depths"]:
            for lane, run in enumerate(depth["data"][number]["runs"]):
                low, median, high = (cell(value, ".2f") for value in run["arrival"])
                row = (
                    "" if lane else str(depth["depth"]),
                    f"η = {run['step_size']:g}" if lane else "flow",
                    f"{run['reached']:.1%}",
                    f"{median} ({low} to {high})",
                    cell(run["gap"][1], ".2e") if lane else "",
                    cell(run["unbalancedness"][1], ".1e"),
                )
                rows.append(row)
        title = f"{label}\n{summary['starts']:,} starts, accuracy {summary['epsilon']:g}"
        legend = LEGEND if number == len(summary["data"]) - 1 else ""
        report.show_table(console, title, COLUMNS, rows, legend=legend, left=2)
