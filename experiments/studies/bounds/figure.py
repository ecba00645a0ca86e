"""Figure of curvature, the gap under its bound, and step sizes for the accuracy."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from experiments.output.figures import style
from experiments.studies import spectra
from experiments.studies.bounds.records import Answer, BoundsRun

if TYPE_CHECKING:
    from experiments.output.figures import Axes, Figure

# How the panels are read.
GAP = (
    "Marks: the distance from the flow that was measured. It must lie below the dashed bound, "
    "and near the predicted line."
)
ANSWERS = (
    "The larger, the less work. Each row answers how large the step may be; the lowest was "
    "tried out. What is far to the left is safe and far too careful."
)


def draw(run: BoundsRun, answers: Sequence[Answer]) -> "Figure":
    """Draws curvature, the gap under its bound, and step sizes for the accuracy."""
    figure = style.new(17, 5.2)
    smallest, gap, step_sizes = figure.subplots(1, 3)
    spectra.draw_smallest(smallest, run.times, run.spectrum)
    if run.tube is not None:
        label = rf"lower bound within $\epsilon$ = {run.epsilon:g}"
        smallest.plot(
            run.times, run.tube.lambda_min, color=style.COLOURS[4], linewidth=1, label=label
        )
    smallest.legend(frameon=False, loc="upper left")
    times = run.times[1:]
    gap.plot(times, run.bound[1:], "--", color=style.COLOURS[2], label="fundamental theorem")
    gap.plot(times, run.predicted[1:], "-", color=style.COLOURS[1], label="predicted")
    gap.plot(
        times,
        run.gap[1:],
        "o",
        color=style.COLOURS[0],
        markersize=4,
        markerfacecolor="none",
        label="measured",
    )
    gap.axhline(run.epsilon, color="0.4", linestyle=":", label=rf"$\epsilon$ = {run.epsilon:g}")
    gap.set_yscale("log")
    gap.legend(frameon=False)
    style.describe(
        gap,
        rf"Distance of descent with $\eta_0$ = {run.step_size:g} from its flow",
        style.LOGARITHMIC,
        GAP,
    )
    for panel in (smallest, gap):
        spectra.show_early(panel, run.times)
    _answers(step_sizes, run, answers)
    title = f"What theory allows: {run.network_label} on {run.data_label}"
    return style.finish(figure, None, title)


def _answers(axes: "Axes", run: BoundsRun, answers: Sequence[Answer]) -> None:
    """Step sizes for the accuracy, one row each."""
    sizes = np.array([answer.step_size for answer in answers])
    shown = np.isfinite(sizes) & (sizes > 0)
    for row in np.flatnonzero(shown):
        axes.plot(
            sizes[row],
            row,
            style.MARKS[row],
            color=style.COLOURS[1 + row],
            markersize=9,
            label=f"_{answers[int(row)].by}",
        )
        axes.annotate(
            f"{sizes[row]:.2e}",
            (sizes[row], row),
            xytext=(0, 10),
            textcoords="offset points",
            ha="center",
        )
    axes.set_xscale("log")
    axes.margins(x=0.15, y=0.2)
    axes.set_yticks(range(len(sizes)), [answer.by for answer in answers])
    axes.invert_yaxis()
    axes.set(
        title=rf"Step size for $\epsilon$ = {run.epsilon:g} up to time {run.times[-1]:g}",
        xlabel="step size, logarithmic",
    )
    axes.grid(visible=True, axis="x", alpha=0.25)
    style.explain(axes, ANSWERS)
