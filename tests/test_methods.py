"""Momentum and batches, as a user of the command line meets them."""

import contextlib
import io
import json

import jax
import numpy as np
import optax
import pytest
from absl.testing import flagsaver

import gf_jax
from experiments import main, show
from experiments.cli import command_line
from experiments.optimizers.orders import network
from experiments.problems import data
from experiments.runs import store
from gf_jax.flow.limit_flow import limit_in_words
from gf_jax.optimizers.method import Method
from gf_jax.optimizers.named import NAMED, named
from gf_jax.study import drawing
from tests.conftest import WITH_FLOW


def problem(order=slice(None)):
    """What WITH_FLOW studies: objective and start, of examples in some order."""
    digits = data.load("digits", None, 60)
    rows = gf_jax.problems.row_space(digits.images.reshape(60, 64)[order])
    shapes = gf_jax.problems.fully_connected((64, 6, 10)).shapes
    start = rows.reduce(gf_jax.problems.xavier_uniform(jax.random.key(0), shapes))
    network = gf_jax.problems.fully_connected((len(rows.basis), 6, 10))
    return gf_jax.problems.classification(network, rows.inputs, digits.labels[order]), start


MOMENTUM = ("--momentum=0.5", "--nesterov", "--ratios=4")


@pytest.fixture(scope="module")
def made(tmp_path_factory, flag_definitions):
    """A run with momentum: its folder and what was printed."""
    folder = tmp_path_factory.mktemp("momentum") / "run"
    with flagsaver.flagsaver(), contextlib.redirect_stdout(io.StringIO()) as out:
        arguments = ("main", *WITH_FLOW, *MOMENTUM, f"--output_dir={folder}")
        assert main.main(command_line.parse_flags([*arguments])) == 0
    return folder, out.getvalue()


@pytest.mark.oldest
def test_a_run_with_momentum(made, capsys):
    momentum_run, out = made
    saved = store.read_run(momentum_run)
    assert saved.method == Method(0.5, nesterov=True)
    with np.load(momentum_run / "metrics.npz") as metrics:
        np.testing.assert_allclose(metrics["time"], np.arange(13) * 0.1)  # 0.05 / (1 - 0.5)
    objective, start = problem()
    run = gf_jax.gradient_descent(
        *(objective.loss, start),
        step_size=0.05,
        ratios=(4,),
        iterations=12,
        optimizer=gf_jax.nesterov(0.5),
    )
    jax.tree.map(np.testing.assert_array_equal, saved.metrics, run.metrics)
    # At other times than these the flow would be far away: it travels 1.3 in 1.2.
    reference = saved.reference
    assert reference.distance_to_flow.max() < 0.15
    np.testing.assert_allclose(reference.order[-1], 1, atol=0.1)
    # Step size times largest curvature is near one, so that the next order is large.
    assert np.abs(reference.predicted_to_flow / reference.distance_to_flow - 1)[6:].max() < 0.2
    summary = json.loads((momentum_run / "summary.json").read_text())
    assert (summary["momentum"], summary["nesterov"], summary["batch_size"]) == (0.5, True, 0)
    assert summary["time"] == pytest.approx(1.2)
    words = "Nesterov momentum β = 0.5"
    assert words in summary["network"]
    assert f"descent with step size 0.05, {words}, stays" in summary["flow"]["verdict"][0]
    configuration = json.loads((momentum_run / "configuration.json").read_text())["configuration"]
    assert (configuration["momentum"], configuration["nesterov"]) == (0.5, True)

    table = [line for line in out.splitlines() if line.lstrip().startswith("η")]
    assert show.main([str(momentum_run)]) == 0
    again = capsys.readouterr().out.splitlines()
    assert [line for line in again if line.lstrip().startswith("η")] == table
    figure = drawing.draw(saved)
    assert words in figure.get_suptitle()
    assert all("step size / (1 - 0.5)" in axes.get_xlabel() for axes in figure.axes)


@pytest.mark.parametrize("name", ["momentum", "nesterov", "batch_size"])
def test_a_saved_method_that_is_none_is_refused(name, made, capsys, tmp_path):
    momentum_run, _ = made
    for wrong in (np.float64(-3), np.array("x"), np.arange(2)):
        with np.load(momentum_run / "metrics.npz") as saved:
            arrays = {**saved, name: wrong}
        for path in momentum_run.iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        np.savez(tmp_path / "metrics.npz", **arrays)
        status = show.main([str(tmp_path)])
        if name == "nesterov" and wrong.shape == () and wrong.dtype.kind == "f":
            continue  # any number is true or false
        assert status == 2
        assert "holds no run that can be read" in capsys.readouterr().err


def test_a_run_in_batches(made, invoke, tmp_path):
    folder = tmp_path / "run"
    flags = ("--momentum=0.5", "--batch_size=20", "--batch_seed=3", "--ratios=4")
    status, out, err = invoke(*WITH_FLOW, *flags, f"--output_dir={folder}")
    assert status == 0, err
    assert "60 gradient evaluations of batches and 25 of all examples" in out
    saved = store.read_run(folder)
    assert saved.method == Method(0.5, batch_size=20)
    objective, start = problem(np.random.default_rng(3).permutation(60))
    run = gf_jax.gradient_descent(
        *(objective.loss, start),
        step_size=0.05,
        ratios=(4,),
        iterations=12,
        optimizer=gf_jax.heavy_ball(0.5),
        batches=objective.batches(20),
    )
    jax.tree.map(np.testing.assert_array_equal, saved.metrics, run.metrics)
    reference = saved.reference
    # Three batches make an epoch, and the step size is large: within what was told, but for the
    # first iterations.
    off = np.abs(reference.predicted_to_flow - reference.distance_to_flow)
    assert (off <= reference.predicted_error + reference.resolution)[3:].all()
    assert np.isfinite(reference.predicted_to_base).all()
    # The flow is that of the full objective, here of the examples in their own order.
    of_all = store.read_run(made[0]).reference
    np.testing.assert_allclose(reference.loss, of_all.loss, rtol=1e-6)
    verdict = " ".join(json.loads((folder / "summary.json").read_text())["flow"]["verdict"])
    assert "batches of 20, " in verdict
    # What is known no better is not counted among the predicted gaps.
    assert "Predicted gaps" not in verdict
    assert "of 2 of 2 runs are known to no better than ten percent" in " ".join(out.split())


@pytest.mark.long
def test_no_prediction_of_momentum_with_kinks(invoke, tmp_path):
    folder = tmp_path / "run"
    flags = ("--momentum=0.5", "--activation=relu", "--ratios=2", f"--output_dir={folder}")
    status, out, err = invoke(*WITH_FLOW, *flags)
    assert status == 0, err
    assert "No gaps are predicted" in " ".join(out.split())
    reference = store.read_run(folder).reference
    assert np.isnan(reference.predicted_to_base).all()
    assert np.isfinite(reference.distance_to_flow).all()


def test_predictions_of_momentum(made, invoke, tmp_path):
    """Those that stand beside the run."""
    folder = tmp_path / "predict"
    flags = ("--experiment=predict", *MOMENTUM, f"--output_dir={folder}")
    status, out, err = invoke(*WITH_FLOW, *flags)
    assert status == 0, err
    assert "Nesterov momentum β = 0.5" in " ".join(out.split())
    beside = store.read_run(made[0]).reference
    with np.load(folder / "prediction.npz") as saved:
        np.testing.assert_allclose(saved["times"], np.arange(1, 13) * 0.1)
        # The same solve of the same program.
        np.testing.assert_allclose(saved["to_flow"], beside.predicted_to_flow, rtol=1e-9)
        np.testing.assert_allclose(saved["to_base"], beside.predicted_to_base, rtol=1e-9)


def test_a_run_with_adam(invoke, tmp_path):
    """Against its own limit, whose averages last as long in time at every step size."""
    folder = tmp_path / "run"
    flags = ("--optimizer=adam", "--ratios=4", "--step_size=0.005", f"--output_dir={folder}")
    status, out, err = invoke(*WITH_FLOW, *flags)
    assert status == 0, err
    assert "Against the continuous limit of Adam" in out
    saved = store.read_run(folder)
    assert saved.method == Method(optimizer_name="Adam")
    objective, start = problem()
    run = gf_jax.gradient_descent(
        *(objective.loss, start),
        step_size=0.005,
        ratios=(4,),
        iterations=12,
        optimizer=lambda h: optax.adam(h, 1 - 0.1 * h / 0.005, 1 - 0.001 * h / 0.005),
    )
    np.testing.assert_allclose(saved.metrics.loss, run.metrics.loss, rtol=1e-6)
    reference = saved.reference
    off = np.abs(reference.predicted_to_flow - reference.distance_to_flow)
    assert (off <= reference.predicted_error + reference.resolution)[1:].all()


@pytest.mark.long
def test_predictions_and_rounding_with_an_optimizer(invoke, tmp_path):
    flags = (*WITH_FLOW, "--optimizer=adagrad", "--ratios=2", "--step_size=0.005")
    for experiment in ("predict", "rounding"):
        folder = tmp_path / experiment
        status, _, err = invoke(*flags, f"--experiment={experiment}", f"--output_dir={folder}")
        assert status == 0, err
        assert "AdaGrad" in json.loads((folder / "summary.json").read_text())["network"]


@pytest.mark.parametrize("name", NAMED)
def test_optimizers_by_name_have_a_limit(name):
    """They have a limit, which is tried; so a new one is a function and a line."""
    f, start = network()
    assert limit_in_words(f, start, np.array([1.0]), 0.0025, named(name, 0.01))


def test_an_optimizer_has_its_own_momentum(invoke):
    status, _, err = invoke(*WITH_FLOW, "--optimizer=adam", "--momentum=0.5")
    assert status == 2
    assert "--momentum=0.5: is of descent, and --optimizer=adam has its own" in err


@pytest.mark.long
def test_rounding_with_momentum(invoke, tmp_path):
    folder = tmp_path / "rounding"
    flags = ("--experiment=rounding", "--momentum=0.5", "--noflow", f"--output_dir={folder}")
    assert invoke(*WITH_FLOW, *flags)[0] == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["table"][-1]["time"] == pytest.approx(1.2)
    assert "β = 0.5" in summary["network"]
    gaps = summary["table"][0]["gaps"]
    np.testing.assert_allclose(gaps["compensated"][1:], gaps["float64"][1:], rtol=1e-4)
