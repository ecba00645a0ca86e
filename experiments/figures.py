"""Figures of saved runs."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.store import Run

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


def draw_run(run: Run, directory: Path) -> list[Path]:
    """Draws a run as ``figure.png`` and ``figure.pdf`` in a folder.

    Upper row, as in the paper: training losses of all runs; distances from the
    initial point and from the base run. Lower row: the gaps between each run and
    the base run, in loss and in weight space, on logarithmic axes. A lane that
    diverges is drawn up to there, and all axes are then logarithmic.

    Returns:
      The paths written.
    """
    metrics, others = run.metrics, len(run.ratios) > 1
    figure = Figure(figsize=(11, 8.5 if others else 4.7), layout="constrained")
    axes = figure.subplots(2 if others else 1, 2).flat
    log = not np.isfinite(metrics.loss).all()
    _curves(axes[0], run, metrics.loss, log=log)
    _curves(axes[1], run, metrics.distance_from_init, log=log)
    _describe(axes[0], "Training loss", "nats")
    _describe(axes[1], "Distance from initialisation")
    if others:
        _curves(axes[1], run, metrics.distance_to_base, first=1, log=log)
        _curves(axes[2], run, np.abs(metrics.loss - metrics.loss[:, :1]), first=1, log=True)
        _curves(axes[3], run, metrics.distance_to_base, first=1, log=True)
        _describe(axes[1], "From initialisation (above), from the $\\eta_0$ run (below)")
        _describe(
            axes[2], "Difference in training loss from the $\\eta_0$ run", "nats, logarithmic"
        )
        _describe(axes[3], "Distance from the $\\eta_0$ run", "Euclidean distance, logarithmic")
        _mark_distance_travelled(axes[3], run)
    figure.suptitle(
        f"{run.network_label[:1].upper()}{run.network_label[1:]} on {run.data_label}, "
        f"$\\eta_0$ = {run.step_size:g}"
    )
    figure.legend(handles=axes[0].lines, loc="outside lower center", ncols=8, frameon=False)
    paths = [directory / "figure.png", directory / "figure.pdf"]
    for path in paths:
        figure.savefig(path, dpi=130)
    return paths


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
            color=COLOURS[0] if lane == 0 else COLOURS[1 + (lane - 1) % (len(COLOURS) - 1)],
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
