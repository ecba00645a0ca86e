"""What a run shows in numbers: a summary for programs, a table for people."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from experiments.records import DESCRIPTIONS, Reference, Run
from gf_jax.comparison import WELL_BELOW

COLUMNS = ("run", "loss", "accuracy", "from start", "gap", "largest gap", "relative")
LEGEND = """\
loss, accuracy, from start and gap are those of the last iteration.
from start: Euclidean distance to the initial point, over all parameters.
gap: the same to the base run η₀; largest gap: over all iterations.
relative: the largest ratio of the gap to the distance that the base run has
travelled from its start by then."""

FLOW_COLUMNS = ("run", "to flow", "predicted", "gap", "predicted", "order")
FLOW_LEGEND = """\
to flow: Euclidean distance to gradient flow at the last time; < where the
flow is not known well enough to tell. gap: as above. predicted: without
running descent. order: slope of log distance to the flow against log step
size over all runs."""

KINK_WARNING = """\
The loss has kinks. Where two runs pass one on different sides they part for
good, and which side a run takes may hang on less than any prediction knows."""

SWEEP_LEGEND = """\
of edge: step size over 2 / lambda_max of the Hessian at the start. flow,
first order, modified flow: Euclidean distance of descent from gradient flow,
from the flow and its first-order deviation, and from the modified flow of its
step size."""

# How far from its flow, relative to how far it travelled, descent is said to be.
NEAR, IN_SIGHT = 0.01, 0.1


def summarise(run: Run) -> dict[str, Any]:
    """The numbers of the final table, one entry per lane.

    ``largest_gap`` is the largest distance between a run and the base run, and
    ``largest_relative_gap`` the largest ratio of that distance to the distance the
    base run has travelled from its start by then, each with the base iteration at
    which it occurs. Numbers that are not finite are None; ``diverged_at`` is the
    first base iteration at which the loss is not finite, None if there is none.
    """
    summary = {
        "network": run.network_label,
        "data": run.data_label,
        "step_size": run.step_size,
        **dataclasses.asdict(run.method),
        "iterations": int(run.iterations[-1]),
        "time": float(run.times[-1]),
        "runs": [_lane(run, lane) for lane in range(len(run.ratios))],
    }
    return summary if run.reference is None else summary | {"flow": _flow(run, run.reference)}


def divergences(summary: dict[str, Any]) -> list[str]:
    """One line per lane that diverged."""
    return [
        f"the run with step size {lane['step_size']:g} (ratio {lane['ratio']}) diverged: its loss "
        f"is not finite from base iteration {lane['diverged_at']} on"
        for lane in summary["runs"]
        if lane["diverged_at"] is not None
    ]


def print_run(summary: dict[str, Any], console: Console) -> None:
    """Prints the table of a run, its comparison with the flow, and what diverged."""
    print_table(summary, console)
    if "flow" in summary:
        _print_flow(summary, console)
    for line in divergences(summary):
        console.print(f"[bold red]warning:[/] {line}", soft_wrap=True)


def show_table(
    console: Console,
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    legend: str = "",
    left: int = 0,
) -> None:
    """Prints a table and what its columns mean.

    Args:
      console: where.
      title: above it.
      columns: heads; all columns but the first ``left`` are aligned to the right.
      rows: of texts, which are not markup.
      legend: below it.
      left: number of columns aligned to the left.
    """
    table = Table(title=escape(title), box=box.SIMPLE_HEAD, title_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < left else "right")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    console.print(table)
    if legend:
        console.print(escape(legend), highlight=False)


def print_table(summary: dict[str, Any], console: Console) -> None:
    """Prints the summary as a table."""
    rows = [
        (
            run_name(lane["ratio"]),
            text(lane["final_loss"], ".6f"),
            text(lane["final_accuracy"], ".1%"),
            text(lane["final_distance_from_init"], ".5f"),
            text(lane["final_distance_to_base"], ".3e"),
            text(lane["largest_gap"]["value"], ".3e"),
            text(lane["largest_relative_gap"]["value"], ".3%"),
        )
        for lane in summary["runs"]
    ]
    title = (
        f"{summary['network']} on {summary['data']}\n"
        f"{summary['iterations']:,} base iterations of step size {summary['step_size']:g}, "
        f"to time {summary['time']:g}"
    )
    show_table(console, title, COLUMNS, rows, legend=LEGEND)


def print_rounding(summary: dict[str, Any], console: Console) -> None:
    """Prints the gaps to the base run in every arithmetic, side by side."""
    for row in summary["table"]:
        rows = [
            (name, *(text(gap, ".4e") for gap in gaps[1:])) for name, gaps in row["gaps"].items()
        ]
        if {"compensated", "float32"} <= set(row["gaps"]):
            pairs = zip(row["gaps"]["float32"], row["gaps"]["compensated"], strict=True)
            factors = [a / b if a and b else None for a, b in pairs]
            rows.append(("float32 over compensated", *(text(f, ".3f") for f in factors[1:])))
        title = (
            f"{summary['network']} on {summary['data']}\n"
            f"gaps to the run with step size {summary['step_size']:g} after "
            f"{row['iteration']:,} base iterations, time {row['time']:g}"
        )
        columns = ("arithmetic", *map(run_name, summary["ratios"][1:]))
        show_table(console, title, columns, rows, left=1)
    for name, run in summary["runs"].items():
        for line in divergences(run):
            console.print(f"[bold red]warning:[/] in {name}, {line}", soft_wrap=True)


def print_prediction(summary: dict[str, Any], console: Console) -> None:
    """Prints predicted distances, one row per step size."""
    rows = [
        (
            f"{lane['step_size']:g}",
            text(lane["predicted_to_flow"], ".3e"),
            text(lane["predicted_gap"], ".3e"),
        )
        for lane in summary["runs"]
    ]
    title = (
        f"{summary['network']} on {summary['data']}\n"
        f"predicted at time {summary['time']:g}, where the flow has travelled "
        f"{text(summary['distance_from_init'], '.4g')} and its loss is "
        f"{text(summary['loss'], '.6g')}"
    )
    show_table(console, title, ("step size", "to flow", "to the largest step"), rows)
    if summary["kinks"]:
        console.print(KINK_WARNING, highlight=False)
    console.print(
        f"{summary['gradient_evaluations']:,} gradient-sized evaluations, and "
        f"{summary['checking_evaluations']:,} more that told the numerical error, "
        f"{text(summary['error'], '.1%')}, in {summary['seconds']:.1f} s",
        highlight=False,
    )


def print_sweep(summary: dict[str, Any], console: Console) -> None:
    """Prints distances from the three descriptions, one row per step size."""
    rows = [
        (
            f"{lane['step_size']:.4g}",
            f"{lane['step_size'] / summary['edge']:.2f}",
            "diverged" if lane["diverged_at"] is not None else text(lane["final_loss"], ".6f"),
            *(text(lane[name], ".3e") for name in DESCRIPTIONS),
        )
        for lane in summary["runs"]
    ]
    title = (
        f"{summary['network']} on {summary['data']}\n"
        f"at time {summary['time']:g}, where the flow has travelled "
        f"{text(summary['travelled'], '.4g')}"
    )
    columns = ("step size", "of edge", "loss", "flow", "first order", "modified flow")
    show_table(console, title, columns, rows, legend=SWEEP_LEGEND)
    for line in divergences(summary):
        console.print(f"[bold red]warning:[/] {line}", soft_wrap=True)


def _print_flow(summary: dict[str, Any], console: Console) -> None:
    flow = summary["flow"]
    rows = []
    for lane, beside in zip(summary["runs"], flow["runs"], strict=True):
        known = beside["measured"] or beside["smallest_measurable"] is None
        bound = "" if known else "< "
        seen = beside["distance_to_flow" if known else "smallest_measurable"]
        row = (
            run_name(lane["ratio"]),
            bound + text(seen, ".3e"),
            predicted(flow, beside["predicted_to_flow"]),
            text(beside["gap"], ".3e"),
            predicted(flow, beside["predicted_gap"]),
            text(flow["order"], ".3f") if lane["ratio"] == 1 else "",
        )
        rows.append(row)
    title = f"Against gradient flow, at time {flow['time']:g}"
    show_table(console, title, FLOW_COLUMNS, rows, legend=FLOW_LEGEND)
    for line in flow["verdict"]:
        console.print(escape(line), soft_wrap=True, highlight=False)


def _flow(run: Run, reference: Reference) -> dict[str, Any]:
    """The comparison with the flow at the last snapshot, and what it amounts to."""
    gaps = run.metrics.distance_to_base[np.isin(run.iterations, run.snapshot_iterations)]
    flow = {
        "time": float(run.snapshot_times[-1]),
        "loss": finite(reference.loss[-1]),
        "distance_from_init": finite(reference.distance_from_init[-1]),
        "error": finite(reference.flow_error[-1]),
        "order": finite(reference.order[-1]),
        "flow_evaluations": int(reference.flow_evaluations),
        "prediction_evaluations": int(reference.prediction_evaluations),
        "checking_evaluations": int(reference.checking_evaluations),
        "run_evaluations": int(run.iterations[-1]) * sum(run.ratios) + 1,
        "largest_prediction_error": _prediction_error(run, reference, gaps),
        "runs": [
            {
                "ratio": int(ratio),
                "distance_to_flow": finite(reference.distance_to_flow[-1, lane]),
                "measured": bool(reference.measured[-1, lane]),
                "smallest_measurable": finite(WELL_BELOW * reference.resolution[-1, lane]),
                "predicted_to_flow": finite(reference.predicted_to_flow[-1, lane]),
                "gap": finite(gaps[-1, lane]),
                "predicted_gap": finite(reference.predicted_to_base[-1, lane]),
            }
            for lane, ratio in enumerate(run.ratios)
        ],
    }
    return flow | {"verdict": _verdict(run, flow)}


def _prediction_error(run: Run, reference: Reference, gaps: np.ndarray) -> float | None:
    """Largest relative error of the predicted gaps, over all ratios and snapshots."""
    with np.errstate(divide="ignore", invalid="ignore"):
        errors = np.abs(reference.predicted_to_base / gaps - 1)[:, 1:]
    return finite(errors[np.isfinite(errors)].max(initial=-np.inf))


def _verdict(run: Run, flow: dict[str, Any]) -> list[str]:
    """How far the base run stands from its flow, in words and numbers."""
    base, lines = flow["runs"][0], []
    travelled, loss = flow["distance_from_init"], run.metrics.loss[-1, 0]
    if base["distance_to_flow"] is None or not travelled or not np.isfinite(loss):
        return [
            "Verdict: none, since the run with the largest step size diverged, or the flow could "
            "not be followed."
        ]
    share = base["distance_to_flow"] / travelled
    difference = abs(float(loss) - flow["loss"]) / abs(flow["loss"])
    if base["measured"]:
        distance = (
            f"{base['distance_to_flow']:.3g} (the flow is known to {flow['error']:.1g}), "
            f"{share:.2g} of the distance {travelled:.4g} that the flow has travelled"
        )
    else:
        distance = (
            f"less than {base['smallest_measurable']:.1g}, which is as well as the flow is known"
        )
    lines.append(
        f"Verdict: descent with {steps(run)} {nearness(share)} its gradient flow. "
        f"At time {flow['time']:g} it stands apart by {distance}. Its loss is {loss:.6g}, that of "
        f"the flow {flow['loss']:.6g}: they differ by a share of {difference:.1g}."
    )
    if flow["largest_prediction_error"] is not None:
        factor = flow["run_evaluations"] / flow["prediction_evaluations"]
        lines.append(
            f"Predicted gaps are within {flow['largest_prediction_error']:.2%} of the measured "
            f"ones, over all ratios and snapshots, for {flow['prediction_evaluations']:,} "
            f"gradient-sized evaluations where the runs took {flow['run_evaluations']:,}: "
            f"{factor:,.0f} times fewer. The flow took {flow['flow_evaluations']:,}, and knowing "
            f"the errors of both {flow['checking_evaluations']:,} more."
        )
    return lines + unpredicted(run, flow)


def steps(run: Run) -> str:
    """What a verdict says of the steps of the base run."""
    words = run.method.words
    return f"step size {run.step_size:g}{words}," if words else f"step size {run.step_size:g}"


def unpredicted(run: Run, flow: dict[str, Any]) -> list[str]:
    """Why no gaps are predicted, if they are not."""
    if flow["prediction_evaluations"]:
        return []
    what = "batches" if run.method.batch_size else "momentum where the loss has kinks"
    return [f"No gaps are predicted: the theory of the first order does not cover {what}."]


def nearness(share: float) -> str:
    """What descent does, at a distance from its flow that is this share of the way travelled."""
    return "stays near" if share < NEAR else "stays in sight of" if share < IN_SIGHT else "leaves"


def run_name(ratio: int) -> str:
    """What figures and tables call a run."""
    return "η₀" if ratio == 1 else f"η₀/{ratio}"


def _lane(run: Run, lane: int) -> dict[str, Any]:
    metrics = run.metrics
    gaps, travelled = metrics.distance_to_base[:, lane], metrics.distance_from_init[:, 0]
    with np.errstate(invalid="ignore"):  # a diverged run over itself is no number
        # At the start both are zero: no gap over no distance is no gap.
        relative = gaps / np.where(travelled > 0, travelled, 1)
    return {
        "ratio": int(run.ratios[lane]),
        "step_size": run.step_size / run.ratios[lane],
        "final_loss": finite(metrics.loss[-1, lane]),
        "final_accuracy": finite(run.accuracy[-1, lane]) if len(run.accuracy) else None,
        "final_distance_from_init": finite(metrics.distance_from_init[-1, lane]),
        "final_distance_to_base": finite(gaps[-1]),
        "final_gradient_norm": finite(metrics.gradient_norm[-1, lane]),
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


def finite(value: float) -> float | None:
    """The number as JSON has it: None if it is not finite."""
    return float(value) if np.isfinite(value) else None


def predicted(flow: dict[str, Any], value: float | None) -> str:
    """A prediction; a dash where none was made."""
    return text(value, ".3e") if flow["prediction_evaluations"] else "-"


def text(value: float | None, form: str) -> str:
    """The number in a format; None is a number that is not finite."""
    return "nan" if value is None else format(value, form)
