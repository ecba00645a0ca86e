"""What a run shows in numbers: a summary for programs, a table for people."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gf_jax.study.record import Run
from gf_jax.study.summary import but_for as but_for
from gf_jax.study.summary import divergences as divergences
from gf_jax.study.summary import finite as finite
from gf_jax.study.summary import nearness as nearness
from gf_jax.study.summary import predicted as predicted
from gf_jax.study.summary import run_name as run_name
from gf_jax.study.summary import steps as steps
from gf_jax.study.summary import summarise as summarise
from gf_jax.study.summary import text as text
from gf_jax.study.summary import unpredicted as unpredicted

if TYPE_CHECKING:
    from experiments.output.figures import Figure

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
error of the flow, or rounding, hides it. gap: as above. predicted: without
running descent. order: slope of log distance to the flow against log step
size over all runs."""


def dash(value: float | None, form: str) -> str:
    """The number in a format; a dash where there is none to be told."""
    return "–" if value is None else format(value, form)


def print_run(summary: dict[str, Any], console: Console) -> None:
    """Prints the table of a run, its comparison with the flow, and what diverged."""
    print_table(summary, console)
    if "flow" in summary:
        _print_flow(summary, console)
    print_doubts(summary, console)
    for line in divergences(summary):
        console.print(f"[bold red]warning:[/] {line}", soft_wrap=True)


def print_doubts(summary: dict[str, Any], console: Console) -> None:
    """Prints what is missing or doubtful."""
    for doubt in summary["doubts"]:
        console.print(f"[bold yellow]note:[/] {escape(doubt)}", soft_wrap=True)


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
    optimizer, legend = summary.get("optimizer_name"), FLOW_LEGEND
    name = f"the continuous limit of {optimizer}" if optimizer else "gradient flow"
    if optimizer:
        legend = legend.replace("gradient flow", "that limit").replace("descent", optimizer)
    title = f"Against {name}, at time {flow['time']:g}"
    show_table(console, title, FLOW_COLUMNS, rows, legend=legend)
    for line in flow["verdict"]:
        console.print(escape(line), soft_wrap=True, highlight=False)


def draw_run(run: Run) -> "Figure":
    """The figure of a run, see ``gf_jax.study.drawing``."""
    from gf_jax.study import drawing  # Matplotlib is slow to import

    return drawing.draw(run)
