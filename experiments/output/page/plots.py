"""Panels as Plotly draws them. Colours are those for paper; the page adapts them to its own."""

import math
from typing import Any

from experiments.output.figures.panels import Axis, Panel, Series

# Matplotlib's letters for marks.
MARKS = {
    "o": "circle-open",
    "s": "square-open",
    "D": "diamond-open",
    "^": "triangle-up-open",
    "v": "triangle-down-open",
    "P": "cross-open",
    "X": "x-open",
    "x": "x-thin-open",
}
NUMBER = ".5~g"
VALUES = f"%{{customdata[1]:{NUMBER}}} at %{{customdata[0]:{NUMBER}}}"


def plot(panel: Panel) -> dict[str, Any]:
    """Data and layout of one panel."""
    return {
        "data": [_trace(series) for series in panel.series],
        "layout": {
            "xaxis": _axis(panel.x) | {"hoverformat": NUMBER},
            "yaxis": _axis(panel.y) | {"hoverformat": NUMBER},
            # Of an axis with a scale of its own Plotly knows no values, so points tell theirs.
            "hovermode": "closest" if _own(panel) or panel.y.ticks else "x unified",
        },
    }


def _own(panel: Panel) -> bool:
    return "own" in (panel.x.scale, panel.y.scale)


def _trace(series: Series) -> dict[str, Any]:
    shared = {
        "type": "scatter",
        "x": series.x,
        "y": series.y,
        "name": series.name,
        "legendgroup": series.of,
        "meta": series.colour,
        "showlegend": False,
        "connectgaps": False,
    }
    if series.area:
        look = {"fill": "toself", "opacity": series.opacity, "hoverinfo": "skip"}
        return shared | look | {"mode": "lines", "line": {"width": 0}}
    dash = ",".join(f"{length}px" for length in series.dash) or "solid"
    look = {
        "mode": "+".join(["lines"] * bool(series.width) + ["markers"] * bool(series.mark)),
        "opacity": series.opacity,
        "line": {"width": series.width, "dash": dash},
        "marker": {"symbol": MARKS.get(series.mark, "circle-open"), "size": 7},
    }
    values = {"customdata": series.values, "hovertemplate": VALUES} if series.values else {}
    return shared | look | values


def _axis(axis: Axis) -> dict[str, Any]:
    low, high = axis.limits
    layout: dict[str, Any] = {"title": {"text": axis.label}, "type": "linear"}
    if axis.scale == "log":
        layout |= {"type": "log", "exponentformat": "power", "nticks": 6}
        low, high = math.log10(low), math.log10(high)
    if axis.ticks:
        places, names = zip(*axis.ticks, strict=True)
        layout |= {"tickvals": places, "ticktext": names}
    return layout | {"range": [low, high]}
