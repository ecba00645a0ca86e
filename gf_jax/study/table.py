"""The table of a comparison, as plain text and as HTML."""

import html
from typing import Any, NamedTuple

from gf_jax.study.summary import divergences, text, verdict

COLUMNS = ("step size", "loss", "from the flow", "predicted", "from largest step", "predicted")
KINKS = (
    "The loss has kinks: where two runs pass one on different sides they may part for good, which "
    "no prediction foresees."
)


class Table(NamedTuple):
    """Texts: a title, rows whose first holds the heads, and sentences below."""

    title: str
    rows: list[tuple[str, ...]]
    notes: list[str]


def of_run(summary: dict[str, Any], kinks: int) -> Table:
    """The table of a run, from the numbers of ``summarise``."""
    flow = summary.get("flow")
    lanes = [_row(lane, flow and flow["runs"][at]) for at, lane in enumerate(summary["runs"])]
    rows = [COLUMNS, *lanes]
    # What was left out has no column.
    kept = [at for at, cells in enumerate(zip(*lanes, strict=True)) if any(cells)]
    rows = [tuple(row[at] for at in kept) for row in rows]
    title = (
        f"{summary['network']}, {summary['iterations']:,} iterations to time {summary['time']:g}"
    )
    notes = [KINKS] if kinks else []
    if flow and flow["order"] is not None:
        order = f"{flow['order']:.3f}"
        notes.append(f"Order of the distance from the flow in the step size: {order}.")
    notes += [*verdict(summary), *map("Warning: {}.".format, divergences(summary))]
    return Table(title, rows, notes)


def _row(lane: dict[str, Any], beside: dict[str, Any] | None) -> tuple[str, ...]:
    size, loss = f"{lane['step_size']:.4g}", text(lane["final_loss"], ".6g")
    gap = text(lane["final_distance_to_base"], ".3e")
    if beside is None:
        return size, loss, "", "", gap, ""
    if beside["measured"] or beside["smallest_measurable"] is None:
        distance = text(beside["distance_to_flow"], ".3e")
        if beside["resolution"] is not None:
            distance += f" ± {beside['resolution']:.0e}"
    else:
        distance = f"< {beside['smallest_measurable']:.3e}"
    predicted, predicted_gap = (
        "" if beside[name] is None else f"{beside[name]:.3e}"
        for name in ("predicted_to_flow", "predicted_gap")
    )
    return size, loss, distance, predicted, gap, predicted_gap


def as_text(table: Table) -> str:
    """In columns aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*table.rows, strict=True)]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in table.rows
    ]
    return "\n".join([table.title, "", *lines, "", *table.notes])


def as_html(table: Table) -> str:
    """As a table, with everything escaped."""
    head, *rows = (
        "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"
        for row, tag in zip(table.rows, ["th"] + ["td"] * len(table.rows), strict=False)
    )
    caption = f"<caption>{html.escape(table.title)}</caption>"
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in table.notes)
    return f"<table>{caption}<thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>{notes}"
