"""Figures of saved runs."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.store import Reference, Run
from gf_jax.comparison import WELL_BELOW

# Okabe and Ito's palette: told apart by readers with any colour vision. The dashes
# differ too, so that curves on top of each other are all seen.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES: tuple[str | tuple[int, tuple[float, ...]], ...] = (
    "-",
    (0, (7, 2)),
    (4, (4, 3)),
    (0, (1, 2)),
    (2, (6, 2, 1, 2)),
)
MARKS = ("o", "s", "D", "^", "v", "P", "X")


def draw_run(run: Run, directory: Path) -> list[Path]:
    """Draws a run as ``figure.png`` and ``figure.pdf`` in a folder.

    Upper row, as in the paper: training losses of all runs; distances from the
    initial point and from the base run. Lower row: the gaps between each run and
    the base run, in loss and in weight space, on logarithmic axes. A third column
    compares with gradient flow: distance of every run to it, and its order in the
    step size. Where gaps are predicted, lines are the prediction and marks what was
    measured. A lane that diverges is drawn up to there, and all axes are then
    logarithmic.

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
    _describe(axes[0, 0], "Training loss", "nats")
    _describe(axes[0, 1], "Distance from initialisation")
    if reference is not None:
        _against_flow(axes[0, 2], run, reference)
    if others:
        _curves(axes[0, 1], run, metrics.distance_to_base, first=1, log=log)
        _curves(axes[1, 0], run, np.abs(metrics.loss - metrics.loss[:, :1]), first=1, log=True)
        _describe(axes[0, 1], "From initialisation (above), from the $\\eta_0$ run (below)")
        _describe(
            axes[1, 0], "Difference in training loss from the $\\eta_0$ run", "nats, logarithmic"
        )
        if reference is None:
            _curves(axes[1, 1], run, metrics.distance_to_base, first=1, log=True)
        else:
            _marks(axes[1, 1], run, _at_snapshots(run, metrics.distance_to_base), first=1)
            _predictions(axes[1, 1], run, reference.predicted_to_base, first=1)
            _order(axes[1, 2], run, reference)
        _describe(axes[1, 1], "Distance from the $\\eta_0$ run", "Euclidean distance, logarithmic")
        _mark_distance_travelled(axes[1, 1], run)
    return _finish(figure, axes[0, 0], run, directory)


def _finish(figure: Figure, named: Axes, run: Run, directory: Path) -> list[Path]:
    """Adds title and legend, the latter from the lines of one panel, and saves."""
    label = f"{run.network_label[:1].upper()}{run.network_label[1:]}"
    figure.suptitle(f"{label} on {run.data_label}, $\\eta_0$ = {run.step_size:g}")
    figure.legend(handles=named.lines, loc="outside lower center", ncols=8, frameon=False)
    paths = [directory / "figure.png", directory / "figure.pdf"]
    for path in paths:
        figure.savefig(path, dpi=130)
    return paths


def _against_flow(axes: Axes, run: Run, reference: Reference) -> None:
    """Distance of every lane to the flow, measured where the flow is known well enough."""
    distances = np.where(reference.measured, reference.distance_to_flow, np.nan)
    _marks(axes, run, distances)
    _predictions(axes, run, reference.predicted_to_flow)
    floor = WELL_BELOW * np.nanmax(reference.resolution, axis=1)
    if np.isfinite(floor).all() and (floor > 0).all():
        bottom = axes.get_ylim()[0]
        axes.fill_between(run.snapshot_times, floor, bottom, color="0.85", zorder=0)
        axes.set_ylim(bottom=bottom)
    _describe(axes, "Distance from gradient flow", "Euclidean distance, logarithmic")
    axes.annotate(
        "lines: predicted; marks: measured; grey: beyond what the flow tells",
        xy=(0.5, 0.015),
        xycoords="axes fraction",
        ha="center",
        fontsize="small",
    )


def _order(axes: Axes, run: Run, reference: Reference) -> None:
    axes.axhline(1, color="0.6", linewidth=1)
    axes.plot(run.snapshot_times, reference.order, "o", color=COLOURS[0], markersize=3)
    finite = reference.order[np.isfinite(reference.order)]
    axes.set_ylim(min(0.0, finite.min(initial=0)), max(2.0, 1.1 * finite.max(initial=0)))
    _describe(axes, "Order of that distance in the step size", "slope over all runs; Euler: 1")


def _at_snapshots(run: Run, values: np.ndarray) -> np.ndarray:
    return values[np.isin(run.iterations, run.snapshot_iterations)]


def _marks(axes: Axes, run: Run, values: np.ndarray, *, first: int = 0) -> None:
    """Draws what was measured of the lanes at the snapshots as marks, thinned to about 25."""
    axes.set_yscale("log")
    for lane in range(first, len(run.ratios)):
        kept = np.arange(len(values) - 1, -1, -max(1, len(values) // 25))
        column = values[kept, lane]
        axes.plot(
            run.snapshot_times[kept],
            np.where(np.isfinite(column) & (column > 0), column, np.nan),
            MARKS[lane % len(MARKS)],
            color=_colour(lane),
            markersize=5,
            markerfacecolor="none",
        )


def _predictions(axes: Axes, run: Run, values: np.ndarray, *, first: int = 0) -> None:
    """Draws what was predicted of the lanes as thin lines."""
    for lane in range(first, len(run.ratios)):
        positive = np.where(values[:, lane] > 0, values[:, lane], np.nan)
        axes.plot(run.snapshot_times, positive, color=_colour(lane), linewidth=1)


def _colour(lane: int) -> str:
    return COLOURS[0] if lane == 0 else COLOURS[1 + (lane - 1) % (len(COLOURS) - 1)]


def _curves(axes: Axes, run: Run, values: np.ndarray, *, first: int = 0, log: bool = False) -> None:
    """Draws the lanes from ``first`` on, each in its own colour and dashes."""
    if log:
        values = np.where(values > 0, values, np.nan)  # zeros have no logarithm
        if np.isfinite(values).any():
            axes.set_yscale("log")
    for lane, ratio in list(enumerate(run.ratios))[first:]:
        name = r"$\eta_0$" if ratio == 1 else rf"$\eta_0/{ratio}$"
        diverged = run.diverged_at(lane)
        axes.plot(
            run.times,
            np.where(np.isfinite(values[:, lane]), values[:, lane], np.nan),
            label=name if diverged is None else f"{name}, diverged at {diverged:,}",
            color=_colour(lane),
            linestyle=DASHES[lane % len(DASHES)],
            linewidth=1.8,
        )


def _describe(axes: Axes, title: str, unit: str = "Euclidean distance") -> None:
    axes.set(title=title, xlabel=r"time = iteration $\times$ step size", ylabel=unit)
    axes.margins(x=0.02)
    axes.grid(visible=True, alpha=0.25)


def _mark_distance_travelled(axes: Axes, run: Run) -> None:
    """Says how far the base run went: what the gaps are to be compared with."""
    travelled = run.metrics.distance_from_init[:, 0]
    finite = travelled[np.isfinite(travelled)]
    axes.annotate(
        f"the $\\eta_0$ run travels {finite[-1]:.3g}",
        xy=(0.98, 0.03),
        xycoords="axes fraction",
        ha="right",
    )
