"""Figures of descent against descent, against the flow, and against predictions."""

from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from experiments.output.figures import style
from experiments.studies.records import (
    DESCRIPTIONS,
    Prediction,
    Run,
    Sweep,
)
from gf_jax.study import drawing

TITLES = ("gradient flow", "flow and first-order deviation", "the modified flow")


def draw_run(run: Run, directory: Path) -> Figure:
    """Draws a run, see ``gf_jax.study.drawing``, and writes the figure into a folder.

    Returns:
      The figure.
    """
    return style.write(drawing.draw(run), directory)


def draw_rounding(
    runs: dict[str, Run], predicted: np.ndarray | None, label: str, directory: Path
) -> Figure:
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
    style.count_time(figure, first.method.momentum)
    title = rf"{label} on {first.data_label}, $\eta_0$ = {first.step_size:g}"
    return style.save(figure, panels[0], title, directory)


def draw_prediction(prediction: Prediction, directory: Path) -> Figure:
    """Draws the paper's distances as predicted, and on logarithmic axes the gaps alone."""
    figure = Figure(figsize=(16.5, 4.9), layout="constrained")
    paper, to_base, to_flow = figure.subplots(1, 3)
    paper.plot(prediction.times, prediction.distance_from_init, color="0.6", label="flow")
    for lane, step_size in enumerate(prediction.step_sizes):
        look = {"color": style.colour(lane), "linestyle": style.DASHES[lane % len(style.DASHES)]}
        label = rf"$\eta$ = {step_size:g}"
        paper.plot(prediction.times, prediction.to_base[:, lane], label=label, **look)
        to_flow.plot(prediction.times, prediction.to_flow[:, lane], label=f"_{label}", **look)
        if lane > 0:
            to_base.plot(prediction.times, prediction.to_base[:, lane], label=f"_{label}", **look)
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
    style.count_time(figure, prediction.momentum)
    title = f"Predicted: {prediction.network_label} on {prediction.data_label}"
    return style.save(figure, paper, title, directory)


def draw_sweep(run: Run, sweep: Sweep, directory: Path) -> Figure:
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
    style.describe(axes[0, 0], "Training loss", f"{run.loss_unit}, logarithmic")
    style.describe(axes[0, 1], "Distance at the end")
    style.describe(
        axes[0, 2], "Largest share of the distance travelled", "distance / distance travelled"
    )
    for panel in axes[0, 1:]:
        panel.set_xscale("log")
        if any(np.nanmax(line.get_ydata(), initial=0) > 0 for line in panel.lines):
            panel.set_yscale("log")
        panel.axvline(sweep.edge, color="0.4", linestyle=":", label="_edge of stability")
        panel.set_xlabel("step size; dotted: edge of stability at the start")
        for lane, step_size in enumerate(run.step_sizes):
            if run.diverged_at(lane) is not None:
                top = {"transform": panel.get_xaxis_transform(), "color": "red"}
                top["label"] = rf"_diverged; $\eta$ = {step_size:g}"
                panel.plot(step_size, 0.97, "x", **top)
    axes[0, 1].legend(frameon=False)
    title = f"Step sizes up to the edge of stability: {run.network_label} on {run.data_label}"
    return style.save(figure, axes[0, 0], title, directory)
