"""Figures: what they share, and how they are written as ``figure.png`` and ``figure.pdf``."""

from typing import TYPE_CHECKING

from experiments.output.figures.style import attempt as attempt
from experiments.output.figures.style import plain as plain

if TYPE_CHECKING:
    from experiments.output.figures.style import Axes as Axes
    from experiments.output.figures.style import Figure as Figure
