"""Figure of deep linear networks from many random balanced starts."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from experiments.output.figures import style
from experiments.studies.deep_linear.records import Starts

if TYPE_CHECKING:
    from experiments.output.figures import Axes, Figure

DATA = 0  # the data set drawn in full
FLOOR = 1e-15  # below it unbalancedness is rounding
TITLES = (
    "loss above its minimum",
    r"share of starts within $\epsilon$",
    "distance of descent from flow",
    "unbalancedness",
)
# How the panels are read.
READINGS = (
    (
        "The red start, exactly opposite to the target, is the one that theory excepts. All "
        "others fall."
    ),
    ("It climbs to 1 when all starts have arrived. Pale: other data."),
    (
        "For each step size the distance from the flow of the same start. Half the step size, "
        "half the distance."
    ),
    (
        "The flow conserves it, descent does so up to its step size. Balanced means that "
        "neighbouring layers have equal singular values."
    ),
)
UNITS = (
    "squared loss, logarithmic",
    "share of all starts",
    "Euclidean distance, logarithmic",
    "Frobenius norm, logarithmic",
)


def draw(done: Sequence[Starts], labels: Sequence[str], epsilon: float) -> "Figure":
    """Draws what becomes of the starts, one column per depth.

    From above: loss above its minimum, with that of the start opposite to the target
    under descent with the largest step size; share of the starts that have come within
    epsilon; distance between descent and flow; unbalancedness. Curves are medians over the
    starts, bands reach from the 5th to the 95th percentile.

    Args:
      done: one entry per depth.
      labels: of the data sets; the first is drawn in full, of the others the share alone.
      epsilon: the accuracy.

    Returns:
      The figure.
    """
    figure = style.new(max(11, 1 + 5 * len(done)), 14)
    panels = figure.subplots(4, len(done), squeeze=False, sharex=True, sharey="row")
    for column, starts in zip(panels.T, done, strict=True):
        loss, share, gap, unbalancedness = column
        for lane in range(len(starts.step_sizes) + 1):
            _curve(loss, starts, starts.excess_over_time, lane, band=lane == 0)
            _share(share, starts, lane, labels)
            if lane:
                _curve(gap, starts, starts.gap_over_time, lane)
            _curve(unbalancedness, starts, starts.unbalancedness_over_time, lane)
        opposite = {"color": "red", "linestyle": ":", "linewidth": 2.2}
        loss.plot(starts.times, starts.opposite[:, 1, DATA], label="opposite start", **opposite)
        loss.axhline(epsilon, color="0.5", linewidth=1, label=rf"accuracy $\epsilon$ = {epsilon:g}")
        for axes, title, reading in zip(column, TITLES, READINGS, strict=True):
            style.describe(axes, f"{starts.depth} layers: {title}", "", reading)
            axes.label_outer()
        for axes in (loss, gap, unbalancedness):
            axes.set_yscale("log")
    panels[0, 0].set_ylim(bottom=epsilon / 100)
    panels[3, 0].set_ylim(bottom=FLOOR)
    for axes, unit in zip(panels[:, 0], UNITS, strict=True):
        axes.set_ylabel(unit)
    title = (
        f"{done[0].cosine.shape[1]:,} random balanced starts near zero: {labels[DATA]} "
        f"(pale: {', '.join(labels[DATA + 1 :])})\n"
        "curves are medians over the starts, bands reach from the 5th to the 95th percentile"
    )
    return style.finish(figure, panels[0, 0], title)


def _curve(
    axes: "Axes", starts: Starts, values: np.ndarray, lane: int, *, band: bool = True
) -> None:
    """Median of one run, and its band."""
    low, median, high = np.where(np.isfinite(values) & (values > 0), values, np.nan)[
        :, :, lane, DATA
    ]
    colour = style.colour(lane)
    if band:
        axes.fill_between(starts.times, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.plot(starts.times, median, color=colour, linestyle=_dash(lane), label=_name(starts, lane))


def _share(axes: "Axes", starts: Starts, lane: int, labels: Sequence[str]) -> None:
    """Share of the starts that have arrived by a time, on every data set."""
    for number in range(len(labels)):
        arrivals = np.sort(starts.arrival[lane, number])
        arrived = arrivals[np.isfinite(arrivals)]
        share = np.arange(len(arrived) + 1) / len(arrivals)
        axes.plot(
            [starts.times[0], *arrived, starts.times[-1]],
            [*share, share[-1]],
            drawstyle="steps-post",
            color=style.colour(lane),
            linestyle=_dash(lane),
            alpha=1 if number == DATA else 0.3,
            label=f"_{_name(starts, lane)}; {labels[number]}",
        )


def _dash(lane: int) -> str | tuple[int, tuple[float, ...]]:
    return style.DASHES[lane % len(style.DASHES)]


def _name(starts: Starts, lane: int) -> str:
    return "gradient flow" if lane == 0 else rf"$\eta$ = {starts.step_sizes[lane - 1]:g}"
