"""A figure as data: its panels and what is drawn in them, for pages that draw them again.

What a figure shows is said once, to Matplotlib. Labels that begin with an underscore are, as
Matplotlib has it, in no legend; here they name what is hovered over. What stands before a
semicolon is what a series is of: "_η₀/2; measured" and "_η₀/2; predicted" belong together.
"""

import html
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis as MatplotlibAxis
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator

MOST_POINTS = 1_000  # of a curve: more than a screen shows
DIGITS = 6
NO_NAME = "_child"  # how Matplotlib's own names begin
LETTERS = {
    r"\eta": "η",
    r"\lambda": "λ",
    r"\epsilon": "ε",
    r"\theta": "θ",
    r"\times": "×",
    r"\int": "∫",
    r"\max": "max",
    r"\mathdefault": "",
    r"\,": "\u2009",
}
# Matplotlib calls a scale that is linear near zero and logarithmic elsewhere "symlog".
KNOWN_SCALES = ("linear", "log")

Numbers = list[float | None]


class Series(NamedTuple):
    """A curve, marks, or an area.

    Attributes:
      name: as HTML, "" if there is none.
      of: the same without what tells it from others of the same run.
      x, y: as they stand on the axes; None where nothing is drawn.
      values: what they stand for, pairs, where an axis has a scale of its own; else empty.
      colour: as #rrggbb.
      opacity: from 0 to 1.
      width: of the line, in pixels; 0 is none.
      dash: lengths of strokes and gaps in pixels, empty if the line is not interrupted.
      mark: Matplotlib's letter for the mark; "" is none.
      area: whether the points are the outline of an area.
    """

    name: str
    of: str
    x: Numbers
    y: Numbers
    values: list[tuple[float | None, float | None]]
    colour: str
    opacity: float = 1.0
    width: float = 0.0
    dash: tuple[float, ...] = ()
    mark: str = ""
    area: bool = False


class Axis(NamedTuple):
    """An axis.

    Attributes:
      label: as HTML.
      scale: "linear", "log", or "own": positions are not values, and ``ticks`` tell these.
      limits: positions of its ends.
      ticks: positions and labels as HTML, empty if they are to be chosen.
    """

    label: str
    scale: str
    limits: tuple[float, float]
    ticks: list[tuple[float, str]]


class Panel(NamedTuple):
    """One pair of axes and all that is drawn on them.

    Attributes:
      title: as HTML.
      x, y: its axes.
      series: what is drawn.
      reading: how it is read, in plain words; "" if nobody said so.
    """

    title: str
    x: Axis
    y: Axis
    series: list[Series]
    reading: str


def panels(figure: Figure) -> list[Panel]:
    """The panels of a figure that has been drawn, in its order."""
    return [
        Panel(
            title=as_html(axes.get_title()),
            x=_axis(axes.xaxis, [o.xaxis for o in axes.get_shared_x_axes().get_siblings(axes)]),
            y=_axis(axes.yaxis, [o.yaxis for o in axes.get_shared_y_axes().get_siblings(axes)]),
            series=[each for each in _series(axes) if any(at is not None for at in each.y)],
            reading=str(axes.get_label()),
        )
        for axes in figure.axes
    ]


def title(figure: Figure) -> str:
    """What stands above a figure, as HTML."""
    return as_html(figure.get_suptitle())


def as_html(label: str) -> str:
    """A label of Matplotlib's, mathematics between dollar signs, as HTML."""
    parts = html.escape(label).split("$")
    written = (_mathematics(part) if number % 2 else part for number, part in enumerate(parts))
    return "".join(written).replace("\n", " <br>")


def _mathematics(text: str) -> str:
    text = text.replace(" ", "")  # only \\, is a space there
    for command, letter in LETTERS.items():
        text = text.replace(command, letter)
    for sign, tag in (("_", "sub"), ("\\^", "sup")):
        text = re.sub(rf"{sign}(?:\{{([^{{}}]*)\}}|(\w))", rf"<{tag}>\1\2</{tag}>", text)
    return text.translate({ord("{"): "", ord("}"): "", ord("\\"): ""})


def _axis(axis: MatplotlibAxis, siblings: list[MatplotlibAxis]) -> Axis:
    """An axis, and those that share its scale, of which one alone may have a label."""
    labels = (each.get_label_text() for each in (axis, *siblings))
    own = axis.get_scale() not in KNOWN_SCALES
    low, high = _positions(axis, np.array(axis.get_view_interval()))
    ticks: list[tuple[float, str]] = []
    if own or isinstance(axis.get_major_locator(), FixedLocator):
        places = np.asarray(axis.get_majorticklocs())
        names = axis.get_major_formatter().format_ticks(places.tolist())
        at = _positions(axis, places)
        within = (at >= min(low, high)) & (at <= max(low, high))
        ticks = [
            (float(place), as_html(name))
            for place, name, shown in zip(at, names, within, strict=True)
            if shown
        ]
    return Axis(
        label=as_html(next((label for label in labels if label), "")),
        scale="own" if own else axis.get_scale(),
        limits=(float(low), float(high)),
        ticks=ticks,
    )


def _positions(axis: MatplotlibAxis, values: np.ndarray) -> np.ndarray:
    """Values where they stand on an axis that has a scale of its own; else as they are."""
    if axis.get_scale() in KNOWN_SCALES:
        return values
    return axis.get_transform().transform(values)


def _series(axes: Axes) -> Iterator[Series]:
    """What is drawn, from the back to the front."""
    for artist in sorted(axes.get_children(), key=lambda artist: artist.get_zorder()):
        if isinstance(artist, Line2D):
            yield _line(axes, artist)
        elif isinstance(artist, PolyCollection):
            yield _area(axes, artist)


def _line(axes: Axes, line: Line2D) -> Series:
    points = np.column_stack([line.get_xdata(), line.get_ydata()]).astype(float)
    if line.get_transform() != axes.transData:  # of a line across all the panel
        points = axes.transData.inverted().transform(line.get_transform().transform(points))
    mark = str(line.get_marker())
    _, dash = line._dash_pattern  # type: ignore[attr-defined]  # it has no public name
    return Series(
        **_points(axes, _thinned(axes, points)),
        **_names(line.get_label()),
        colour=to_hex(line.get_color()),
        opacity=to_rgba(line.get_color(), line.get_alpha())[-1],
        width=0.0 if line.get_linestyle() == "None" else float(line.get_linewidth()),
        dash=tuple(round(length, 1) for length in dash or ()),
        mark="" if mark == "None" else mark,
    )


def _area(axes: Axes, area: PolyCollection) -> Series:
    colour: tuple[float, float, float, float] = tuple(np.ravel(area.get_facecolor()))
    gap = np.full((1, 2), np.nan)
    outlines = [np.concatenate([path.vertices, gap]) for path in area.get_paths()]
    points = np.concatenate(outlines) if outlines else gap
    kept = np.isnan(points[:, 0])
    kept[:: max(1, len(points) // (2 * MOST_POINTS))] = True
    return Series(
        **_points(axes, points[kept]),
        **_names(area.get_label()),
        colour=to_hex(colour),
        opacity=float(colour[-1]),
        area=True,
    )


def _names(label: object) -> dict[str, Any]:
    text = "" if str(label).startswith(NO_NAME) else str(label).removeprefix("_")
    of, *rest = re.split(r"; |, (?=diverged)", text)
    return {"name": as_html(", ".join([of, *rest])), "of": as_html(of)}


def _thinned(axes: Axes, points: np.ndarray) -> np.ndarray:
    """At most so many points, evenly spaced as they stand on the horizontal axis."""
    if len(points) <= MOST_POINTS:
        return points
    at = axes.xaxis.get_transform().transform(points[:, 0])
    at = np.where(np.isfinite(at), at, -np.inf)  # a time of zero, on a logarithmic axis
    first = at[np.isfinite(at)].min(initial=np.inf)
    wanted = np.linspace(first, at[-1], MOST_POINTS)
    return points[np.unique(np.searchsorted(at, wanted).clip(0, len(at) - 1))]


def _points(axes: Axes, points: np.ndarray) -> dict[str, Any]:
    """Positions, and the values where these differ."""
    x, y = _positions(axes.xaxis, points[:, 0]), _positions(axes.yaxis, points[:, 1])
    own = {axes.get_xscale(), axes.get_yscale()} - set(KNOWN_SCALES)
    values = list(zip(_rounded(points[:, 0]), _rounded(points[:, 1]), strict=True)) if own else []
    return {"x": _rounded(x), "y": _rounded(y), "values": values}


def _rounded(values: np.ndarray) -> Numbers:
    """Numbers as JSON has them, short; None for what is not finite."""
    return [float(f"{v:.{DIGITS}g}") if np.isfinite(v) else None for v in values.tolist()]
