"""Figure of deep linear networks from many random balanced starts."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.figures import style
from experiments.records import Starts

DATA = 0  # the data set drawn in full


def draw_starts(
    done: Sequence[Starts], labels: Sequence[str], epsilon: float, directory: Path
) -> list[Path]:
    """Draws what becomes of the starts, one column per depth.

    From above: loss above its minimum, with the start opposite to the target; share of the
    starts that have come within epsilon; distance between descent and flow; unbalancedness.
    Curves are medians over the starts, bands reach from the 5th to the 95th percentile.

    Args:
      done: one entry per depth.
      labels: of the data sets; the first is drawn in full, of the others the share alone.
      epsilon: the accuracy.
      directory: where.

    Returns:
      The paths written.
    """
    figure = Figure(figsize=(1 + 5 * len(done), 15), layout="constrained")
    panels = figure.subplots(4, len(done), squeeze=False, sharex=True, sharey="row")
    for column, starts in zip(panels.T, done, strict=True):
        loss, share, gap, unbalancedness = column
        for lane in range(len(starts.step_sizes) + 1):
            _curve(loss, starts, starts.excess_over_time, lane)
            _share(share, starts, lane, labels)
            if lane:
                _curve(gap, starts, starts.gap_over_time, lane)
            _curve(unbalancedness, starts, starts.unbalancedness_over_time, lane)
        opposite = {"color": "red", "linestyle": ":", "linewidth": 2.2}
        loss.plot(starts.times, starts.opposite[:, 1, DATA], label="opposite start", **opposite)
        loss.axhline(epsilon, color="0.5", linewidth=1, label=rf"accuracy $\epsilon$ = {epsilon:g}")
        style.describe(loss, f"{starts.depth} layers: loss above its minimum", "")
        style.describe(share, "Share of the starts within the accuracy", "")
        style.describe(gap, "Distance between descent and flow", "")
        style.describe(unbalancedness, "Unbalancedness", "")
        for axes in (loss, gap, unbalancedness):
            axes.set_yscale("log")
    loss.set_ylim(bottom=epsilon / 100)
    units = ("logarithmic", "of all starts", "Euclidean distance, logarithmic")
    for axes, unit in zip(panels[:, 0], (*units, "Frobenius norm, logarithmic"), strict=True):
        axes.set_ylabel(unit)
    title = (
        f"{done[0].cosine.shape[1]:,} random balanced starts near zero: {labels[DATA]}\n"
        "medians, and bands from the 5th to the 95th percentile"
    )
    return style.save(figure, panels[0, 0], title, directory)


def _curve(axes: Axes, starts: Starts, values: np.ndarray, lane: int) -> None:
    """Median and band of one run."""
    low, median, high = np.where(np.isfinite(values) & (values > 0), values, np.nan)[
        :, :, lane, DATA
    ]
    colour = style.colour(lane)
    axes.fill_between(starts.times, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.plot(starts.times, median, color=colour, linestyle=_dash(lane), label=_name(starts, lane))


def _share(axes: Axes, starts: Starts, lane: int, labels: Sequence[str]) -> None:
    """Share of the starts that have arrived by a time, on every data set."""
    for number in range(len(labels)):
        arrivals = np.sort(starts.arrival[lane, number])
        share = np.searchsorted(arrivals, starts.times, side="right") / len(arrivals)
        axes.plot(
            starts.times,
            share,
            color=style.colour(lane),
            linestyle=_dash(lane),
            alpha=1 if number == DATA else 0.4,
        )


def _dash(lane: int) -> str | tuple[int, tuple[float, ...]]:
    return style.DASHES[lane % len(style.DASHES)]


def _name(starts: Starts, lane: int) -> str:
    return "gradient flow" if lane == 0 else rf"$\eta$ = {starts.step_sizes[lane - 1]:g}"
