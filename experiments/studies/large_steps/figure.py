"""Figure of where each description of descent ends."""

from typing import TYPE_CHECKING

import numpy as np

from experiments.output.figures import style
from experiments.studies.large_steps.options import Options
from experiments.studies.large_steps.records import CENTRAL, DESCRIPTIONS, Sweep
from gf_jax.study.record import Run

if TYPE_CHECKING:
    from experiments.output.figures import Figure

# How the panels are read.
LOSS = (
    "One curve for each run, at equal times. If they coincide, the loss does not tell the "
    "step sizes apart."
)
AT_THE_END = (
    "Each mark is one step size. The steeper the line, the faster a description becomes exact "
    "as steps become small: half the step size halves the distance from the flow and quarters "
    "the other two. To the right of the dotted line steps are unstable from the start; left of it "
    "a run may meet its edge later, where only the central flow goes on. No mark: the description "
    "is not known well enough to tell."
)
SHARE = (
    "The same as a share of the way travelled, at its worst over time. Near 1 a description "
    "is of no use."
)
OF_DESCRIPTIONS = (
    (
        "How far every run is from the flow. Curves that keep the same spacing are in "
        "proportion to the step size, as they should be for small steps. Without a mark the "
        "flow is not known well enough to tell."
    ),
    ("How far every run is from the flow after the first-order correction."),
    ("How far every run is from the flow of its own step size."),
)


def draw(run: Run, sweep: Sweep, options: Options) -> "Figure":
    """Draws where each description of descent ends.

    Upper row: training loss; distances at the last time, and the largest share of
    the way travelled, against the step size, with the edge of stability. A lane that
    diverges is a red cross on top. Lower row: the distances of every lane from each
    description against time.
    """
    limit = options.limit_named
    short = limit.split()[-1]
    titles = (
        f"the {limit}" if options.optimizer_name else limit,
        f"{short} and first-order deviation",
        "the modified flow",
    )
    at_the_end = AT_THE_END.replace("the flow", f"the {short}")
    figure = style.new(17, 8.5)
    axes = figure.subplots(2, 3)
    shades = style.shades(len(run.ratios))
    ends = [sweep.measured(name) for name in DESCRIPTIONS]
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
    for number, (values, title) in enumerate(zip(ends, titles, strict=True)):
        reading = OF_DESCRIPTIONS[number].replace("the flow", f"the {short}")
        style.describe(axes[1, number], f"Distance from {title}", style.LOGARITHMIC, reading)
        look = {
            "color": style.COLOURS[number + 1],
            "marker": style.MARKS[number],
            "label": f"from {title}",
        }
        share = _largest_share(values, sweep)
        axes[0, 1].plot(run.step_sizes, np.where(whole, values[-1], np.nan), **look)
        axes[0, 2].plot(run.step_sizes, np.where(whole, share, np.nan), **look)
    if CENTRAL in sweep.names:
        _add_central(axes[0, 1:], run, sweep)
    style.describe(axes[0, 0], "Training loss", f"{run.loss_unit}, logarithmic", LOSS)
    style.describe(axes[0, 1], "Distance at the end", reading=at_the_end)
    title, unit = "Largest share of the distance travelled", "distance / distance travelled"
    style.describe(axes[0, 2], title, unit, SHARE)
    for panel in axes[0, 1:]:
        panel.set_xscale("log")
        if any(np.nanmax(line.get_ydata(), initial=0) > 0 for line in panel.lines):
            panel.set_yscale("log")
        panel.axvline(sweep.edge, color="0.4", linestyle=":", label="_edge of stability")
        panel.set_xlabel(f"step size; dotted: edge of stability {options.edge_where}")
        for lane, step_size in enumerate(run.step_sizes):
            if run.diverged_at(lane) is not None:
                top = {"transform": panel.get_xaxis_transform(), "color": "red"}
                top["label"] = rf"_diverged; $\eta$ = {step_size:g}"
                panel.plot(step_size, 0.97, "x", **top)
    axes[0, 1].legend(frameon=False)
    style.count_time(figure, options.momentum)
    title = f"Step sizes up to the edge of stability: {run.network_label} on {run.data_label}"
    return style.finish(figure, axes[0, 0], title)


def _add_central(panels: np.ndarray, run: Run, sweep: Sweep) -> None:
    """Distances from central flows, at the end and as the largest share of the way."""
    gaps = sweep.measured(CENTRAL)
    share = _largest_share(gaps, sweep)
    look: dict = {"color": style.COLOURS[4], "marker": style.MARKS[3]}
    for panel, values in zip(panels, (gaps[-1], share), strict=True):
        panel.plot(run.step_sizes, values, label="from the central flow", **look)


def _largest_share(gaps: np.ndarray, sweep: Sweep) -> np.ndarray:
    """Of the way travelled, over the times at which a distance is measured; NaN without any."""
    shares = np.nan_to_num(gaps / sweep.travelled[:, None], nan=-np.inf).max(axis=0)
    return np.where(np.isfinite(shares), shares, np.nan)
