"""What figures share: colours, dashes, and how axes are described."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:  # Matplotlib is slow to import, and those who only name colours need none
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Arguments = ParamSpec("Arguments")
Made = TypeVar("Made")

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
TIME = r"time = iteration $\times$ step size"
MARKS = ("o", "s", "D", "^", "v", "P", "X")


def plain(function: Callable[Arguments, Made]) -> Callable[Arguments, Made]:
    """A function under Matplotlib's own settings, whatever a file of the user's says."""

    @functools.wraps(function)
    def under_defaults(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Made:
        import matplotlib.style

        with matplotlib.style.context("default"):
            return function(*args, **kwargs)

    return under_defaults


def colour(lane: int) -> str:
    """Colour of a lane; the base run is black."""
    return COLOURS[0] if lane == 0 else COLOURS[1 + (lane - 1) % (len(COLOURS) - 1)]


def run_name(ratio: int) -> str:
    """What a figure calls a lane."""
    return r"$\eta_0$" if ratio == 1 else rf"$\eta_0/{ratio}$"


def count_time(figure: "Figure", momentum: float) -> None:
    """Says on every axis of time how it is counted with momentum, if there is any."""
    for axes in figure.axes if momentum else []:
        label = axes.get_xlabel().replace(TIME, rf"{TIME} / (1 - {momentum:g})")
        axes.set_xlabel(label)


def describe(axes: "Axes", title: str, unit: str = "Euclidean distance", reading: str = "") -> None:
    """Titles a panel whose horizontal axis is time, and says how it is read, see ``explain``."""
    axes.set(title=title, xlabel=TIME, ylabel=unit)
    explain(axes, reading)
    axes.margins(x=0.02)
    axes.grid(visible=True, alpha=0.25)


def explain(axes: "Axes", reading: str) -> None:
    """Says how a panel is read, in plain words, for pages that show it; figures do not."""
    axes.set_label(reading)


def entitle(figure: "Figure", named: "Axes | None", title: str) -> None:
    """Adds title and legend, the latter from the lines of one panel if given."""
    figure.suptitle(title[:1].upper() + title[1:])
    lines = [] if named is None else named.lines
    handles = [line for line in lines if not str(line.get_label()).startswith("_")]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=8, frameon=False)
