"""The figure of runs of descent beside their flow."""

import dataclasses

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gf_jax.comparison import WELL_BELOW
from gf_jax.study import style
from gf_jax.study.record import Reference, Run, join_references, percentiles

FARTHEST = 1e200  # from zero, and its inverse the nearest: margins of axes stay within floats
NOTE = "lines: predicted; marks: measured"
# How every panel is read, in plain words for a newcomer.
READINGS = {
    "loss": (
        "One curve for each run, at equal times. If they coincide, the loss does not tell the "
        "step sizes apart."
    ),
    "both": (
        "Upper curves: how far every run has moved from its start. Lower curves: how far it "
        "is from the run with step size η₀. The larger the space between them, the better the "
        "runs agree."
    ),
    "distance": ("How far every run has moved from its start in weight space."),
    "difference": (
        "The same losses, less that of the η₀ run, on a logarithmic axis: each line of the "
        "grid is a factor. Dips are where the sign changes."
    ),
    "gap": (
        "How far every run is from the η₀ run. Compare it with the way that the η₀ run "
        "travels, in the title. Marks are measured; lines, where there are any, were "
        "predicted without running descent."
    ),
    "flow": (
        "How far every run is from the flow. Curves that keep the same spacing are in "
        "proportion to the step size, as they should be for small steps. In a grey area the "
        "error of the flow, or rounding of the runs, hides it."
    ),
    "order": (
        "The power of the step size with which that distance grows. One means: half the step "
        "size, half the distance, which is what descent owes to theory. Elsewhere the steps "
        "are too large for that, or runs have parted."
    ),
}


@style.plain
@np.errstate(over="ignore", invalid="ignore")  # of runs that diverged
def draw(run: Run) -> Figure:
    """Draws a run.

    Upper row, as in the paper: training losses of all runs; distances from the
    initial point and from the base run. Lower row: the gaps between each run and
    the base run, in loss and in weight space, on logarithmic axes. A third column
    compares with gradient flow: distance of every run to it, and its order in the
    step size. Where gaps are predicted, lines are the prediction and marks what was
    measured. A lane that diverges is drawn up to there, and all axes are then
    logarithmic.

    From several starting points, curves, marks and predictions are medians over the seeds
    at every time, and bands the spread of what was measured.
    """
    run = _within_axes(run if run.seeds else _with_seeds(run))
    metrics, reference, others = run.metrics, run.reference, len(run.ratios) > 1
    shape = (2 if others else 1, 2 if reference is None else 3)
    figure = Figure(figsize=(5.5 * shape[1], 8.5 if others else 4.7), layout="constrained")
    axes = figure.subplots(*shape, squeeze=False)
    log = not np.isfinite(metrics.loss).all()
    _curves(axes[0, 0], run, metrics.loss, log=log)
    _curves(axes[0, 1], run, metrics.distance_from_init, log=log)
    style.describe(axes[0, 0], "Training loss", _unit(run, log=log), READINGS["loss"])
    style.describe(axes[0, 1], "Distance from initialisation", reading=READINGS["distance"])
    if reference is not None:
        _against_flow(axes[0, 2], run, reference)
    if others:
        _curves(axes[0, 1], run, metrics.distance_to_base, first=1, log=log)
        axes[0, 1].set_title("From initialisation (above), from the $\\eta_0$ run (below)")
        style.explain(axes[0, 1], READINGS["both"])
        _loss_differences(axes[1, 0], run)
        _to_base(axes[1, 1], run)
        if reference is not None:
            _order(axes[1, 2], run, reference)
    style.count_time(figure, run.method.momentum)
    title = rf"{run.label}, $\eta_0$ = {run.step_size:g}"
    if len(run.seeds) > 1:
        spread = "all of them" if len(run.seeds) <= 10 else "percentiles 5 to 95"
        title += (
            f", seeds {run.seeds[0]} to {run.seeds[-1]}\nmedians over the seeds; bands: {spread}"
        )
    style.entitle(figure, axes[0, 0], title)
    return figure


def _unit(run: Run, *, log: bool) -> str:
    return f"{run.loss_unit}, logarithmic" if log else run.loss_unit


def _with_seeds(run: Run) -> Run:
    """A run from a single starting point, with the axis of seeds that several would have."""
    return dataclasses.replace(
        run,
        metrics=jax.tree.map(lambda values: values[:, None], run.metrics),
        accuracy=None,
        reference=join_references([run.reference]),
        seeds=(0,),
    )


def _within_axes(run: Run) -> Run:
    """The run with numbers that axes can show, what is not finite as it is, a flow if known."""

    def moved(values: np.ndarray) -> np.ndarray:
        if values.dtype.kind != "f":
            return values
        near = np.where(np.abs(values) < 1 / FARTHEST, 0.0, values.astype(float))
        return np.where(np.isfinite(values), np.clip(near, -FARTHEST, FARTHEST), values)

    reference = run.reference
    if reference is not None and not _has_flow(reference).any():
        reference = None
    return dataclasses.replace(
        run, metrics=jax.tree.map(moved, run.metrics), reference=jax.tree.map(moved, reference)
    )


def _against_flow(axes: Axes, run: Run, reference: Reference) -> None:
    """Distance of every lane to the flow, measured where the flow is known well enough."""
    known = _has_flow(reference)
    measured = reference.measured[:, known].all(axis=1, keepdims=True)
    distances = np.where(measured, reference.distance_to_flow[:, known], np.nan)
    _marks(axes, run, distances, reference.predicted_to_flow[:, known])
    floor = WELL_BELOW * reference.resolution[:, known].max(axis=(1, 2))
    bottom = axes.get_ylim()[0]
    unit = "Euclidean distance, logarithmic"
    style.describe(axes, f"Distance from {_article(run)}", unit, READINGS["flow"])
    note = _note(reference.predicted_to_flow)
    if (floor > bottom).any():
        axes.fill_between(run.snapshot_times, floor, bottom, color="0.85", zorder=0)
        axes.set_ylim(bottom=bottom)
        note += "; grey: hidden by error or rounding"
    axes.set_xlabel(f"{axes.get_xlabel()}\n{note}")


def _article(run: Run) -> str:
    name = run.method.flow_name
    return name if name == "gradient flow" else f"the {name}"


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
    whole = travelled[np.isfinite(travelled)]
    title = "Distance from the $\\eta_0$ run" + (
        f", which travels {whole[-1]:.3g}" if len(whole) else ""
    )
    style.describe(axes, title, "Euclidean distance, logarithmic", READINGS["gap"])
    if reference is not None:
        axes.set_xlabel(f"{axes.get_xlabel()}\n{_note(predicted)}")


def _loss_differences(axes: Axes, run: Run) -> None:
    """How far the losses of all other lanes are from that of the base run."""
    loss, reference = run.metrics.loss, run.reference
    known = None if reference is None else reference.loss_differences()
    if reference is None or known is None:
        _curves(axes, run, np.abs(loss - loss[..., :1]), first=1, log=True)
    else:
        found, expected = (np.abs(values[:, _has_flow(reference)]) for values in known)
        _marks(axes, run, found, expected, first=1)
    title = "Difference in training loss from the $\\eta_0$ run"
    style.describe(axes, title, _unit(run, log=True), READINGS["difference"])
    if known is not None:
        axes.set_xlabel(f"{axes.get_xlabel()}\n{_note(known.predicted)}")


def _note(predicted: np.ndarray) -> str:
    return NOTE if np.isfinite(predicted).any() else "measured"


def _order(axes: Axes, run: Run, reference: Reference) -> None:
    order = reference.order[:, _has_flow(reference)]
    low, median, high = np.where(np.isfinite(order).all(axis=1), _over_seeds(order), np.nan)
    axes.axhline(1, color="0.6", linewidth=1, label="_first order")
    _band(axes, run, run.snapshot_times, low, high, 0)
    black = style.COLOURS[0]
    axes.plot(run.snapshot_times, median, "o", color=black, markersize=3, label="_order")
    axes.set_ylim(min(0.0, np.nanmin(low, initial=0)), max(2.0, 1.1 * np.nanmax(high, initial=0)))
    title, unit = "Order of that distance in the step size", "slope over all runs; Euler: 1"
    style.describe(axes, title, unit, READINGS["order"])


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
        colour, name = style.colour(lane), style.run_name(run.ratios[lane])
        _band(axes, run, run.snapshot_times, low, high, lane)
        axes.plot(
            run.snapshot_times[kept],
            median[kept],
            style.MARKS[lane % len(style.MARKS)],
            color=colour,
            markersize=5,
            markerfacecolor="none",
            label=f"_{name}; measured",
        )
        axes.plot(
            run.snapshot_times,
            expected[1, :, lane],
            color=colour,
            linewidth=1,
            label=f"_{name}; predicted",
        )


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
