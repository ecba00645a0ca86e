"""The command line as a user meets it: outputs, repetition, mistakes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import gf_jax
from experiments import data, files, show, store
from experiments.configuration import EXIT_DIVERGED
from tests.conftest import SMALL

ROOT = Path(__file__).parents[1]


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
    }
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
    network = gf_jax.fully_connected((64, 6, 10))
    inputs = digits.images.reshape(60, 64)
    rows = gf_jax.row_space(inputs)
    reduced = gf_jax.fully_connected((len(rows.basis), 6, 10))
    f = gf_jax.classification(reduced, rows.inputs, digits.labels).loss
    start = rows.reduce(gf_jax.xavier_uniform(jax.random.key(0), network.shapes))
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


@pytest.mark.parametrize(
    "network", ["conv_adapted", pytest.param("lenet5", marks=pytest.mark.long)]
)
def test_convolutional_networks_run_on_digits(network, invoke, tmp_path):
    arguments = ("--dataset=digits", "--examples=20", "--iterations=2", "--ratios=2", "--noflow")
    folder = tmp_path / network
    status, out, err = invoke(*arguments, f"--network={network}", f"--output_dir={folder}")
    assert status == 0, err
    assert "digits enlarged to 28x28" in out
    with np.load(folder / "initial_params.npz") as params:
        assert params["conv_2.weight"].shape == (16, 6, 5, 5)
        assert ("conv_2.bias" in params.files) == (network == "lenet5")


def test_a_saved_run_is_drawn_and_tabulated_again(finished, capsys):
    folder, out = finished
    table = [line for line in out.splitlines() if line.lstrip().startswith("η")]
    for name in ("figure.png", "figure.pdf", "summary.json"):
        (folder / name).unlink()
    assert show.main([str(folder)]) == 0
    again = capsys.readouterr().out
    assert [line for line in again.splitlines() if line.lstrip().startswith("η")] == table
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "figure.pdf").read_bytes().startswith(b"%PDF")


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


def test_an_interrupted_run_keeps_what_it_has(invoke, tmp_path, monkeypatch):
    segments = gf_jax.descent_segments

    def interrupted(*arguments, **options):
        for number, part in enumerate(segments(*arguments, **options)):
            if number == 2:
                raise KeyboardInterrupt
            yield part

    monkeypatch.setattr(gf_jax, "descent_segments", interrupted)
    folder = tmp_path / "short"
    status, out, _ = invoke(*SMALL, "--ratios=2", "--segments=4", f"--output_dir={folder}")
    assert status == 130
    assert "interrupted" in out
    assert store.read_run(folder).iterations.tolist() == list(range(7))


def test_the_default_directory_is_new_every_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [store.create(None, "lenet5") for _ in range(3)]
    assert len(set(folders)) == 3
    assert all(folder.is_dir() and folder.parent.name == "runs" for folder in folders)


MISTAKES = [
    ("--ratios=2,0", "--ratios: got 0"),
    ("--ratios=2,-5", "--ratios: got -5"),
    ("--ratios=2,2", "--ratios: 2 is given more than once"),
    ("--ratios=2,x", "accepted are integers separated by commas"),
    ("--ratios=2.5", "accepted are integers separated by commas"),
    ("--step_size=-0.1", "--step_size: got -0.1"),
    ("--step_size=0", "--step_size: got 0.0"),
    ("--step_size=nan", "--step_size: got nan"),
    ("--step_size=small", "--step_size=small"),
    ("--iterations=0", "--iterations: got 0"),
    ("--iterations=1e3", "--iterations=1e3"),
    ("--snapshots=13", "--snapshots: got 13; accepted is 1 to the number of iterations, 12"),
    ("--snapshots=0", "--snapshots: got 0"),
    ("--segments=5", "--segments: got 5"),
    ("--network=resnet", "fully_connected|conv_adapted|lenet5"),
    ("--network=lenet5 --widths=", "--widths: the network lenet5 has its own"),
    ("--network=lenet5", "--widths: the network lenet5 has its own"),
    ("--widths=5,0", "--widths=5,0: accepted are positive integers"),
    ("--activation=tanh", "linear|relu|leaky_relu"),
    ("--init_scale=0", "--init_scale=0.0"),
    ("--init_scale=inf", "--init_scale=inf"),
    ("--seed=-1", "--seed=-1"),
    ("--dataset=cifar", "auto|mnist|digits"),
    ("--examples=0", "--examples=0"),
    ("--examples=5000", "--examples=5000: scikit-learn's digits data set holds 1797"),
    ("--data_dir=/nowhere", "--data_dir: holds MNIST files, but --dataset=digits"),
    ("--dataset=mnist --data_dir=/nowhere", "--data_dir=/nowhere: no such folder"),
    ("--initial_params=/nowhere.npz", "--initial_params=/nowhere.npz: not readable"),
    ("--initial_params=/nowhere.npz --seed=1", "--seed: has no effect"),
    ("--output_dir=/dev/null/run", "--output_dir=/dev/null/run: cannot be written"),
    ("--output_dir=/proc/run", "--output_dir=/proc/run: cannot be written"),
    ("--step_sizes=0.1,0.03", "--step_sizes=0.1,0.03: the largest, 0.1, is 3.33333 times 0.03"),
    ("--step_sizes=0.1,-1", "--step_sizes=0.1,-1: accepted are positive finite numbers"),
    ("--step_sizes=0.1,0.1", "--step_sizes=0.1,0.1: give every step size once"),
    ("--step_sizes=", "--step_sizes=: accepted are positive finite numbers"),
    ("--step_sizes=0.1,0.01", "--step_size: is implied by --step_sizes"),
    ("--step_sizes=a", "accepted are numbers separated by commas, such as 0.1"),
    ("--arithmetic=half", "compensated|float32|float64|tf32"),
    ("--arithmetic=tf32", "--arithmetic: tf32 products exist on GPUs only"),
    ("--experiment=paint", "paper|rounding|predict|large_steps"),
    ("--experiment=rounding --arithmetic=float32", "--arithmetic: has no effect on --experiment"),
    ("--experiment=predict --flow", "--flow: has no effect on --experiment=predict"),
    ("--experiment=large_steps --ratios=2", "--ratios: has no effect on --experiment=large_steps"),
    ("--flow=maybe", "flow"),
    ("--ratio=2", "ratio"),
    ("extra", "extra: not a flag"),
]


@pytest.mark.parametrize(("flag", "message"), MISTAKES)
def test_a_mistake_gets_one_line_and_leaves_nothing(flag, message, invoke, tmp_path):
    target = tmp_path / "out"
    status, out, err = invoke(*SMALL, f"--output_dir={target}", *flag.split())
    assert status == 2
    assert out == ""
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not target.exists()


def weights(**changes):
    shapes = gf_jax.fully_connected((64, 6, 10)).shapes
    arrays = {f"{layer}.weight": np.ones(ks["weight"], np.float32) for layer, ks in shapes.items()}
    return {name: array for name, array in (arrays | changes).items() if array is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dense_2.weight": None}, "array dense_2.weight is missing"),
        ({"dense_2.weight": np.ones((6, 10))}, "shape (6, 10); accepted is (10, 6)"),
        ({"dense_1.bias": np.ones(6)}, "array dense_1.bias is not a parameter"),
        ({"dense_2.weight": np.ones((10, 6), int)}, "dtype int64"),
        ({"dense_2.weight": np.full((10, 6), np.nan)}, "not finite"),
        ({"dense_2.weight": np.full((10, 6), 1e300)}, "not finite"),
        ({"dense_2.weight": np.array([[None] * 6] * 10)}, "not readable"),  # would be unpickled
    ],
)
def test_bad_weights_files(changes, message, invoke, tmp_path):
    path = tmp_path / "weights.npz"
    np.savez(path, **weights(**changes))
    target = tmp_path / "out"
    status, _, err = invoke(*SMALL, f"--initial_params={path}", f"--output_dir={target}")
    assert (status, err.count("\n")) == (2, 1)
    assert f"--initial_params={path}: " in err
    assert message in err
    assert not target.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no zip", b"\x93NUMPY", b"text"])
def test_files_that_are_no_weights(content, invoke, tmp_path):
    path = tmp_path / "weights.npz"
    path.write_bytes(content)
    status, _, err = invoke(*SMALL, f"--initial_params={path}", f"--output_dir={tmp_path / 'o'}")
    assert (status, err.count("\n")) == (2, 1)
    assert "not readable" in err


def test_a_single_array_is_no_weights_file(invoke, tmp_path):
    path = tmp_path / "weights.npz"
    with path.open("wb") as file:
        np.save(file, np.ones(3))
    status, _, err = invoke(*SMALL, f"--initial_params={path}", f"--output_dir={tmp_path / 'o'}")
    assert (status, err.count("\n")) == (2, 1)
    assert "a single array" in err


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


@pytest.mark.parametrize("damage", ["missing", "truncated", "newer", "no object", "none"])
def test_showing_what_is_not_a_run(damage, finished, capsys):
    folder, _ = finished
    path = folder / "metrics.npz"
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:300])
    elif damage == "newer":
        with np.load(path) as saved:
            arrays = dict(saved) | {"format": np.array(files.FORMAT + 1)}
        np.savez(path, **arrays)
    elif damage == "no object":
        (folder / "configuration.json").write_text("[1, 2]")
    arguments = [] if damage == "none" else [str(folder)]
    assert show.main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_the_command_itself(tmp_path):
    """As a user calls it: own process, nothing but the flags."""
    command = [sys.executable, "-m", "experiments.main", *SMALL]
    environment = os.environ | {"PYTHONWARNINGS": "error"}
    options = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True}
    done = subprocess.run([*command, f"--output_dir={tmp_path / 'a'}"], check=False, **options)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    wrong = subprocess.run([*command, "--ratios=0"], check=False, **options)
    assert wrong.returncode == 2
    assert wrong.stderr == "error: --ratios: got 0; accepted are positive integers\n"
    options["env"] = environment | {"JAX_PLATFORMS": "abacus"}
    elsewhere = subprocess.run(command, check=False, **options)
    assert elsewhere.returncode == 2
    assert "abacus" in elsewhere.stderr
    assert elsewhere.stderr.count("\n") == 1
