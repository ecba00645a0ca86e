"""What all figures share: colours, dashes, how axes are described, and how they are saved.

Matplotlib is slow to import, and help has to load those who draw: so it is imported when a figure
is made, and named where types are checked.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.process.mistakes import UNWRITABLE
from gf_jax.study.files import atomically
from gf_jax.study.style import COLOURS as COLOURS
from gf_jax.study.style import DASHES as DASHES
from gf_jax.study.style import MARKS as MARKS
from gf_jax.study.style import colour as colour
from gf_jax.study.style import count_time as count_time
from gf_jax.study.style import describe as describe
from gf_jax.study.style import entitle
from gf_jax.study.style import explain as explain
from gf_jax.study.style import plain as plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Axes
    from matplotlib.figure import Figure as Figure

FILES = ("figure.png", "figure.pdf")
LOGARITHMIC = "Euclidean distance, logarithmic"


def new(width: float, height: float) -> "Figure":
    """An empty figure, whose panels find their places; sizes are in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def shades(count: int) -> Any:
    """So many colours from dark to light, of things that have an order."""
    from matplotlib import colormaps

    return colormaps["viridis"](np.linspace(0, 0.92, count))


def finish(figure: "Figure", named: "Axes | None", title: str) -> "Figure":
    """Adds title and legend, the latter from the lines of one panel if given."""
    entitle(figure, named, title)
    return figure


@plain
def attempt(
    drawing: "Callable[[], Figure]", directory: Path, say: Callable[[str], None]
) -> "Figure | None":
    """Draws a figure and writes it into a folder.

    Returns:
      The figure; None, said in a line, if it cannot be drawn: the numbers do not depend on it.

    Raises:
      OSError: if the place where it is written takes no more.
    """
    try:
        return write(drawing(), directory)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        say(f"warning: the figure could not be drawn ({reason}); the numbers are not touched by it")
        return None


def write(figure: "Figure", directory: Path) -> "Figure":
    """Writes a figure into a folder, and returns it."""
    for name in FILES:
        with atomically(directory / name) as temporary:
            figure.savefig(temporary, dpi=130)
        figure.set_layout_engine("none")  # what is laid out stays
    return figure
