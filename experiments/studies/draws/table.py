"""The table of many runs with every step size."""

from typing import Any

from rich.console import Console

from experiments.output import report
from experiments.studies.draws.records import NAMES, SIGMAS
from gf_jax.descent.batches import REPLACEMENT

LABELS = ("spread", "mean", "loss")
LEGEND = f"""\
spread: root mean square distance of a run from the mean run. mean: distance of
the mean run from gradient flow, free of the bias of so few runs; < where it is
not told from 0. loss: mean loss of the runs less that of the flow.
±: standard error of the draws; of what is predicted {SIGMAS:g} standard errors
and the error that is told besides. order: slope of the logarithm against that
of the step size, """
EXPECTED = "expected ½ for the spread and 1 for the others."
OF_EPOCHS = """\
for the mean expected 1, and for the spread ½ where an epoch
is long; where it is short, 1 within epochs and 1½ at their ends."""


def show(summary: dict[str, Any], console: Console) -> None:
    """Prints the numbers at the last time, a row for every step size."""
    rows = []
    for name, label in zip(NAMES, LABELS, strict=True):
        order, error = summary["orders"][name]
        for number, lane in enumerate(summary["runs"]):
            told = lane.get(f"predicted_{name}")
            found = lane[f"measured_{name}"]
            rows.append(
                (
                    "" if number else label,
                    f"{lane['step_size']:g}",
                    _measured(found, signed=name == NAMES[-1]),
                    report.text(found["standard_error"], ".0e"),
                    "–" if told is None else report.text(told["value"], ".3e"),
                    "–" if told is None else report.text(_error(told), ".0e"),
                    "" if number or order is None else f"{order:.2f}±{error:.2f}",
                )
            )
    order = "" if summary["order"] == REPLACEMENT else f", {summary['order']}"
    title = (
        f"{summary['network']} on {summary['data']}{order}\n{summary['draws']:,} runs with every "
        f"step size, at time {summary['time']:g}, where the loss of the flow is "
        f"{report.text(summary['loss'], '.5g')}"
    )
    heads = ("", "step size", "measured", "±", "predicted", "±", "order")
    expected = OF_EPOCHS if order else EXPECTED
    report.show_table(console, title, heads, rows, legend=LEGEND + expected, left=1)


def _error(numbers: dict[str, Any]) -> float | None:
    """All that a number may be off by."""
    parts = numbers["standard_error"], numbers["error"]
    return None if None in parts else SIGMAS * parts[0] + parts[1]


def _measured(numbers: dict[str, Any], *, signed: bool) -> str:
    """A measured number; what is not negative and not told from 0 is below a bound."""
    value, most = numbers["value"], _error(numbers)
    if signed or value is None or most is None or value > most:
        return report.text(value, ".3e")
    return f"< {value + most:.0e}"
