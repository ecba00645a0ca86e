"""The figure of many runs with every step size."""

from typing import TYPE_CHECKING

import numpy as np

from experiments.output.figures import style
from experiments.studies.draws.records import NAMES, Draws
from gf_jax.descent.batches import REPLACEMENT, SHUFFLED

if TYPE_CHECKING:
    from experiments.output.figures import Axes, Figure

TITLES = ("Spread of the runs", "Mean run from gradient flow", "Mean loss above that of the flow")
SPREAD = (
    "How far a run stands from the mean of all runs with its step size. Marks are measured, lines "
    "predicted from the flow; "
)
OF_ORDERS = {
    REPLACEMENT: "a quarter of the step size halves it.",
    SHUFFLED: "at the ends of epochs runs have seen the same examples, and stand nearer.",
}
READINGS = (
    SPREAD,
    (
        "How far the mean of all runs stands from the flow. It is of the size of the step itself, "
        "so that a quarter of the step size makes a quarter of it. No mark: too few runs to tell."
    ),
    "How much higher the loss is on average than that of the flow.",
)


def draw(saved: Draws) -> "Figure":
    """Draws spread, distance of the mean and loss against time; marks measured, lines predicted."""
    figure = style.new(16.5, 4.9)
    panels = figure.subplots(1, 3)
    for panel, name, title, reading in zip(panels, NAMES, TITLES, READINGS, strict=True):
        for lane, step_size in enumerate(saved.step_sizes):
            colour, label = style.colour(lane), rf"$\eta$ = {step_size:g}"
            _draw_lane(panel, saved, name, lane, colour, label)
        unit = "Euclidean distance, logarithmic"
        unit = unit if name != "loss_difference" else "loss"
        whole = reading + (OF_ORDERS[saved.order] if name == "spread" else "")
        style.describe(panel, title, unit, whole)
        shown = [np.nan_to_num(np.asarray(line.get_ydata())) for line in panel.lines]
        if name != "loss_difference" and any((values > 0).any() for values in shown):
            panel.set_yscale("log")
    told = "" if saved.predicted is None else " (marks measured, lines predicted)"
    drawn = f"{saved.draws} {'' if saved.order == REPLACEMENT else f'{saved.order} '}draws"
    title = f"{drawn}: {saved.network_label} on {saved.data_label}{told}"
    return style.finish(figure, panels[0], title)


def _draw_lane(panel: "Axes", saved: Draws, name: str, lane: int, colour: str, label: str) -> None:
    """The marks of a step size with their standard errors, and its line with its errors."""
    found = getattr(saved.measured, name)
    value, error = found.value[:, lane], found.standard_error[:, lane]
    shown = np.where(found.measured[:, lane] | (name == "loss_difference"), value, np.nan)
    panel.plot(
        saved.times, shown, style.MARKS[lane % len(style.MARKS)], color=colour, label=label,
        markersize=4,
    )  # fmt: skip
    bars = np.stack([shown - error, shown + error, np.full_like(shown, np.nan)], axis=1)
    panel.plot(
        np.repeat(saved.times, 3), bars.ravel(), color=colour, linewidth=1,
        label=f"_{label}; standard error",
    )  # fmt: skip
    if saved.predicted is None:
        return
    told = getattr(saved.predicted, name)
    line, off = told.value[:, lane], told.within(1.0)[:, lane]
    panel.plot(saved.times, line, color=colour, linewidth=1.2, label=f"_{label}; predicted")
    low = line - off if name == "loss_difference" else np.maximum(line - off, line / 10)
    panel.fill_between(
        saved.times, low, line + off, color=colour, alpha=0.15, linewidth=0,
        label=f"_{label}; error of the prediction",
    )  # fmt: skip
