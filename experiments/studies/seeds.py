"""What runs from several starting points show together: medians and spreads over the seeds."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape

from experiments.output import report
from gf_jax.study.record import PERCENTILES, Run, percentiles

OF_LANES = (
    "final_loss",
    "final_accuracy",
    "final_distance_from_init",
    "final_distance_to_base",
    "final_gradient_norm",
)
LARGEST = ("largest_gap", "largest_relative_gap")

COLUMNS = ("run", "over seeds", "loss", "accuracy", "from start", "gap", "relative")
LEGEND = """\
low, high: percentiles 5 and 95 over the seeds, of up to ten the smallest and
the largest; each column by itself.
loss, accuracy, from start and gap are those of the last iteration.
from start: Euclidean distance to the initial point, over all parameters.
gap: the same to the base run η₀ of the same seed.
relative: the largest ratio over all iterations of the gap to the distance that
the base run has travelled from its start by then."""

FLOW_COLUMNS = ("run", "over seeds", "to flow", "predicted", "gap", "predicted")
FLOW_LEGEND = """\
to flow: Euclidean distance to gradient flow at the last time; < where the
error of the flow, or rounding, hides it. gap: as above. predicted: without
running descent."""
MOST_LINES = 10  # of runs that diverged
ROWS = ("low", "median", "high")


def summarise(run: Run) -> dict[str, Any]:
    """The numbers of the tables, over the seeds and, as for a single run, of every seed.

    Lists of three are percentiles over the seeds, see ``PERCENTILES``. What is not
    finite counts as above everything else, and is None.
    """
    by_seed = [report.summarise(single) for single in run.of_seeds]
    first = by_seed[0]
    runs = []
    for lane, ratio in enumerate(run.ratios):
        of_lane = [summary["runs"][lane] for summary in by_seed]
        numbers = {name: _spread([each[name] for each in of_lane]) for name in OF_LANES}
        largest = {name: _spread([each[name]["value"] for each in of_lane]) for name in LARGEST}
        diverged = sum(each["diverged_at"] is not None for each in of_lane)
        label = {"ratio": int(ratio), "step_size": run.step_size / ratio}
        runs.append(label | numbers | largest | {"diverged": diverged})
    summary = {name: first[name] for name in ("network", "data", "step_size", "iterations", "time")}
    summary |= {"seeds": list(run.seeds), "percentiles": list(PERCENTILES), "runs": runs}
    flows = [each["flow"] for each in by_seed if "flow" in each]
    if flows:
        summary["flow"] = _over_flows(flows, run)
    labelled = zip(run.seeds, by_seed, strict=True)
    summary["doubts"] = list(run.doubts)
    return summary | {"by_seed": [{"seed": seed} | each for seed, each in labelled]}


def print_seeds(summary: dict[str, Any], console: Console) -> None:
    """Prints the tables over the seeds, the verdict, and what diverged."""
    rows = []
    for lane in summary["runs"]:
        for at, row in enumerate(ROWS):
            cells = (
                (lane["final_loss"], ".6f"),
                (lane["final_accuracy"], ".1%"),
                (lane["final_distance_from_init"], ".5f"),
                (lane["final_distance_to_base"], ".3e"),
                (lane["largest_relative_gap"], ".3%"),
            )
            texts = (report.text(values[at], form) for values, form in cells)
            rows.append((report.run_name(lane["ratio"]) if at == 0 else "", row, *texts))
    seeds = summary["seeds"]
    title = (
        f"{summary['network']} on {summary['data']}\n"
        f"seeds {seeds[0]} to {seeds[-1]}: {summary['iterations']:,} base iterations of step size "
        f"{summary['step_size']:g}, to time {summary['time']:g}"
    )
    report.show_table(console, title, COLUMNS, rows, legend=LEGEND, left=2)
    if "flow" in summary:
        _print_flow(summary["flow"], console)
    report.print_doubts(summary, console)
    lines = [
        f"with seed {single['seed']}, {line}"
        for single in summary["by_seed"]
        for line in report.divergences(single)
    ]
    if len(lines) > MOST_LINES:
        lines[MOST_LINES:] = [f"so did {len(lines) - MOST_LINES:,} more; summary.json lists them"]
    for line in lines:
        console.print(f"[bold red]warning:[/] {line}", soft_wrap=True)


def _spread(values: Sequence[float | None]) -> list[float | None]:
    """Percentiles over the seeds."""
    numbers = np.array([np.inf if value is None else value for value in values], float)
    return [report.finite(value) for value in percentiles(numbers)]


def _over_flows(flows: list[dict[str, Any]], run: Run) -> dict[str, Any]:
    """The comparisons with the flow of those seeds that have one."""
    runs = []
    for lane, ratio in enumerate(run.ratios):
        of_lane = [flow["runs"][lane] for flow in flows]
        # Where the flow is not known well enough, a distance is only bounded.
        known = [each["measured"] or each["smallest_measurable"] is None for each in of_lane]
        seen = [
            each["distance_to_flow" if measured else "smallest_measurable"]
            for each, measured in zip(of_lane, known, strict=True)
        ]
        names = ("predicted_to_flow", "gap", "predicted_gap")
        numbers = {name: _spread([each[name] for each in of_lane]) for name in names}
        label = {"ratio": int(ratio), "distance_to_flow": _spread(seen), "measured": all(known)}
        runs.append(label | numbers)
    shares = [_share(flow) for flow in flows]
    errors = [flow["largest_prediction_error"] for flow in flows]
    counts = (
        *("flow_evaluations", "prediction_evaluations", "checking_evaluations"),
        *("measured_gaps", "doubtful_predictions"),
    )
    together = {
        "time": flows[0]["time"],
        "seeds": len(flows),
        "runs": runs,
        "order": _spread([flow["order"] for flow in flows]),
        "share_of_distance": _spread(shares),
        "largest_prediction_error": max((e for e in errors if e is not None), default=None),
        "run_evaluations": sum(flow["run_evaluations"] for flow in flows),
    }
    together |= {name: sum(flow[name] for flow in flows) for name in counts}
    return together | {"verdict": _verdict(together, shares, run)}


def _share(flow: dict[str, Any]) -> float | None:
    """Distance of the base run from its flow, as a share of the way travelled."""
    base, travelled = flow["runs"][0]["distance_to_flow"], flow["distance_from_init"]
    return base / travelled if base is not None and travelled else None


def _verdict(flow: dict[str, Any], shares: Sequence[float | None], run: Run) -> list[str]:
    """How the base runs stand to their flows, in words and numbers."""
    words = [report.nearness(share) for share in shares if share is not None]
    if not words:
        return ["Verdict: none, since no base run can be compared with its flow."]
    counts = [
        f"{word} its gradient flow from {words.count(word)} of {len(run.seeds)} starting points"
        for word in dict.fromkeys(sorted(words, key=len))
    ]
    low, median, high = (report.text(value, ".2g") for value in flow["share_of_distance"])
    lines = [
        f"Verdict: descent with {report.steps(run)} {', '.join(counts)}. At time "
        f"{flow['time']:g} it stands apart by {median} ({low} to {high}) of the distance that "
        "the flow has travelled."
    ]
    if flow["largest_prediction_error"] is not None:
        lines.append(
            f"Predicted gaps are within {flow['largest_prediction_error']:.2%} of the measured "
            f"ones, over all seeds, ratios and snapshots{report.but_for(flow)}, for "
            f"{flow['prediction_evaluations']:,} gradient-sized evaluations where the runs took "
            f"{flow['run_evaluations']:,}."
        )
    return lines + report.unpredicted(run, flow)


def _print_flow(flow: dict[str, Any], console: Console) -> None:
    rows = []
    for lane in flow["runs"]:
        for at, row in enumerate(ROWS):
            bound = "" if lane["measured"] else "< "
            texts = (
                report.predicted(flow, lane["predicted_to_flow"][at]),
                report.text(lane["gap"][at], ".3e"),
                report.predicted(flow, lane["predicted_gap"][at]),
            )
            seen = bound + report.text(lane["distance_to_flow"][at], ".3e")
            rows.append((report.run_name(lane["ratio"]) if at == 0 else "", row, seen, *texts))
    low, median, high = (report.text(value, ".3f") for value in flow["order"])
    title = f"Against gradient flow, at time {flow['time']:g}"
    order = f"Slope of log distance to the flow against log step size: {median} ({low} to {high})."
    legend = f"{FLOW_LEGEND}\n{order}"
    report.show_table(console, title, FLOW_COLUMNS, rows, legend=legend, left=2)
    for line in flow["verdict"]:
        console.print(escape(line), soft_wrap=True, highlight=False)
