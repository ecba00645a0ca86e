"""Figures of saved results, each drawn as ``figure.png`` and ``figure.pdf`` in a folder."""

from matplotlib.figure import Figure as Figure

from experiments.figures.benchmark import draw_benchmark as draw_benchmark
from experiments.figures.deep_linear import draw_starts as draw_starts
from experiments.figures.panels import Axis as Axis
from experiments.figures.panels import Panel as Panel
from experiments.figures.panels import Series as Series
from experiments.figures.panels import as_html as as_html
from experiments.figures.panels import panels as panels
from experiments.figures.panels import title as title
from experiments.figures.runs import draw_prediction as draw_prediction
from experiments.figures.runs import draw_rounding as draw_rounding
from experiments.figures.runs import draw_run as draw_run
from experiments.figures.runs import draw_sweep as draw_sweep
from experiments.figures.saddle import draw_saddle as draw_saddle
from experiments.figures.style import attempt as attempt
from experiments.figures.style import plain as plain
from experiments.figures.theory import draw_bounds as draw_bounds
from experiments.figures.theory import draw_curvature as draw_curvature
from experiments.figures.theory import draw_near_zero as draw_near_zero
