"""The page of a run: what it holds, for any run, and from strangers' labels. See test_browser."""

import dataclasses
import json
import re

import numpy as np
import plotly.graph_objects
import pytest
from matplotlib.figure import Figure
from rich.table import Table

from experiments import show
from experiments.output import report
from experiments.output.figures import panels, style
from experiments.output.page import document, plots
from experiments.output.page.transcript import Transcript
from experiments.runs import store
from gf_jax.study.style import run_name

MALICE = "<script>alert(1)</script>"


def drawn(draw):
    """A figure that was laid out, whose axes have their final limits."""
    figure = Figure()
    axes = figure.subplots()
    draw(axes)
    figure.draw_without_rendering()
    (panel,) = panels.panels(figure)
    return panel


def embedded(text):
    """The plots in a page."""
    return json.loads(re.search(r'<script id="plots"[^>]*>(.*?)</script>', text, re.DOTALL)[1])


@pytest.mark.oldest
def test_a_page_holds_all_that_was_told(finished):
    folder, _ = finished
    text = (folder / "report.html").read_text()
    summary = json.loads((folder / "summary.json").read_text())
    for line in summary["flow"]["verdict"]:
        assert document._sentence(line) in text
    assert text.index('<h2 id="verdict">') < text.index('<h2 id="figures">')
    assert "NOT MNIST" in text
    assert "scikit-learn digits, 60 images" in text
    for lane in summary["runs"]:  # the table of the terminal
        assert f"<td>{lane['final_loss']:.6f}</td>" in text
    description = json.loads((folder / "configuration.json").read_text())
    for key, value in description["versions"].items():
        assert f'{key}</th><td class="left">{value}</td>' in text
    assert 'step_size</th><td class="left">0.05</td>' in text
    assert len(text) < 4_000_000


def test_a_page_needs_nothing_else(finished):
    text = (finished[0] / "report.html").read_text()
    markup = re.sub(r"<script.*?</script>|<style.*?</style>", "", text, flags=re.DOTALL)
    linked = re.findall(r'(?:src|href)\s*=\s*"([^"]*)"', markup)
    assert len(linked) == 2  # an empty icon, and the figure
    assert all(link.startswith("data:") for link in linked)
    assert "http" not in text.split('<script id="library"')[0].replace("http-equiv", "")


def test_plots_are_those_of_the_run(finished):
    folder, _ = finished
    run = store.read_run(folder)
    found = embedded((folder / "report.html").read_text())
    assert len(found) == 6
    for plot in found:  # Plotly's own schema refuses what it does not know
        plotly.graph_objects.Figure(plot)
    losses, travelled, to_flow = found[:3]
    by_name = {trace["name"]: trace for trace in losses["data"]}
    for lane, name in enumerate(("η<sub>0</sub>", "η<sub>0</sub>/2", "η<sub>0</sub>/3")):
        # Six digits are kept.
        np.testing.assert_allclose(by_name[name]["x"], run.times, rtol=5e-6)
        np.testing.assert_allclose(by_name[name]["y"], run.metrics.loss[:, lane], rtol=5e-6)
    assert [trace["legendgroup"] for trace in travelled["data"][:2]] == list(by_name)[:2]
    measured = next(t for t in to_flow["data"] if t["name"] == "η<sub>0</sub>/2, measured")
    assert measured["mode"] == "markers"
    assert measured["x"][0] == pytest.approx(run.times[-1])  # thinned from the end
    np.testing.assert_allclose(measured["y"][0], run.reference.distance_to_flow[-1, 1], rtol=5e-6)
    predicted = next(t for t in to_flow["data"] if t["name"] == "η<sub>0</sub>/2, predicted")
    np.testing.assert_allclose(predicted["y"], run.reference.predicted_to_flow[:, 1], rtol=5e-6)


def test_series_of_a_run_belong_together():
    def draw(axes):
        for label in ("_a & b; measured", "a & b", "a & b, diverged at 5", "c, d"):
            axes.plot([0, 1], label=label)

    of, names = zip(*((each.of, each.name) for each in drawn(draw).series), strict=True)
    assert of == ("a &amp; b",) * 3 + ("c, d",)
    assert names == ("a &amp; b, measured", "a &amp; b", "a &amp; b, diverged at 5", "c, d")


def test_what_is_not_finite_is_a_gap():
    values = np.array([1.0, np.nan, np.inf, -np.inf, 5.0])
    panel = drawn(lambda axes: axes.plot(np.arange(5.0), values, label="a"))
    assert panel.series[0].y == [1.0, None, None, None, 5.0]
    nothing = drawn(lambda axes: axes.plot([0.0, 1.0], [np.nan, np.inf]))
    assert nothing.series == []


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_long_curves_are_thinned_evenly(scale):
    times = np.arange(10_001) * 0.001

    def draw(axes):
        axes.plot(times, times**2 + 1)
        axes.set_xscale(scale)

    (series,) = drawn(draw).series
    x, y = np.array(series.x), np.array(series.y)
    assert len(x) <= 1_000
    np.testing.assert_allclose(y, x**2 + 1, rtol=1e-5)  # six digits of both
    assert x[-1] == 10.0
    start = x[0] if scale == "linear" else x[1]
    assert start <= 0.002
    gaps = np.diff(x if scale == "linear" else np.log(x[x > 0.1]))
    assert gaps.max() < 3 * np.median(gaps)


def test_axes_bands_and_lines_across():
    def draw(axes):
        axes.fill_between([0.0, 1.0, 2.0], [1.0, 1.0, 1.0], [2.0, 3.0, 2.0], alpha=0.25)
        axes.plot([0.0, 1.0, 2.0], [-1.0, 0.0, 100.0], "o--", color="red", label=r"$\eta_0$")
        axes.axhline(10, label="_edge")
        axes.set(xlabel=r"$\lambda_{min}$ & more", title=r"$\int\max(x)\,dt$")
        axes.set_yscale("symlog", linthresh=1)
        axes.set_xlim(0, 4)

    panel = drawn(draw)
    band, curve, across = panel.series
    assert band.area
    assert band.opacity == 0.25
    assert (curve.name, curve.mark, curve.colour) == ("η<sub>0</sub>", "o", "#ff0000")
    assert len(curve.dash) == 2
    assert across.name == "edge"
    assert across.x == [0.0, 4.0]
    assert [value for _, value in across.values] == [10.0, 10.0]
    assert across.y[0] != 10.0  # it stands elsewhere, on an axis with a scale of its own
    assert panel.y.scale == "own"
    assert curve.values[2] == (2.0, 100.0)
    assert (panel.x.label, panel.title) == ("λ<sub>min</sub> &amp; more", "∫max(x)\u2009dt")
    labels = {label: at for at, label in panel.y.ticks}
    assert labels["10<sup>1</sup>"] == pytest.approx(across.y[0])
    plotly.graph_objects.Figure(plots.plot(panel))


def test_labels_of_strangers_are_no_markup(finished, capsys):
    folder, _ = finished
    path = folder / "configuration.json"
    description = json.loads(path.read_text())
    description["network"] = description["data"]["label"] = MALICE
    description["versions"] = {MALICE: MALICE}
    description["device"] = {"kind": MALICE}
    description["command"] = ["main", MALICE]
    description["configuration"][MALICE] = [MALICE]
    path.write_text(json.dumps(description))
    assert show.main([str(folder)]) == 0
    text = (folder / "report.html").read_text()
    assert MALICE not in text
    assert text.count("<script") == 3
    assert "&lt;script&gt;alert(1)" in text


def test_divergence_and_interrupts_are_told(finished, tmp_path):
    folder, _ = finished
    run = store.read_run(folder)
    loss = run.metrics.loss.copy()
    loss[5:, 1] = np.inf
    run = dataclasses.replace(
        run, metrics=dataclasses.replace(run.metrics, loss=loss), reference=None
    )
    summary = report.summarise(run)
    console = Transcript(quiet=True)
    report.print_run(summary, console)
    figure = style.write(report.draw_run(run), folder)
    document.write(folder, summary | {"interrupted": True}, figure, console.told)
    text = (folder / "report.html").read_text()
    assert "No verdict" in text
    assert "Interrupted." in text
    assert "<strong>Warning:</strong> the run with step size 0.025 (ratio 2) diverged" in text
    trace = next(t for t in embedded(text)[0]["data"] if "diverged" in t["name"])
    assert trace["y"][5:] == [None] * 8
    assert trace["legendgroup"] == "η<sub>0</sub>/2"


def test_what_is_printed_is_remembered():
    console = Transcript(quiet=True)
    table = Table(title="a [b]x[/b]")
    table.add_column("left", justify="left")
    table.add_column("right", justify="right")
    table.add_row("1", r"\[2]")
    console.print(table)
    console.print("[bold]warning:[/] c")
    console.print("[d]", markup=False)
    assert [each.text for each in console.told] == ["a x", "warning: c", "[d]"]
    assert console.told[0].rows == [("1", "[2]")]
    assert console.told[0].left == [True, False]
    assert console.told[1].warns


@pytest.mark.parametrize(
    ("label", "written"),
    [
        ("a < b", "a &lt; b"),
        (
            r"$2\epsilon\,/\,(m^2\, t\, y_0\, e^{mt})$",
            "2ε / (m<sup>2</sup> t y<sub>0</sub> e<sup>mt</sup>)",
        ),
        (r"$\mathdefault{-10^{-2}}$", "-10<sup>-2</sup>"),
        (run_name(5), "η<sub>0</sub>/5"),
        ("one\ntwo", "one <br>two"),
    ],
)
def test_mathematics_as_html(label, written):
    assert panels.as_html(label).replace("\u2009", " ") == written
