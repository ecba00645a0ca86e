"""Figures of saved runs."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.store import Run

# Okabe and Ito's palette: told apart by readers with any colour vision.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLES = ("-", (0, (6, 2)), (0, (3, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))


def draw_run(run: Run, directory: Path) -> list[Path]:
    """Draws a run as ``figure.png`` and ``figure.pdf`` in a folder.

    Upper row, as in the paper: training losses of all runs; distances from the
    initial point and between runs. Lower row: the gaps between the runs, in loss
    and in weight space, on logarithmic axes.

    Returns:
      The paths written.
    """
    figure = Figure(figsize=(11, 8), layout="constrained")
    losses, distances, loss_gaps, gaps = figure.subplots(2, 2).flat
    figure.suptitle(
        f"{run.network_label[0].upper()}{run.network_label[1:]} on {run.data_label}, "
        f"step size $\\eta_0$ = {run.step_size:g}"
    )
    for lane, ratio in enumerate(run.ratios):
        style = {"color": COLOURS[lane % len(COLOURS)], "linestyle": STYLES[lane % len(STYLES)]}
        name = _name(ratio)
        losses.plot(run.times, run.metrics.loss[:, lane], label=name, **style)
        distances.plot(
            run.times,
            run.metrics.distance_from_init[:, lane],
            label=f"from initialisation, {name}",
            **style,
        )
    for lane, ratio in enumerate(run.ratios[1:], start=1):
        style = {"color": COLOURS[lane % len(COLOURS)]}
        gap = run.metrics.distance_to_base[:, lane]
        distances.plot(run.times, gap, label=f"{_name(1)} to {_name(ratio)}", **style)
        gaps.plot(run.times, _positive(gap), label=f"{_name(1)} to {_name(ratio)}", **style)
        difference = np.abs(run.metrics.loss[:, lane] - run.metrics.loss[:, 0])
        loss_gaps.plot(run.times, _positive(difference), label=f"$|f_1 - f_{{{ratio}}}|$", **style)
    gaps.plot(
        run.times,
        _positive(run.metrics.distance_from_init[:, 0]),
        color="0.6",
        label=f"from initialisation, {_name(1)}",
    )
    _finish(losses, "Training loss", "training loss (nats)")
    _finish(distances, "Distance in weight space", "Euclidean distance")
    _finish(loss_gaps, "Gap in loss, logarithmic", "difference in training loss", log=True)
    _finish(gaps, "Gap in weight space, logarithmic", "Euclidean distance", log=True)
    paths = [directory / "figure.png", directory / "figure.pdf"]
    for path in paths:
        figure.savefig(path, dpi=150)
    return paths


def _finish(axes: Axes, title: str, ylabel: str, *, log: bool = False) -> None:
    axes.set(title=title, xlabel=r"time = iteration $\times$ step size", ylabel=ylabel)
    axes.grid(alpha=0.25)
    if log and any(np.isfinite(line.get_ydata()).any() for line in axes.lines):
        axes.set_yscale("log")
    if axes.lines:
        axes.legend(fontsize="small")


def _name(ratio: int) -> str:
    return r"$\eta_0$" if ratio == 1 else rf"$\eta_0/{ratio}$"


def _positive(values: np.ndarray) -> np.ndarray:
    """Zeros leave the line, as a logarithmic axis cannot show them."""
    return np.where(values > 0, values, np.nan)
