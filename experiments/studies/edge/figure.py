"""The figure of runs at the edge of stability and of their central flows."""

from typing import TYPE_CHECKING

import numpy as np

from experiments.output.figures import style
from experiments.studies.edge.records import Edges

if TYPE_CHECKING:
    from experiments.output.figures import Axes, Figure

# Texts are of descent; of an optimiser gradient flow is its continuous limit.
SHARPNESS = (
    "Above 1 an oscillation grows. Marks are the averaged runs, lines their central flows, dashes "
    "gradient flow, which knows no edge."
)
LOSS = (
    "Marks: averaged over windows of each run. Lines: the same average as the central flow "
    "predicts it. Dashes: gradient flow."
)
DISTANCE = (
    "Lines with marks: from the averaged run to its central flow. Dashes: to gradient flow. Where "
    "they part gradient flow fails and the central flow does not."
)
OSCILLATION = (
    "Root of the variance of what alternates from step to step. Marks are measured, lines "
    "predicted. After an event marks lag behind lines until the oscillation has grown."
)


def draw(saved: Edges) -> "Figure":
    """Draws sharpness, loss, distances and the size of the oscillation against time."""
    limit, figure = saved.limit, style.new(12.5, 9.0)
    sharpness, loss, distance, oscillation = figure.subplots(2, 2).flat
    for lane, step_size in enumerate(saved.step_sizes):
        look = {"color": style.colour(lane)}
        marks = {"marker": style.MARKS[lane % len(style.MARKS)], "markersize": 3.5} | look
        label = rf"$\eta$ = {step_size:g}"
        half = step_size / 2
        flow = look | {"linestyle": "--", "linewidth": 1}
        dots = marks | {"linestyle": "none"}
        sharpness.plot(saved.times, half * saved.sharpness[:, lane], label=label, **dots)
        _line(sharpness, saved.times, half * saved.central_sharpness[:, lane], label, look)
        sharpness.plot(
            saved.times, half * saved.flow_sharpness[:, lane], label=f"_{label}; {limit}", **flow
        )
        loss.plot(saved.times, saved.average_loss[:, lane], label=f"_{label}", **dots)
        _line(loss, saved.times, saved.central_loss[:, lane], label, look)
        distance.plot(saved.times, saved.from_central[:, lane], label=f"_{label}", **marks)
        distance.plot(
            saved.times, saved.from_flow[:, lane], label=f"_{label}; from {limit}", **flow
        )
        predicted = np.sqrt(saved.central_variance[:, lane])
        measured = np.sqrt(saved.variance[:, lane])
        oscillation.plot(saved.times, measured, label=f"_{label}", **dots)
        _line(oscillation, saved.times, np.where(predicted > 0, predicted, np.nan), label, look)
    loss.plot(saved.times, saved.flow_loss, "--", color="0.5", label=f"_{limit}")
    sharpness.axhline(1.0, color="0.4", linestyle=":", label="_edge of stability")
    most = np.nanmax(
        np.stack([saved.sharpness, saved.central_sharpness]) * saved.step_sizes / 2, initial=1.0
    )
    sharpness.set_ylim(0, 1.35 * min(most, 2.0))
    for panel in (loss, distance, oscillation):
        values = [np.asarray(line.get_ydata(), float) for line in panel.lines]
        if any((np.nan_to_num(each) > 0).any() for each in values):
            panel.set_yscale("log")
    predicted = saved.central_variance[saved.central_variance > 0]
    if predicted.size:  # what has not grown yet leaves through the bottom
        oscillation.set_ylim(bottom=np.sqrt(predicted.min()) / 30)
    unit = "sharpness × step size / 2"
    style.describe(
        sharpness,
        "Sharpness, as a share of the edge",
        unit,
        SHARPNESS.replace("gradient flow", limit),
    )
    style.describe(
        loss,
        "Training loss",
        f"{saved.loss_unit}, logarithmic",
        LOSS.replace("gradient flow", limit),
    )
    style.describe(
        distance,
        "From the averaged run",
        style.LOGARITHMIC,
        DISTANCE.replace("gradient flow", limit),
    )
    style.describe(oscillation, "Size of the oscillation", style.LOGARITHMIC, OSCILLATION)
    for panel in (sharpness, loss):
        _note(panel, f"marks: averaged run; lines: central flow; dashes: {limit}")
    _note(distance, f"lines: to the central flow; dashes: to {limit}")
    _note(oscillation, "marks: run; lines: central flow")
    title = f"At the edge of stability: {saved.network_label} on {saved.data_label}"
    return style.finish(figure, sharpness, title)


def _note(panel: "Axes", note: str) -> None:
    """A line below the panel."""
    panel.set_xlabel(f"{panel.get_xlabel()}\n{note}")


def _line(panel: "Axes", times: np.ndarray, values: np.ndarray, label: str, look: dict) -> None:
    panel.plot(times, values, label=f"_{label}; central flow", **look)
