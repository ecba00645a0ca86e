"""The command line as a user meets it: outputs, repetition, mistakes."""

import contextlib
import dataclasses
import json
import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

import jax
import numpy as np
import pytest

import gf_jax
from experiments import show
from experiments.problems import data
from experiments.process import folders
from experiments.process.mistakes import EXIT_DIVERGED
from experiments.runs import store
from gf_jax.study import drawing
from tests.conftest import SMALL, check_page, weights

ROOT = Path(__file__).parents[1]


@pytest.mark.oldest
def test_everything_is_written(finished):
    folder, out = finished
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "configuration.json",
        "initial_params.npz",
        "metrics.npz",
        "snapshots.npz",
        "flow.npz",
        "summary.json",
        "figure.png",
        "figure.pdf",
        "report.html",
    }
    check_page(folder)
    description = json.loads((folder / "configuration.json").read_text())
    assert description["configuration"]["snapshots"] == 12
    assert description["configuration"]["activation"] == "linear"
    assert description["versions"]["jax"] == jax.__version__
    assert description["device"]["platform"] == jax.devices()[0].platform
    with np.load(folder / "metrics.npz") as metrics, np.load(folder / "snapshots.npz") as kept:
        assert metrics["loss"].shape == (13, 3)
        assert metrics["ratio"].tolist() == [1, 2, 3]
        np.testing.assert_allclose(metrics["time"], np.arange(13) * 0.05)
        assert kept["params.dense_1.weight"].shape == (12, 3, 6, 64)
        assert kept["accuracy"].shape == (12, 3)
    summary = json.loads((folder / "summary.json").read_text())
    assert [lane["ratio"] for lane in summary["runs"]] == [1, 2, 3]
    for text in (out, summary["data"], description["data"]["label"]):
        assert "scikit-learn digits, 60 images" in text
    assert folder.name in out


def test_the_numbers_are_those_of_the_library(finished):
    folder, _ = finished
    digits = data.load("digits", None, 60)
    network = gf_jax.problems.fully_connected((64, 6, 10))
    inputs = digits.images.reshape(60, 64)
    rows = gf_jax.problems.row_space(inputs)
    reduced = gf_jax.problems.fully_connected((len(rows.basis), 6, 10))
    f = gf_jax.problems.classification(reduced, rows.inputs, digits.labels).loss
    start = rows.reduce(gf_jax.problems.xavier_uniform(jax.random.key(0), network.shapes))
    run = gf_jax.gradient_descent(f, start, step_size=0.05, ratios=(2, 3), iterations=12)
    saved = store.read_run(folder)
    jax.tree.map(np.testing.assert_array_equal, saved.metrics, run.metrics)
    with np.load(folder / "snapshots.npz") as kept:
        np.testing.assert_array_equal(
            kept["params.dense_2.weight"], run.snapshots["dense_2"]["weight"]
        )
        final = {"dense_1": {"weight": kept["params.dense_1.weight"][-1, 2]}}
        final["dense_2"] = {"weight": kept["params.dense_2.weight"][-1, 2]}
        right = network.apply(final, inputs).argmax(axis=1) == digits.labels
        assert kept["accuracy"][-1, 2] == pytest.approx(float(right.mean()))


def test_a_run_repeats_from_its_own_initial_params(finished, invoke, tmp_path):
    folder, _ = finished
    again = tmp_path / "again"
    weights = folder / "initial_params.npz"
    arguments = (*SMALL, "--ratios=2,3", f"--initial_params={weights}", f"--output_dir={again}")
    assert invoke(*arguments)[0] == 0
    jax.tree.map(
        np.testing.assert_array_equal,
        store.read_run(again).metrics,
        store.read_run(folder).metrics,
    )
    assert (again / "initial_params.npz").read_bytes() == weights.read_bytes()


@pytest.mark.long
@pytest.mark.parametrize("network", ["conv_adapted", "lenet5"])
def test_convolutional_networks_run_on_digits(network, invoke, tmp_path):
    arguments = ("--dataset=digits", "--examples=20", "--iterations=2", "--ratios=2", "--noflow")
    folder = tmp_path / network
    status, out, err = invoke(*arguments, f"--network={network}", f"--output_dir={folder}")
    assert status == 0, err
    assert "digits enlarged to 28x28" in out
    with np.load(folder / "initial_params.npz") as params:
        assert params["conv_2.weight"].shape == (16, 6, 5, 5)
        assert ("conv_2.bias" in params.files) == (network == "lenet5")


@pytest.mark.oldest
def test_a_saved_run_is_drawn_and_tabulated_again(finished, capsys):
    folder, out = finished
    table = [line for line in out.splitlines() if line.lstrip().startswith("η")]
    page = (folder / "report.html").read_text()
    for name in ("figure.png", "figure.pdf", "summary.json", "report.html"):
        (folder / name).unlink()
    assert show.main([str(folder)]) == 0
    again = capsys.readouterr().out
    assert [line for line in again.splitlines() if line.lstrip().startswith("η")] == table
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "figure.pdf").read_bytes().startswith(b"%PDF")
    assert (folder / "report.html").read_text()[:2_000] == page[:2_000]


def test_a_diverging_run_says_so_and_keeps_its_results(invoke, tmp_path):
    folder = tmp_path / "wild"
    arguments = (*SMALL[:2], "--iterations=40", "--widths=6,6,6", "--noflow")
    status, out, _ = invoke(*arguments, "--step_size=20", "--ratios=1000", f"--output_dir={folder}")
    assert status == EXIT_DIVERGED
    summary = json.loads((folder / "summary.json").read_text())
    base, other = summary["runs"]
    assert other["diverged_at"] is None
    assert base["final_accuracy"] is base["final_loss"] is None
    assert (
        f"(ratio 1) diverged: its loss is not finite from base iteration {base['diverged_at']}"
        in (" ".join(out.split()))
    )
    loss = store.read_run(folder).metrics.loss
    assert np.isfinite(loss[: base["diverged_at"], 0]).all()
    assert not np.isfinite(loss[base["diverged_at"], 0])
    assert np.isfinite(loss[:, 1]).all()
    assert (folder / "figure.png").exists()


def test_a_diverging_lane_is_drawn_up_to_there(finished_once):
    run = store.read_run(finished_once[0])
    loss = run.metrics.loss.copy()
    loss[5:, 1] = np.inf
    metrics = dataclasses.replace(run.metrics, loss=loss)
    figure = drawing.draw(dataclasses.replace(run, metrics=metrics, reference=None))
    base, wild, other = figure.axes[0].lines
    assert "diverged at 5" in wild.get_label()
    np.testing.assert_array_equal(wild.get_ydata()[:5], loss[:5, 1])
    assert np.isnan(wild.get_ydata()[5:]).all()
    for line, lane in ((base, 0), (other, 2)):
        np.testing.assert_array_equal(line.get_ydata(), loss[:, lane])


def test_an_interrupted_run_keeps_what_it_has(invoke, tmp_path, monkeypatch):
    segments = gf_jax.resumable_segments

    def interrupted(*arguments, **options):
        for number, part in enumerate(segments(*arguments, **options)):
            if number == 2:
                raise KeyboardInterrupt
            yield part

    monkeypatch.setattr(gf_jax, "resumable_segments", interrupted)
    folder = tmp_path / "short"
    status, out, _ = invoke(*SMALL, "--ratios=2", "--segments=4", f"--output_dir={folder}")
    assert status == 130
    assert "interrupted" in out
    assert store.read_run(folder).iterations.tolist() == list(range(7))


def test_the_default_directory_is_new_every_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = [folders.create(None, "lenet5") for _ in range(3)]
    folders.unlock()
    assert len(set(made)) == 3
    assert all(folder.is_dir() and folder.parent.name == "runs" for folder in made)


def test_weights_of_other_programs_may_be_float64(invoke, tmp_path):
    path = tmp_path / "weights.npz"
    generator = np.random.default_rng(0)
    np.savez(path, **{name: generator.normal(size=a.shape) for name, a in weights().items()})
    folder = tmp_path / "run"
    assert invoke(*SMALL, f"--initial_params={path}", f"--output_dir={folder}")[0] == 0
    with np.load(folder / "initial_params.npz") as saved, np.load(path) as given:
        for name in given.files:
            np.testing.assert_array_equal(saved[name], given[name].astype(np.float32))


def test_results_are_never_overwritten(finished, invoke):
    folder, _ = finished
    before = (folder / "metrics.npz").read_bytes()
    status, _, err = invoke(*SMALL, f"--output_dir={folder}")
    assert status == 2
    assert "never overwritten" in err
    assert (folder / "metrics.npz").read_bytes() == before


def in_a_terminal(command, **options):
    """Runs a command whose output is a terminal of 200 columns."""
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (50, 200))
    with subprocess.Popen(command, stdout=follower, stderr=follower, **options) as started:
        os.close(follower)
        read = []
        with contextlib.suppress(OSError):  # the end of a terminal
            while part := os.read(leader, 2**16):
                read.append(part)
    os.close(leader)
    return started.returncode, b"".join(read).decode()


def in_a_pipe(command, **options):
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **options
    )
    return done.returncode, done.stdout


@pytest.mark.long
@pytest.mark.parametrize(
    ("run", "variables", "cut"),
    [
        (in_a_pipe, {"TERM": "dumb", "COLUMNS": "0"}, ("--segments=1", "--snapshots=6")),
        (in_a_terminal, {"TERM": "xterm-256color"}, ("--segments=3", "--snapshots=12")),
        (in_a_pipe, {"COLUMNS": "20", "PYTHONIOENCODING": "ascii"}, ("--segments=12",)),
    ],
)
def test_how_it_is_shown_and_cut_changes_no_bit(run, variables, cut, finished_once, tmp_path):
    """In a process of its own, as a user calls it, against a run in this one."""
    command = [sys.executable, "-m", "experiments.main", *SMALL, "--ratios=2,3", *cut]
    environment = os.environ | {"PYTHONWARNINGS": "error", "MPLBACKEND": "none such"} | variables
    status, out = run([*command, f"--output_dir={tmp_path / 'a'}"], cwd=ROOT, env=environment)
    assert status == 0, out
    assert "everything lies in" in " ".join(out.split())
    assert "Traceback" not in out
    with (
        np.load(tmp_path / "a" / "metrics.npz") as here,
        np.load(finished_once[0] / "metrics.npz") as there,
    ):
        assert here.files == there.files
        for name in here.files:
            np.testing.assert_array_equal(here[name], there[name])
    with (
        np.load(tmp_path / "a" / "snapshots.npz") as here,
        np.load(finished_once[0] / "snapshots.npz") as there,
    ):
        common = np.isin(there["iteration"], here["iteration"])
        assert common.sum() == len(here["iteration"])
        for name in set(here.files) - {"format", "ratio"}:
            np.testing.assert_array_equal(here[name], there[name][common])
