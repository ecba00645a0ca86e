"""Figure of a saddle on which steps must be exponentially small."""

from typing import TYPE_CHECKING

import numpy as np

from experiments.output.figures import style
from experiments.studies.necessity.records import Saddle

if TYPE_CHECKING:
    from experiments.output.figures import Axes, Figure

SHOWN = 4  # every so many step sizes are drawn
COORDINATES = ("x", "y")
SHAPES = ("convex", "concave")
# How the panels are read.
GAPS = (
    ("Errors die out here: one step size serves for all times."),
    ("Errors grow exponentially here. Above the dotted line the accuracy is missed."),
)
ALLOWED = (
    "The largest step that keeps the accuracy up to a time. Along y it falls exponentially: a "
    "straight line on this axis. Along x it settles."
)


def draw(saddle: Saddle) -> "Figure":
    """Draws gaps against time along both coordinates, and the step sizes they allow.

    Marks are measured, lines are the closed form.

    Returns:
      The figure.
    """
    figure = style.new(16.5, 5.2)
    along_y, along_x, allowed = figure.subplots(1, 3)
    along_x.sharey(along_y)
    for number, axes in ((1, along_y), (0, along_x)):
        _gaps(axes, saddle, number)
        style.describe(
            axes,
            f"Gap along {COORDINATES[number]}, where f is {SHAPES[number]}",
            "|descent − flow|, logarithmic",
            GAPS[number],
        )
    _allowed(allowed, saddle)
    title = (
        "A saddle, f(x, y) = ½ x² − ½ y²: marks are measured, lines are the closed form; "
        rf"accuracy $\epsilon$ = {saddle.epsilon:g}"
    )
    return style.finish(figure, along_y, title)


def _gaps(axes: "Axes", saddle: Saddle, number: int) -> None:
    kept = slice(4, None, 5)
    for lane in range(0, len(saddle.step_sizes), SHOWN):
        colour, name = style.colour(lane // SHOWN), rf"$\eta$ = {saddle.step_sizes[lane]:.3g}"
        axes.plot(
            saddle.times,
            saddle.exact[number, :, lane],
            color=colour,
            linewidth=1,
            label=f"_{name}; closed form",
        )
        axes.plot(
            saddle.times[kept],
            saddle.gap[number, kept, lane],
            style.MARKS[lane // SHOWN],
            markersize=5,
            markerfacecolor="none",
            color=colour,
            label=name,
        )
    axes.axhline(saddle.epsilon, color="0.4", linestyle=":", label=r"accuracy $\epsilon$")
    axes.set_yscale("log")


def _allowed(axes: "Axes", saddle: Saddle) -> None:
    for number, colour in ((1, style.COLOURS[2]), (0, style.COLOURS[1])):
        name = f"along {COORDINATES[number]}"
        axes.plot(
            saddle.times,
            saddle.largest_exact[number],
            color=colour,
            linewidth=1,
            label=f"_{name}; closed form",
        )
        kept = np.arange(len(saddle.times) - 1, -1, -3)
        axes.plot(
            saddle.times[kept],
            saddle.largest[number, kept],
            style.MARKS[number],
            color=colour,
            markersize=5,
            markerfacecolor="none",
            label=name,
        )
    near = saddle.approximation <= 2 * saddle.step_sizes[0]
    axes.plot(
        saddle.times[near],
        saddle.approximation[near],
        color="0.4",
        linestyle="--",
        label=r"$2\epsilon\,/\,(m^2\, t\, y_0\, e^{mt})$",
    )
    axes.set_yscale("log")
    axes.set_xlim(left=0)
    title = r"Largest step size of accuracy $\epsilon$ up to a time"
    style.describe(axes, title, "step size, logarithmic", ALLOWED)
    axes.legend(frameon=False, loc="lower left")
