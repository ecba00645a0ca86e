"""Figure of runs from several starting points: medians over the seeds, and their spread."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.figures import style
from experiments.records import Run, percentiles

SPREAD = "curves: medians over the seeds; bands: percentiles 5 to 95, of up to ten seeds all"


def draw_seeds(run: Run, directory: Path) -> list[Path]:
    """Draws a run from several starting points as ``figure.png`` and ``figure.pdf``.

    The panels are those of a run from a single one. Curves are medians over the seeds at
    every time, bands their spread. Where gaps are predicted, thin lines are the median of
    the prediction, marks and bands are what was measured.

    Returns:
      The paths written.
    """
    metrics, reference, others = run.metrics, run.reference, len(run.ratios) > 1
    shape = (2 if others else 1, 2 if reference is None else 3)
    figure = Figure(figsize=(5.5 * shape[1], 8.5 if others else 4.7), layout="constrained")
    axes = figure.subplots(*shape, squeeze=False)
    log = not np.isfinite(metrics.loss).all()
    _curves(axes[0, 0], run, metrics.loss, log=log)
    _curves(axes[0, 1], run, metrics.distance_from_init, log=log)
    style.describe(axes[0, 0], "Training loss", "nats, logarithmic" if log else "nats")
    style.describe(axes[0, 1], "Distance from initialisation")
    if reference is not None:
        # Of some starts there may be no flow; of the others, shown is what is known of all.
        known = np.isfinite(reference.loss).any(axis=0)
        measured = reference.measured[:, known].all(axis=1, keepdims=True)
        distances = np.where(measured, reference.distance_to_flow[:, known], np.nan)
        _marks(axes[0, 2], run, distances, reference.predicted_to_flow[:, known])
        style.describe(axes[0, 2], "Distance from gradient flow", "Euclidean distance, logarithmic")
        note = "lines: predicted, marks and bands: measured"
        axes[0, 2].set_xlabel(f"{axes[0, 2].get_xlabel()}\n{note}")
    if others:
        _curves(axes[0, 1], run, metrics.distance_to_base, first=1, log=log)
        with np.errstate(invalid="ignore"):  # of runs that diverged
            differences = np.abs(metrics.loss - metrics.loss[..., :1])
        _curves(axes[1, 0], run, differences, first=1, log=True)
        axes[0, 1].set_title("From initialisation (above), from the $\\eta_0$ run (below)")
        style.describe(
            axes[1, 0], "Difference in training loss from the $\\eta_0$ run", "nats, logarithmic"
        )
        if reference is None:
            _curves(axes[1, 1], run, metrics.distance_to_base, first=1, log=True)
        else:
            gaps = metrics.distance_to_base[np.isin(run.iterations, run.snapshot_iterations)]
            _marks(axes[1, 1], run, gaps, reference.predicted_to_base[:, known], first=1)
            _order(axes[1, 2], run, reference.order[:, known])
        style.describe(
            axes[1, 1], "Distance from the $\\eta_0$ run", "Euclidean distance, logarithmic"
        )
    title = (
        rf"{run.network_label} on {run.data_label}, $\eta_0$ = {run.step_size:g}, seeds "
        f"{run.seeds[0]} to {run.seeds[-1]}\n{SPREAD}"
    )
    return style.save(figure, axes[0, 0], title, directory)


def _over_seeds(values: np.ndarray) -> np.ndarray:
    """Percentiles over the seeds, shape (percentiles, times, ...); NaN where not finite."""
    found = percentiles(np.moveaxis(values, 1, -1))
    return np.where(np.isfinite(found), found, np.nan)


def _curves(axes: Axes, run: Run, values: np.ndarray, *, first: int = 0, log: bool = False) -> None:
    """Draws the medians of the lanes from ``first`` on, and bands: one for lanes that coincide."""
    _scale(axes, values, log=log)
    found = _positive(_over_seeds(values)) if log else _over_seeds(values)
    for lane in range(first, len(run.ratios)):
        low, median, high = found[..., lane]
        if first or lane == 0:
            _band(axes, run.times, low, high, lane)
        axes.plot(
            run.times,
            median,
            label=style.run_name(run.ratios[lane]),
            color=style.colour(lane),
            linestyle=style.DASHES[lane % len(style.DASHES)],
            linewidth=1.8,
        )


def _marks(
    axes: Axes, run: Run, measured: np.ndarray, predicted: np.ndarray, *, first: int = 0
) -> None:
    """Draws what was measured at the snapshots as marks and bands, what was predicted as lines."""
    _scale(axes, measured, log=True)
    found, expected = _positive(_over_seeds(measured)), _positive(_over_seeds(predicted))
    kept = np.arange(len(measured) - 1, -1, -max(1, len(measured) // 25))
    for lane in range(first, len(run.ratios)):
        low, median, high = found[..., lane]
        colour = style.colour(lane)
        _band(axes, run.snapshot_times, low, high, lane)
        axes.plot(
            run.snapshot_times[kept],
            median[kept],
            style.MARKS[lane % len(style.MARKS)],
            color=colour,
            markersize=5,
            markerfacecolor="none",
        )
        axes.plot(run.snapshot_times, expected[1, :, lane], color=colour, linewidth=1)


def _order(axes: Axes, run: Run, order: np.ndarray) -> None:
    low, median, high = np.where(np.isfinite(order).all(axis=1), _over_seeds(order), np.nan)
    axes.axhline(1, color="0.6", linewidth=1)
    _band(axes, run.snapshot_times, low, high, 0)
    axes.plot(run.snapshot_times, median, "o", color=style.COLOURS[0], markersize=3)
    axes.set_ylim(min(0.0, np.nanmin(low, initial=0)), max(2.0, 1.1 * np.nanmax(high, initial=0)))
    style.describe(axes, "Order of that distance in the step size", "slope over all runs; Euler: 1")


def _band(axes: Axes, times: np.ndarray, low: np.ndarray, high: np.ndarray, lane: int) -> None:
    axes.fill_between(times, low, high, color=style.colour(lane), alpha=0.15, linewidth=0)


def _positive(values: np.ndarray) -> np.ndarray:
    return np.where(values > 0, values, np.nan)  # zeros have no logarithm


def _scale(axes: Axes, values: np.ndarray, *, log: bool) -> None:
    if log and (np.isfinite(values) & (values > 0)).any():
        axes.set_yscale("log")
