"""A new experiment is one file, and one line that names it."""

import io
import json
import re
import sys

import numpy as np
import pytest
from absl import flags
from rich.console import Console

import gf_jax
from experiments import main, studies
from experiments.cli import command_line, usage
from tests.conftest import assert_same_results, check_page, interrupted_at

# Two options of its own, a figure with an explanation, and a piece that is kept.
SOURCE = '''
"""How long the flow of a quartic is."""

import dataclasses

import numpy as np
from jaxtyping import Float

import gf_jax
from experiments.studies import groups
from experiments.cli.experiment import Experiment
from experiments.cli.options import option, positive, positive_number
from experiments.output.figures import style
from experiments.runs import harness, store, structures
from gf_jax.records import record


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(groups.Storage):
    """What it can be told."""

    steepness: float = option(
        "Factor on the quartic.", 2.0, "What to run", accepted=positive_number
    )
    samples: int = option("Times of the flow.", 5, "Quartic", accepted=positive)


@record
class Quartic:
    """Times, and where the flow is."""

    times: Float[np.ndarray, " times"]
    place: Float[np.ndarray, " times"]


def run(options):
    workplace = harness.open_folder(EXPERIMENT, options, None, None, "a quartic", "from 1")
    times, start = np.linspace(0.1, 1, options.samples), np.array([1.0])
    try:
        flows = [
            harness.solve_once(
                workplace,
                f"flow {number}",
                lambda tell, factor=factor: gf_jax.gradient_flow(
                    lambda x: factor * (x**4).sum(), start, times
                ),
                structures.of(gf_jax.Flow, start, times=options.samples),
            )
            for number, factor in enumerate((options.steepness, 2 * options.steepness))
        ]
    except KeyboardInterrupt:
        return harness.interrupt(workplace, "the flows are not complete")
    saved = Quartic(times, flows[0].params[:, 0] + flows[1].params[:, 0])
    with harness.results(workplace):
        store.write_record(workplace.directory, "quartic", saved)
    figure = harness.draw(workplace, lambda: draw(saved))
    summary = {"verdict": f"Verdict: it ends at {saved.place[-1]:.3g}."}
    workplace.say(summary["verdict"])
    harness.end(workplace, summary, figure)
    return 0


def draw(saved):
    figure = style.new(5, 4)
    axes = figure.subplots()
    axes.plot(saved.times, saved.place, label="_flow")
    style.describe(axes, "Place", "no unit", "Where the flow is, which slows down.")
    return style.finish(figure, None, "A quartic")


EXPERIMENT = Experiment(
    name="quartic",
    studies="how far the flow of a quartic gets",
    question="A quartic is flat at its minimum. How far does its flow get?",
    options=Options,
    run=run,
)
'''


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """The file in a package of its own, and the line; gives the command line that follows."""
    package = tmp_path / "elsewhere"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "quartic.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(studies.MODULES, "quartic", "elsewhere.quartic")

    def call(*arguments):
        values = flags.FlagValues()
        command_line.define(studies.flags(), values)
        try:
            status = main.main(command_line.parse_flags(["main", *arguments], values), values)
        except SystemExit as error:
            status = error.code
        return status, *capsys.readouterr()

    yield call
    for name in ("elsewhere", "elsewhere.quartic"):
        sys.modules.pop(name, None)


def test_help_tells_of_it(command):
    out = io.StringIO()
    usage.show(main.page(), Console(file=out, width=100, highlight=False))
    text = out.getvalue()
    assert re.search(r"^      quartic +how far the flow of a quartic gets", text, re.MULTILINE)
    assert re.search(r"^  --steepness=X +Factor on the quartic. \[2\]", text, re.MULTILINE)
    own = text[text.index("\nQuartic\n") :]
    assert re.match(r"\nQuartic\n  --samples=N +Times of the flow. \[5\]", own)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--experiment=quartic", "--widths=3"),
            "--widths: has no effect on --experiment=quartic, but on paper, rounding, ",
        ),
        (
            ("--samples=3",),
            "--samples: has no effect on --experiment=paper, but on quartic; drop one of the two",
        ),
        (("--experiment=quartic", "--samples=0"), "--samples=0: accepted is a positive integer"),
        (("--experiment=quartic", "--samples=x"), "--samples=x: accepted is an integer"),
        (("--experiment=quartic", "--steepnes=3"), "did you mean --steepness?"),
        (("--experiment=quartc",), "--experiment=quartc: unknown; did you mean quartic?"),
    ],
)
def test_mistakes_are_told(arguments, message, command):
    status, out, err = command(*arguments)
    assert (status, out) == (2, "")
    assert message in err


def test_it_has_a_folder_a_figure_and_a_page(command, tmp_path):
    folder = tmp_path / "run"
    status, _, err = command("--experiment=quartic", "--samples=3", f"--output_dir={folder}")
    assert status == 0, err
    with np.load(folder / "quartic.npz") as saved:
        assert saved["times"].tolist() == pytest.approx([0.1, 0.55, 1])
    configuration = json.loads((folder / "configuration.json").read_text())["configuration"]
    assert configuration == {
        "experiment": "quartic",
        "samples": 3,
        "steepness": 2.0,
        "output_dir": str(folder),
        "checkpoint_dir": None,
        "checkpoint_every": 30.0,
        "resume": None,
    }
    assert (folder / "figure.png").exists()
    check_page(folder)
    text = (folder / "report.html").read_text()
    assert "Where the flow is, which slows down." in text
    assert "How far does its flow get?" in text


def test_it_is_resumed(command, tmp_path, monkeypatch):
    arguments = ("--experiment=quartic", "--samples=3")
    folder, whole = tmp_path / "short", tmp_path / "whole"
    with monkeypatch.context() as patch:
        patch.setattr(gf_jax, "gradient_flow", interrupted_at("gradient_flow", 1))
        status, out, _ = command(*arguments, f"--output_dir={folder}")
    assert status == 130
    assert f"--resume={folder}" in out
    solved = interrupted_at("gradient_flow", 1)  # the first was kept
    with monkeypatch.context() as patch:
        patch.setattr(gf_jax, "gradient_flow", solved)
        assert command(f"--resume={folder}")[0] == 0
    assert command(*arguments, f"--output_dir={whole}")[0] == 0
    assert_same_results(folder, whole)
