"""What is told of runs at the edge of stability: lines before, table, and verdict."""

from typing import Any

import jax
import numpy as np
from rich.console import Console

from experiments.output import report
from experiments.process import memory
from experiments.studies.edge.options import Options
from experiments.studies.edge.records import Edges
from gf_jax.flow.central.result import ENDINGS
from gf_jax.study.summary import IN_SIGHT

GROWN = 0.5  # of the predicted variance, from which on an oscillation counts as grown
SECONDS = ("seconds", "central_seconds")
FLOAT64 = 8
KEPT, STEPPING = 10, 100  # vectors of all parameters, at each time and during a step
LEGEND = """\
run: averaged over a window; central, {short}: as central flow and
{limit} predict it. of edge: largest eigenvalue of the Hessian{metric} times
step size / 2. oscillation: its root mean square. distance: of the averaged
run from both. ±: estimated error of the central flow."""
METRIC = "\nin the metric of {runs}, which averages of a run do not know (–),"
CONTINUOUS, UNKNOWN = "continuous", "–"
COST = """\
gradients of a run, and gradient-sized evaluations of its central flow with the
second solve that tells its error."""


def announcement(options: Options, start: Any) -> list[str]:
    """What runs and central flows take, told beforehand."""
    size = sum(leaf.size for leaf in jax.tree.leaves(start))
    total = sum(options.schedule.lanes) * options.iterations
    least = FLOAT64 * size * (KEPT * len(options.times) + STEPPING)
    count = len(options.all_step_sizes)
    return [
        f"{count} run{'s' if count > 1 else ''}, {total:,} gradient evaluations in all",
        "central flows: mostly 5 to 40 gradient-sized evaluations for a step of the largest run, "
        "which grow with the square of the number of eigenvalues at the edge, at least "
        f"{memory.in_words(least)} of memory",
    ]


def summarise(saved: Edges, seconds: list[dict[str, float]]) -> dict[str, Any]:
    """The numbers of the table, one entry per lane, and a verdict."""
    runs = [_of_lane(saved, lane) | taken for lane, taken in enumerate(seconds)]
    summary = {
        "network": saved.network_label,
        "data": saved.data_label,
        "runs_named": saved.runs,
        "limit": saved.limit,
        "window": saved.window,
        "time": float(saved.times[-1]),
        "flow_loss": report.finite(saved.flow_loss[-1]),
        "runs": runs,
    }
    return summary | {"verdict": [line for lane in runs for line in lane["verdict"]]}


def _of_lane(saved: Edges, lane: int) -> dict[str, Any]:
    """The numbers of one step size."""
    step_size, past = float(saved.step_sizes[lane]), float(saved.past_edge[lane])
    with np.errstate(divide="ignore", invalid="ignore"):
        numbers = {
            "from_flow": saved.from_flow[-1, lane],
            "from_central": saved.from_central[-1, lane],
            "central_error": saved.central_error[-1, lane],
            "travelled": saved.travelled[-1, lane],
            "average_loss": saved.average_loss[-1, lane],
            "predicted_average_loss": saved.central_loss[-1, lane],
            "of_edge": saved.sharpness[-1, lane] * step_size / 2,
            "predicted_of_edge": saved.central_sharpness[-1, lane] * step_size / 2,
            "flow_of_edge": saved.flow_sharpness[-1, lane] * step_size / 2,
            "oscillation": np.sqrt(saved.variance[-1, lane]),
            "predicted_oscillation": np.sqrt(saved.central_variance[-1, lane]),
        }
    told: dict[str, Any] = {name: report.finite(value) for name, value in numbers.items()}
    told |= {
        "step_size": step_size,
        "past_edge": report.finite(past),
        "held": int(saved.held[-1, lane]),
        "ended": ENDINGS[int(saved.ended[lane])],
        "diverged": not np.isfinite(saved.average_loss[:, lane]).all(),
        "evaluations": int(saved.evaluations[lane]),
        "central_evaluations": int(saved.central_evaluations[lane]),
    }
    return told | {"verdict": _verdict(saved, lane, told)}


def _verdict(saved: Edges, lane: int, told: dict[str, Any]) -> list[str]:
    """Until when its limit describes a run, from when on the central flow does, how well."""
    named = f"step size {told['step_size']:g}"
    lines = []
    if told["ended"]:
        lines.append(f"With {named} the central flow ends early: {told['ended']}.")
    if told["diverged"]:
        return [*lines, f"With {named} the run diverged."]
    if told["past_edge"] is None:
        if not told["ended"]:
            lines.append(
                f"With {named} {saved.runs} stays below its edge: the central flow is the flow "
                f"with its first-order deviation{_distances(saved, told)}."
            )
        return lines
    lines.append(
        f"With {named} {saved.runs} reaches its edge of stability at time {told['past_edge']:.4g}, "
        f"iteration {told['past_edge'] / told['step_size']:,.0f}. {_until(saved, lane, named)}"
    )
    grown = _grown(saved, lane)
    if grown is None:
        lines.append(
            "The oscillation that the central flow predicts has not grown, so that nothing holds "
            "the sharpness yet; give more iterations."
        )
        return lines
    since = saved.times >= saved.times[grown]
    loss = _off(saved.average_loss, saved.central_loss, lane, since)
    sharpness = _off(saved.sharpness, saved.central_sharpness, lane, since)
    size = _off(np.sqrt(saved.variance), np.sqrt(saved.central_variance), lane, since)
    of_sharpness = "" if np.isnan(sharpness) else f"the sharpness to {100 * sharpness:.2g} %, "
    lines.append(
        f"Its oscillation has grown to what is predicted by time {saved.times[grown]:.4g}. From "
        "then on, in the median over time, the central flow predicts the averaged loss to "
        f"{100 * loss:.2g} %, {of_sharpness}and the size of the "
        f"oscillation to {100 * size:.2g} %{_distances(saved, told)}."
    )
    if not told["held"]:
        lines.append("At the end the central flow is below the edge again.")
    return lines


def _until(saved: Edges, lane: int, named: str) -> str:
    """Until when gradient flow, or the limit, describes a run."""
    limit = _named(saved)[:1].upper() + _named(saved)[1:]
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = saved.from_flow[:, lane] / saved.travelled[:, lane]
    left = np.flatnonzero(shares > IN_SIGHT)
    if not left.size:
        return f"{limit} stays within {IN_SIGHT:.0%} of the way that it travels."
    if not left[0]:
        return f"{limit} is off by {IN_SIGHT:.0%} of its way and more from the beginning."
    until = saved.times[left[0] - 1]
    return f"{limit} is within {IN_SIGHT:.0%} of its way up to time {until:.4g}."


def _grown(saved: Edges, lane: int) -> int | None:
    """The first time at which the oscillation is about as large as predicted."""
    predicted = saved.central_variance[:, lane]
    grown = (predicted > 0) & (saved.variance[:, lane] > GROWN * predicted)
    grown &= saved.times >= saved.past_edge[lane]
    return int(np.argmax(grown)) if grown.any() else None


def _off(measured: np.ndarray, predicted: np.ndarray, lane: int, since: np.ndarray) -> float:
    """How far a prediction is off in the median, relative to what is measured."""
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.abs(predicted[since, lane] / measured[since, lane] - 1)
    return float(np.nanmedian(shares)) if np.isfinite(shares).any() else float("nan")


def _named(saved: Edges) -> str:
    """What sentences call the limit of small steps."""
    return f"the {saved.limit}" if saved.limit.endswith("limit") else saved.limit


def _distances(saved: Edges, told: dict[str, Any]) -> str:
    """How much nearer the central flow ends."""
    near, far = told["from_central"], told["from_flow"]
    if near is None or far is None or not near > 0:
        return ""
    return (
        f"; at the end the averaged run stands from it by {near:.3g} and from {_named(saved)} by "
        f"{far:.3g}, {far / near:.3g} times as far"
    )


def show(summary: dict[str, Any], console: Console) -> None:
    """Prints the numbers at the last time and what they took, one row per step size."""
    runs = summary["runs"]
    rows = [row for lane in runs for row in _rows(lane, summary)]
    title = f"{summary['network']} on {summary['data']}\nat time {summary['time']:g}"
    short = summary["limit"].split()[0]
    metric = METRIC.format(runs=summary["runs_named"]) if short == CONTINUOUS else ""
    legend = LEGEND.format(short=short, limit=summary["limit"], metric=metric)
    heads = ("step size", "", "of edge", "loss", "oscillation", "distance", "±")
    report.show_table(console, title, heads, rows, legend=legend)
    costs = [
        (
            f"{lane['step_size']:g}",
            f"{lane['evaluations']:,}",
            f"{lane['seconds']:.1f} s",
            f"{lane['central_evaluations']:,}",
            f"{lane['central_seconds']:.1f} s",
        )
        for lane in runs
    ]
    columns = ("step size", "run: gradients", "time", "central flow: gradients", "time")
    report.show_table(console, "what they took", columns, costs, legend=COST)


def _rows(lane: dict[str, Any], summary: dict[str, Any]) -> list[tuple[str, ...]]:
    """The averaged run of one step size, its central flow, and the limit of small steps."""

    def told(prefix: str) -> list[str]:
        names = {"of_edge": ".3f", "average_loss": ".5f", "oscillation": ".5f"}
        return [report.text(lane[f"{prefix}{name}"], form) for name, form in names.items()]

    limit, run = summary["limit"].split()[0], told("")
    if limit == CONTINUOUS:
        run[0] = UNKNOWN
    central = report.text(lane["from_central"], ".3g"), report.text(lane["central_error"], ".0e")
    return [
        (f"{lane['step_size']:g}", "run", *run, "", ""),
        ("", "central", *told("predicted_"), *central),
        (
            *("", limit, report.text(lane["flow_of_edge"], ".3f")),
            *(report.text(summary["flow_loss"], ".5f"), ""),
            *(report.text(lane["from_flow"], ".3g"), ""),
        ),
    ]
