"""Figures of descent against descent, against the flow, and against predictions."""

from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.figures import style
from experiments.records import (
    DESCRIPTIONS,
    Prediction,
    Reference,
    Run,
    Sweep,
    join_references,
    percentiles,
)
from gf_jax.comparison import WELL_BELOW, Metrics

NOTE = "lines: predicted; marks: measured"
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

    From several starting points, curves, marks and predictions are medians over the seeds
    at every time, and bands the spread of what was measured.

    Returns:
      The paths written.
    """
    run = run if run.seeds else _with_seeds(run)
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
        _against_flow(axes[0, 2], run, reference)
    if others:
        _curves(axes[0, 1], run, metrics.distance_to_base, first=1, log=log)
        axes[0, 1].set_title("From initialisation (above), from the $\\eta_0$ run (below)")
        with np.errstate(invalid="ignore"):  # of runs that diverged
            differences = np.abs(metrics.loss - metrics.loss[..., :1])
        _curves(axes[1, 0], run, differences, first=1, log=True)
        style.describe(
            axes[1, 0], "Difference in training loss from the $\\eta_0$ run", "nats, logarithmic"
        )
        _to_base(axes[1, 1], run)
        if reference is not None:
            _order(axes[1, 2], run, reference)
    style.count_time(figure, run.method.momentum)
    title = rf"{run.network_label} on {run.data_label}, $\eta_0$ = {run.step_size:g}"
    if len(run.seeds) > 1:
        spread = "all of them" if len(run.seeds) <= 10 else "percentiles 5 to 95"
        title += (
            f", seeds {run.seeds[0]} to {run.seeds[-1]}\nmedians over the seeds; bands: {spread}"
        )
    return style.save(figure, axes[0, 0], title, directory)


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
    style.count_time(figure, first.method.momentum)
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
    style.count_time(figure, prediction.momentum)
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


def _with_seeds(run: Run) -> Run:
    """A run from a single starting point, as one of several."""
    return run._replace(
        metrics=Metrics(*(values[:, None] for values in run.metrics)),
        accuracy=run.accuracy[:, None],
        reference=join_references([run.reference]),
        seeds=(0,),
    )


def _against_flow(axes: Axes, run: Run, reference: Reference) -> None:
    """Distance of every lane to the flow, measured where the flow is known well enough."""
    known = _has_flow(reference)
    measured = reference.measured[:, known].all(axis=1, keepdims=True)
    distances = np.where(measured, reference.distance_to_flow[:, known], np.nan)
    _marks(axes, run, distances, reference.predicted_to_flow[:, known])
    floor = WELL_BELOW * reference.resolution[:, known].max(axis=(1, 2))
    bottom = axes.get_ylim()[0]
    style.describe(axes, "Distance from gradient flow", "Euclidean distance, logarithmic")
    note = _note(reference.predicted_to_flow)
    if (floor > bottom).any():
        axes.fill_between(run.snapshot_times, floor, bottom, color="0.85", zorder=0)
        axes.set_ylim(bottom=bottom)
        note += "; grey: flow uncertain"
    axes.set_xlabel(f"{axes.get_xlabel()}\n{note}")


def _to_base(axes: Axes, run: Run) -> None:
    """Distance of every other lane to the base run, which the title says how far it goes."""
    gaps, reference = run.metrics.distance_to_base, run.reference
    if reference is None:
        _curves(axes, run, gaps, first=1, log=True)
    else:
        predicted = reference.predicted_to_base[:, _has_flow(reference)]
        at_snapshots = np.isin(run.iterations, run.snapshot_iterations)
        _marks(axes, run, gaps[at_snapshots], predicted, first=1)
    travelled = _over_seeds(run.metrics.distance_from_init[..., 0])[1]
    travelled = travelled[np.isfinite(travelled)][-1]
    title = f"Distance from the $\\eta_0$ run, which travels {travelled:.3g}"
    style.describe(axes, title, "Euclidean distance, logarithmic")
    if reference is not None:
        axes.set_xlabel(f"{axes.get_xlabel()}\n{_note(predicted)}")


def _note(predicted: np.ndarray) -> str:
    return NOTE if np.isfinite(predicted).any() else "measured"


def _order(axes: Axes, run: Run, reference: Reference) -> None:
    order = reference.order[:, _has_flow(reference)]
    low, median, high = np.where(np.isfinite(order).all(axis=1), _over_seeds(order), np.nan)
    axes.axhline(1, color="0.6", linewidth=1)
    _band(axes, run, run.snapshot_times, low, high, 0)
    axes.plot(run.snapshot_times, median, "o", color=style.COLOURS[0], markersize=3)
    axes.set_ylim(min(0.0, np.nanmin(low, initial=0)), max(2.0, 1.1 * np.nanmax(high, initial=0)))
    style.describe(axes, "Order of that distance in the step size", "slope over all runs; Euler: 1")


def _has_flow(reference: Reference) -> np.ndarray:
    """Of which starts there is a flow; shown is what is known of all of them."""
    return np.isfinite(reference.loss).any(axis=0)


def _over_seeds(values: np.ndarray) -> np.ndarray:
    """Percentiles over the seeds, shape (percentiles, times, ...); NaN where not finite."""
    found = percentiles(np.moveaxis(values, 1, -1))
    return np.where(np.isfinite(found), found, np.nan)


def _curves(axes: Axes, run: Run, values: np.ndarray, *, first: int = 0, log: bool = False) -> None:
    """Draws the lanes from ``first`` on, each in its own colour and dashes.

    The base run's band is that of all lanes where these coincide.
    """
    _scale(axes, values, log=log)
    found = _positive(_over_seeds(values)) if log else _over_seeds(values)
    for lane in range(first, len(run.ratios)):
        low, median, high = found[..., lane]
        if first or lane == 0:
            _band(axes, run, run.times, low, high, lane)
        axes.plot(
            run.times,
            median,
            label=_label(run, lane),
            color=style.colour(lane),
            linestyle=style.DASHES[lane % len(style.DASHES)],
            linewidth=1.8,
        )


def _label(run: Run, lane: int) -> str:
    """What the legend calls a lane, and from which starts it diverged."""
    name = style.run_name(run.ratios[lane])
    ends = [each.diverged_at(lane) for each in run.of_seeds]
    diverged = [at for at in ends if at is not None]
    if not diverged:
        return name
    if len(ends) == 1:
        return f"{name}, diverged at {diverged[0]:,}"
    return f"{name}, diverged from {len(diverged)} of {len(ends)}"


def _marks(
    axes: Axes, run: Run, measured: np.ndarray, predicted: np.ndarray, *, first: int = 0
) -> None:
    """Draws what was measured at the snapshots as marks, what was predicted as thin lines.

    Marks are thinned to about 25.
    """
    axes.set_yscale("log")
    found, expected = _positive(_over_seeds(measured)), _positive(_over_seeds(predicted))
    kept = np.arange(len(measured) - 1, -1, -max(1, len(measured) // 25))
    for lane in range(first, len(run.ratios)):
        low, median, high = found[..., lane]
        colour = style.colour(lane)
        _band(axes, run, run.snapshot_times, low, high, lane)
        axes.plot(
            run.snapshot_times[kept],
            median[kept],
            style.MARKS[lane % len(style.MARKS)],
            color=colour,
            markersize=5,
            markerfacecolor="none",
        )
        axes.plot(run.snapshot_times, expected[1, :, lane], color=colour, linewidth=1)


def _band(
    axes: Axes, run: Run, times: np.ndarray, low: np.ndarray, high: np.ndarray, lane: int
) -> None:
    """Draws the spread over the seeds, of which a single one has none."""
    if len(run.seeds) > 1:
        axes.fill_between(times, low, high, color=style.colour(lane), alpha=0.15, linewidth=0)


def _positive(values: np.ndarray) -> np.ndarray:
    return np.where(values > 0, values, np.nan)  # zeros have no logarithm


def _scale(axes: Axes, values: np.ndarray, *, log: bool) -> None:
    if log and (np.isfinite(values) & (values > 0)).any():
        axes.set_yscale("log")
