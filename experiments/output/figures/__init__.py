"""Figures of saved results, each drawn as ``figure.png`` and ``figure.pdf`` in a folder."""

from matplotlib.figure import Figure as Figure

from experiments.output.figures.benchmark import draw_benchmark as draw_benchmark
from experiments.output.figures.deep_linear import draw_starts as draw_starts
from experiments.output.figures.panels import Axis as Axis
from experiments.output.figures.panels import Panel as Panel
from experiments.output.figures.panels import Series as Series
from experiments.output.figures.panels import as_html as as_html
from experiments.output.figures.panels import panels as panels
from experiments.output.figures.panels import title as title
from experiments.output.figures.runs import draw_prediction as draw_prediction
from experiments.output.figures.runs import draw_rounding as draw_rounding
from experiments.output.figures.runs import draw_run as draw_run
from experiments.output.figures.runs import draw_sweep as draw_sweep
from experiments.output.figures.saddle import draw_saddle as draw_saddle
from experiments.output.figures.style import attempt as attempt
from experiments.output.figures.style import plain as plain
from experiments.output.figures.theory import draw_bounds as draw_bounds
from experiments.output.figures.theory import draw_curvature as draw_curvature
from experiments.output.figures.theory import draw_near_zero as draw_near_zero
