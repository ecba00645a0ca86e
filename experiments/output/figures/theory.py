"""Figures of curvature and bounds."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.output.figures import style
from experiments.studies.records import Answer, BoundsRun, CurvatureRun, NearZero, Spectrum


def draw_curvature(run: CurvatureRun, directory: Path) -> Figure:
    """Draws both ends of the Hessian's spectrum, and what the lower one lets grow."""
    figure = Figure(figsize=(16.5, 4.9), layout="constrained")
    largest, smallest, growth = figure.subplots(1, 3)
    times, spectrum = run.times, run.spectrum
    look = {"color": style.COLOURS[2], "markersize": 3, "label": r"_$\lambda_{max}$"}
    largest.plot(times, spectrum.lambda_max, "o-", **look)
    largest.axhline(
        2 / run.step_size, color="0.4", linestyle=":", label=r"$2/\eta_0$, the edge of stability"
    )
    largest.set_yscale("log")
    largest.legend(frameon=False)
    style.describe(largest, r"Largest eigenvalue, $\lambda_{max}$", "1 / time, logarithmic")
    _smallest(smallest, times, spectrum)
    look = {"color": style.COLOURS[1], "markersize": 3, "label": "_integral"}
    growth.plot(times, run.integral, "o-", **look)
    style.describe(
        growth, r"$\int\max(-\lambda_{min}, 0)\,dt$", "no unit; a gap grows by exp of it"
    )
    for panel in (largest, smallest, growth):
        _early_times(panel, times)
    title = f"Curvature along {run.along}: {run.network_label} on {run.data_label}"
    return style.save(figure, smallest, title, directory)


def draw_bounds(run: BoundsRun, answers: Sequence[Answer], directory: Path) -> Figure:
    """Draws curvature, the gap under its bound, and step sizes for the accuracy."""
    figure = Figure(figsize=(17, 5.2), layout="constrained")
    smallest, gap, step_sizes = figure.subplots(1, 3)
    _smallest(smallest, run.times, run.spectrum)
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
        "Euclidean distance, logarithmic",
    )
    for panel in (smallest, gap):
        _early_times(panel, run.times)
    _answers(step_sizes, run, answers)
    title = f"What theory allows: {run.network_label} on {run.data_label}"
    return style.save(figure, None, title, directory)


def draw_near_zero(sweep: NearZero, directory: Path) -> Figure:
    """Draws the smallest eigenvalue against scale and width; solid measured, dashed bounds."""
    figure = Figure(figsize=(13, 5.4), layout="constrained")
    by_scale, by_width = figure.subplots(1, 2, sharey=True)
    bounded = not np.isnan(sweep.starts_bound).all()
    for panel, values, bounds in (
        (by_scale, sweep.at_starts, sweep.starts_bound),
        (by_width, sweep.in_tubes, sweep.tubes_bound),
    ):
        for row, depth in enumerate(sweep.depths):
            colour = style.colour(row)
            label = f"{depth} layers"
            negative = np.where(values[row] < 0, -values[row], np.nan)
            panel.plot(
                sweep.scales,
                negative,
                style.MARKS[row % len(style.MARKS)] + "-",
                color=colour,
                label=label,
            )
            if bounded:
                look = {"color": colour, "linewidth": 1, "label": f"_{label}; bound"}
                panel.plot(sweep.scales, -bounds[row], "--", **look)
        panel.set(xscale="log", yscale="log")
        panel.grid(visible=True, alpha=0.25)
    by_scale.set(
        title=r"$-\lambda_{min}$ at the start",
        xlabel="scale of the start, logarithmic",
        ylabel="1 / time, logarithmic" + ("; dashed: bound" if bounded else ""),
    )
    by_width.set(
        title=rf"Largest $-\lambda_{{min}}$ around the start scaled by {sweep.scales[-1]:.3g}",
        xlabel="width of the tube, Euclidean distance, logarithmic",
    )
    title = f"Curvature near zero: {sweep.network_label} on {sweep.data_label}"
    return style.save(figure, by_scale, title, directory)


def _answers(axes: Axes, run: BoundsRun, answers: Sequence[Answer]) -> None:
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


def _smallest(axes: Axes, times: np.ndarray, spectrum: Spectrum) -> None:
    """The smallest eigenvalue and the bounds below it."""
    curves = {
        r"$\lambda_{min}$": (spectrum.lambda_min, style.COLOURS[1], "o-"),
        "lower bound, sharpened": (spectrum.sharpened, style.COLOURS[3], "--"),
        "lower bound of the theorem": (spectrum.theorem, style.COLOURS[0], ":"),
    }
    for label, (values, colour, line) in curves.items():
        if np.isnan(values).all():  # no bound covers the network
            continue
        axes.plot(times, values, line, color=colour, label=label, markersize=3)
    scale = np.abs(spectrum.lambda_min)
    axes.set_yscale("symlog", linthresh=max(float(scale.min()), 1e-3 * float(scale.max()), 1e-12))
    axes.axhline(0, color="0.7", linewidth=1, label="_zero")
    style.describe(axes, r"Smallest eigenvalue, $\lambda_{min}$", "1 / time, logarithmic")


def _early_times(axes: Axes, times: np.ndarray) -> None:
    """A time axis that shows the beginning: linear up to the first sample, then logarithmic."""
    if len(times) > 1:
        axes.set_xscale("symlog", linthresh=times[1])
        axes.set_xlim(0, times[-1])
