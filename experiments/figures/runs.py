"""Figures of descent against descent, against the flow, and against predictions."""

from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.figures import style
from experiments.records import DESCRIPTIONS, Prediction, Reference, Run, Sweep
from gf_jax.comparison import WELL_BELOW

TITLES = ("gradient flow", "flow and first-order deviation", "the modified flow")


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
    style.describe(axes[0, 0], "Training loss", "nats")
    style.describe(axes[0, 1], "Distance from initialisation")
    if reference is not None:
        _against_flow(axes[0, 2], run, reference)
    if others:
        _curves(axes[0, 1], run, metrics.distance_to_base, first=1, log=log)
        _curves(axes[1, 0], run, np.abs(metrics.loss - metrics.loss[:, :1]), first=1, log=True)
        style.describe(axes[0, 1], "From initialisation (above), from the $\\eta_0$ run (below)")
        style.describe(
            axes[1, 0], "Difference in training loss from the $\\eta_0$ run", "nats, logarithmic"
        )
        if reference is None:
            _curves(axes[1, 1], run, metrics.distance_to_base, first=1, log=True)
        else:
            _marks(axes[1, 1], run, _at_snapshots(run, metrics.distance_to_base), first=1)
            _predictions(axes[1, 1], run, reference.predicted_to_base, first=1)
            _order(axes[1, 2], run, reference)
        travelled = metrics.distance_from_init[:, 0]
        travelled = travelled[np.isfinite(travelled)][-1]
        style.describe(
            axes[1, 1],
            f"Distance from the $\\eta_0$ run, which travels {travelled:.3g}",
            "Euclidean distance, logarithmic",
        )
    return _finish(figure, axes[0, 0], run, directory)


def draw_rounding(
    runs: dict[str, Run], predicted: np.ndarray | None, label: str, directory: Path
) -> list[Path]:
    """Draws the gaps to the base run in every arithmetic, one panel per ratio.

    Args:
      runs: a run by the name of its arithmetic.
      predicted: gaps at the snapshots of the first run, shape (snapshots, lanes).
      label: of the network and the coordinates it was computed in.
      directory: where.
    """
    first = next(iter(runs.values()))
    lanes = range(1, len(first.ratios)) if len(first.ratios) > 1 else range(1)
    figure = Figure(figsize=(1 + 3.5 * len(lanes), 4.6), layout="constrained")
    panels = figure.subplots(1, len(lanes), sharey=True, squeeze=False)[0]
    for axes, lane in zip(panels, lanes, strict=True):
        axes.set_yscale("log")
        for number, (name, run) in enumerate(runs.items()):
            gaps = run.metrics.distance_to_base[:, lane]
            axes.plot(
                run.times,
                np.where(np.isfinite(gaps) & (gaps > 0), gaps, np.nan),
                label=name,
                color=style.COLOURS[(1, 2, 3, 4)[number]],
                linestyle=style.DASHES[number],
                linewidth=2.2,
            )
        if predicted is not None:
            kept = slice(len(predicted) % 4, None, max(1, len(predicted) // 20))
            axes.plot(
                first.snapshot_times[kept],
                predicted[kept, lane],
                "o",
                color=style.COLOURS[0],
                markersize=4,
                markerfacecolor="none",
                label="predicted, without rounding",
            )
        style.describe(axes, rf"Distance between $\eta_0$ and $\eta_0/{first.ratios[lane]}$", "")
    panels[0].set_ylabel("Euclidean distance, logarithmic")
    title = rf"{label} on {first.data_label}, $\eta_0$ = {first.step_size:g}"
    return style.save(figure, panels[0], title, directory)


def draw_prediction(prediction: Prediction, directory: Path) -> list[Path]:
    """Draws the paper's distances as predicted, and on logarithmic axes the gaps alone."""
    figure = Figure(figsize=(16.5, 4.9), layout="constrained")
    paper, to_base, to_flow = figure.subplots(1, 3)
    paper.plot(prediction.times, prediction.distance_from_init, color="0.6", label="flow")
    for lane, step_size in enumerate(prediction.step_sizes):
        look = {"color": style.colour(lane), "linestyle": style.DASHES[lane % len(style.DASHES)]}
        label = rf"$\eta$ = {step_size:g}"
        paper.plot(prediction.times, prediction.to_base[:, lane], label=label, **look)
        to_flow.plot(prediction.times, prediction.to_flow[:, lane], **look)
        if lane > 0:
            to_base.plot(prediction.times, prediction.to_base[:, lane], **look)
    style.describe(paper, "Flow from initialisation (above), gaps (below)")
    style.describe(to_flow, "Descent from gradient flow", "Euclidean distance, logarithmic")
    style.describe(
        to_base,
        rf"Descent from descent with $\eta$ = {prediction.step_sizes[0]:g}",
        "Euclidean distance, logarithmic",
    )
    for panel in (to_base, to_flow):
        if any(np.nanmax(line.get_ydata(), initial=0) > 0 for line in panel.lines):
            panel.set_yscale("log")
    title = f"Predicted: {prediction.network_label} on {prediction.data_label}"
    return style.save(figure, paper, title, directory)


def draw_sweep(run: Run, sweep: Sweep, directory: Path) -> list[Path]:
    """Draws where each description of descent ends.

    Upper row: training loss; distances at the last time, and the largest share of
    the way travelled, against the step size, with the edge of stability. A lane that
    diverges is a red cross on top. Lower row: the distances of every lane from each
    description against time.
    """
    figure = Figure(figsize=(17, 8.5), layout="constrained")
    axes = figure.subplots(2, 3)
    shades = colormaps["viridis"](np.linspace(0, 0.92, len(run.ratios)))
    ends = [getattr(sweep, name) for name in DESCRIPTIONS]
    whole = np.isfinite(run.metrics.loss).all(axis=0)  # lanes that did not diverge
    for values, panel, times in zip(
        (run.metrics.loss, *ends),
        (axes[0, 0], *axes[1]),
        (run.times, *[run.snapshot_times] * 3),
        strict=True,
    ):
        for lane, step_size in enumerate(run.step_sizes):
            shown = np.where(np.isfinite(values[:, lane]), values[:, lane], np.nan)
            diverged = " diverged" if run.diverged_at(lane) is not None else ""
            label = rf"$\eta$ = {step_size:g}{diverged}"
            panel.plot(times, shown, color=shades[lane], label=label)
        tame = values[:, whole][np.isfinite(values[:, whole]) & (values[:, whole] > 0)]
        if len(tame):  # a lane that diverges leaves through the top
            panel.set_yscale("log")
            panel.set_ylim(tame.min() / 2, 3 * tame.max())
    for number, (values, title) in enumerate(zip(ends, TITLES, strict=True)):
        style.describe(axes[1, number], f"Distance from {title}", "Euclidean distance, logarithmic")
        look = {
            "color": style.COLOURS[number + 1],
            "marker": style.MARKS[number],
            "label": f"from {title}",
        }
        share = (values / sweep.travelled[:, None]).max(axis=0)
        axes[0, 1].plot(run.step_sizes, np.where(whole, values[-1], np.nan), **look)
        axes[0, 2].plot(run.step_sizes, np.where(whole, share, np.nan), **look)
    style.describe(axes[0, 0], "Training loss", "nats, logarithmic")
    style.describe(axes[0, 1], "Distance at the end")
    style.describe(
        axes[0, 2], "Largest share of the distance travelled", "distance / distance travelled"
    )
    for panel in axes[0, 1:]:
        panel.set_xscale("log")
        if any(np.nanmax(line.get_ydata(), initial=0) > 0 for line in panel.lines):
            panel.set_yscale("log")
        panel.axvline(sweep.edge, color="0.4", linestyle=":")
        panel.set_xlabel("step size; dotted: edge of stability at the start")
        for lane, step_size in enumerate(run.step_sizes):
            if run.diverged_at(lane) is not None:
                top = {"transform": panel.get_xaxis_transform(), "color": "red"}
                panel.plot(step_size, 0.97, "x", **top)
    axes[0, 1].legend(frameon=False)
    title = f"Step sizes up to the edge of stability: {run.network_label} on {run.data_label}"
    return style.save(figure, axes[0, 0], title, directory)


def _finish(figure: Figure, named: Axes, run: Run, directory: Path) -> list[Path]:
    label = rf"{run.network_label} on {run.data_label}, $\eta_0$ = {run.step_size:g}"
    return style.save(figure, named, label, directory)


def _against_flow(axes: Axes, run: Run, reference: Reference) -> None:
    """Distance of every lane to the flow, measured where the flow is known well enough."""
    distances = np.where(reference.measured, reference.distance_to_flow, np.nan)
    _marks(axes, run, distances)
    _predictions(axes, run, reference.predicted_to_flow)
    floor = WELL_BELOW * reference.resolution.max(axis=1)
    bottom = axes.get_ylim()[0]
    note = "lines: predicted; marks: measured"
    if (floor > bottom).any():
        axes.fill_between(run.snapshot_times, floor, bottom, color="0.85", zorder=0)
        axes.set_ylim(bottom=bottom)
        note += "; grey: flow uncertain"
    style.describe(axes, "Distance from gradient flow", "Euclidean distance, logarithmic")
    axes.set_xlabel(f"{axes.get_xlabel()}\n{note}")


def _order(axes: Axes, run: Run, reference: Reference) -> None:
    axes.axhline(1, color="0.6", linewidth=1)
    axes.plot(run.snapshot_times, reference.order, "o", color=style.COLOURS[0], markersize=3)
    finite = reference.order[np.isfinite(reference.order)]
    axes.set_ylim(min(0.0, finite.min(initial=0)), max(2.0, 1.1 * finite.max(initial=0)))
    style.describe(axes, "Order of that distance in the step size", "slope over all runs; Euler: 1")


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
            style.MARKS[lane % len(style.MARKS)],
            color=style.colour(lane),
            markersize=5,
            markerfacecolor="none",
        )


def _predictions(axes: Axes, run: Run, values: np.ndarray, *, first: int = 0) -> None:
    """Draws what was predicted of the lanes as thin lines."""
    for lane in range(first, len(run.ratios)):
        positive = np.where(values[:, lane] > 0, values[:, lane], np.nan)
        axes.plot(run.snapshot_times, positive, color=style.colour(lane), linewidth=1)


def _curves(axes: Axes, run: Run, values: np.ndarray, *, first: int = 0, log: bool = False) -> None:
    """Draws the lanes from ``first`` on, each in its own colour and dashes."""
    if log:
        values = np.where(values > 0, values, np.nan)  # zeros have no logarithm
        if np.isfinite(values).any():
            axes.set_yscale("log")
    for lane, ratio in list(enumerate(run.ratios))[first:]:
        name = style.run_name(ratio)
        diverged = run.diverged_at(lane)
        axes.plot(
            run.times,
            np.where(np.isfinite(values[:, lane]), values[:, lane], np.nan),
            label=name if diverged is None else f"{name}, diverged at {diverged:,}",
            color=style.colour(lane),
            linestyle=style.DASHES[lane % len(style.DASHES)],
            linewidth=1.8,
        )
