"""What all figures share: colours, dashes, how axes are described, and how they are saved."""

from collections.abc import Callable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.cli.configuration import UNWRITABLE
from gf_jax.study.files import atomically
from gf_jax.study.style import COLOURS as COLOURS
from gf_jax.study.style import DASHES as DASHES
from gf_jax.study.style import MARKS as MARKS
from gf_jax.study.style import colour as colour
from gf_jax.study.style import count_time as count_time
from gf_jax.study.style import describe as describe
from gf_jax.study.style import entitle
from gf_jax.study.style import plain as plain
from gf_jax.study.style import run_name as run_name

FILES = ("figure.png", "figure.pdf")


@plain
def attempt(drawing: Callable[[], Figure], say: Callable[[str], None]) -> Figure | None:
    """What is drawn; None, said in a line, if it cannot be: the numbers do not depend on it.

    Raises:
      OSError: if the place where it is written takes no more.
    """
    try:
        return drawing()
    except Exception as error:
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        say(f"warning: the figure could not be drawn ({reason}); the numbers are not touched by it")
        return None


def save(figure: Figure, named: Axes | None, title: str, directory: Path) -> Figure:
    """Adds title and legend, the latter from the lines of one panel if given, and saves."""
    entitle(figure, named, title)
    return write(figure, directory)


def write(figure: Figure, directory: Path) -> Figure:
    """Writes a figure into a folder, and returns it."""
    for name in FILES:
        with atomically(directory / name) as temporary:
            figure.savefig(temporary, dpi=130)
        figure.set_layout_engine("none")  # what is laid out stays
    return figure
