"""Flow, predictions, rounding and large steps, as a user of the command line meets them."""

import json

import jax
import numpy as np
import optax
import pytest

from experiments import show
from experiments.process.mistakes import EXIT_DIVERGED
from experiments.runs import store
from experiments.runs.options import descent
from experiments.studies.large_steps.records import DESCRIPTIONS
from gf_jax.flow import prediction
from gf_jax.optimizers.named import OfBase
from tests.conftest import WITH_FLOW, check_page


def test_an_interrupted_flow_keeps_the_run(invoke, tmp_path, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(prediction, "predict", interrupted)
    folder = tmp_path / "short"
    status, out, _ = invoke(*WITH_FLOW, "--ratios=2", f"--output_dir={folder}")
    assert status == 130
    assert "interrupted" in out
    saved = store.read_run(folder)
    assert saved.iterations[-1] == 12
    assert saved.reference is None
    assert (folder / "figure.png").exists()


def test_the_flow_beside_a_run(finished):
    folder, out = finished
    reference = store.read_run(folder).reference
    assert reference.measured.all()
    # Twelve steps of size 0.05, nine tenths of the edge of stability.
    np.testing.assert_allclose(reference.order[-1], 1, atol=0.05)
    assert np.abs(reference.predicted_to_flow / reference.distance_to_flow - 1).max() < 0.3
    summary = json.loads((folder / "summary.json").read_text())
    verdict = " ".join(summary["flow"]["verdict"])
    assert "Verdict: descent with step size 0.05 stays" in verdict
    assert "Predicted gaps are within" in verdict
    assert "Verdict: descent" in " ".join(out.split())
    assert summary["flow"]["prediction_evaluations"] == reference.prediction_evaluations > 0


def test_without_weights_all_numbers_are_there(finished, invoke, tmp_path):
    folder = tmp_path / "numbers"
    status, _, err = invoke(*WITH_FLOW, "--ratios=2,3", "--noweights", f"--output_dir={folder}")
    assert status == 0, err
    kept, told = store.read_run(folder), store.read_run(finished[0])
    jax.tree.map(np.testing.assert_array_equal, vars(kept.reference), vars(told.reference))
    np.testing.assert_array_equal(kept.accuracy, told.accuracy)
    for name in ("snapshots", "flow"):
        with np.load(folder / f"{name}.npz") as numbers, np.load(finished[0] / f"{name}.npz") as a:
            weights = {array for array in a.files if array.startswith("params.")}
            assert weights
            assert set(numbers.files) == set(a.files) - weights
    assert show.main([str(folder)]) == 0


def test_a_run_without_flow(invoke, tmp_path):
    folder = tmp_path / "plain"
    arguments = ("--noflow", "--arithmetic=float32", f"--output_dir={folder}")
    status, out, _ = invoke(*WITH_FLOW, *arguments)
    assert status == 0
    assert "Verdict" not in out
    assert "float32 arithmetic" in out
    assert not (folder / "flow.npz").exists()
    assert store.read_run(folder).reference is None


@pytest.mark.parametrize(
    "experiment", ["paper", pytest.param("rounding", marks=pytest.mark.long), "large_steps"]
)
def test_nothing_to_compare_where_every_run_diverges(experiment, invoke, tmp_path):
    sizes = ("--step_sizes=9000,4500", "--widths=6,6", "--iterations=40")
    arguments = (*WITH_FLOW[:2], *sizes, "--snapshots=1", f"--experiment={experiment}")
    folder = tmp_path / "wild"
    status, out, err = invoke(*arguments, f"--output_dir={folder}")
    assert status == EXIT_DIVERGED, err
    assert "diverged" in out
    assert (folder / ("summary.json" if experiment != "large_steps" else "metrics.npz")).exists()


def test_rounding(invoke, tmp_path):
    folder = tmp_path / "rounding"
    status, out, _ = invoke(*WITH_FLOW, "--experiment=rounding", f"--output_dir={folder}")
    assert status == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert set(summary["runs"]) == {"compensated", "float32", "float64"}
    assert [row["iteration"] for row in summary["table"]] == [2, 12]  # float64 stops earlier
    gaps = summary["table"][0]["gaps"]
    # Two iterations of gradients rounded to float32.
    np.testing.assert_allclose(gaps["compensated"][1:], gaps["float64"][1:], rtol=1e-4)
    np.testing.assert_allclose(gaps["predicted"][1:], gaps["float64"][1:], rtol=0.3)
    for name in ("compensated", "float32", "float64"):
        with np.load(folder / f"metrics_{name}.npz") as saved:
            np.testing.assert_array_equal(
                saved["distance_to_base"][2], np.array(gaps[name], saved["loss"].dtype)
            )
    assert "float64 runs to iteration 2 only" in out
    assert (folder / "figure.png").exists()
    check_page(folder)


@pytest.mark.parametrize("activation", ["linear", "relu"])
def test_predict(activation, finished, invoke, tmp_path):
    """The same numbers as beside a run, and for any list of step sizes."""
    folder = tmp_path / "predict"
    arguments = (*WITH_FLOW[:-1], "--experiment=predict", f"--activation={activation}")
    step_sizes = "0.05,0.025,0.01"
    status, out, _ = invoke(*arguments, f"--step_sizes={step_sizes}", f"--output_dir={folder}")
    assert status == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert [run["step_size"] for run in summary["runs"]] == [0.05, 0.025, 0.01]
    assert ("has kinks" in out) == (activation == "relu")
    with np.load(folder / "prediction.npz") as saved:
        assert saved["to_base"].shape == saved["loss_difference"].shape == (12, 3)
        if activation == "linear":
            reference = store.read_run(finished[0]).reference
            np.testing.assert_allclose(
                saved["to_base"][:, 1], reference.predicted_to_base[:, 1], rtol=1e-6
            )
            expected = reference.predicted_loss[:, 1] - reference.loss
            np.testing.assert_allclose(saved["loss_difference"][:, 1], expected, rtol=1e-3)


def test_predict_needs_no_common_times(invoke, tmp_path):
    arguments = (*WITH_FLOW[:-1], "--experiment=predict", "--step_sizes=0.05,0.03")
    assert invoke(*arguments, f"--output_dir={tmp_path / 'any'}")[0] == 0
    status, _, err = invoke(*arguments, "--activation=relu", f"--output_dir={tmp_path / 'kinks'}")
    assert status == 2
    assert "accepted are step sizes that divide the largest" in err
    assert not (tmp_path / "kinks").exists()


@pytest.mark.long
def test_large_steps(invoke, tmp_path):
    folder = tmp_path / "large"
    arguments = (*WITH_FLOW[:-1], "--experiment=large_steps", "--step_size=0.01", "--iterations=96")
    status, _, err = invoke(*arguments, f"--output_dir={folder}")
    assert status == 0, err
    summary = json.loads((folder / "summary.json").read_text())
    step_sizes = np.array([run["step_size"] for run in summary["runs"]])
    np.testing.assert_allclose(step_sizes[:-1] / step_sizes[1:], 2)
    assert step_sizes[-1] == pytest.approx(0.01)
    assert step_sizes[1] < 2 * summary["edge"] <= step_sizes[0]
    distances = np.array([[run[name] for name in DESCRIPTIONS] for run in summary["runs"][-2:]])
    slopes = np.log2(distances[0] / distances[1])
    # Step sizes 0.02 and 0.01, a fifth of the edge and less.
    np.testing.assert_allclose(slopes, [1, 2, 2], atol=0.2)
    # Below the edge the central flow is the modified flow, and past it at the start there is none.
    past, *_, first = summary["runs"]
    assert past["from_central_flow"] is None
    assert first["from_central_flow"] < first["from_flow"] / 10
    description = json.loads((folder / "configuration.json").read_text())
    assert len(description["configuration"]["step_sizes"]) == len(step_sizes)
    assert (folder / "figure.png").exists()
    check_page(folder)


@pytest.mark.long
@pytest.mark.parametrize("method", ["--momentum=0.5", "--optimizer=adam"])
def test_large_steps_of_optimizers(method, invoke, tmp_path):
    """Doubled until past the edge along their limit, and described as plain descent is."""
    folder = tmp_path / "large"
    arguments = (*WITH_FLOW[:-1], "--experiment=large_steps", "--step_size=0.002", method)
    status, out, err = invoke(*arguments, "--iterations=4096", f"--output_dir={folder}")
    assert status == 0, err
    summary = json.loads((folder / "summary.json").read_text())
    step_sizes = np.array([run["step_size"] for run in summary["runs"]])
    of_edge = np.array([run["of_edge"] for run in summary["runs"]])
    assert 2 * summary["edge"] <= step_sizes[0]
    np.testing.assert_array_equal(of_edge > 1, step_sizes > summary["edge"])
    # Half the step size is half as near the edge, or with decays that last as long a quarter.
    power = 1 if "momentum" in method else 2
    np.testing.assert_allclose(of_edge[-2] / of_edge[-1], 2**power, rtol=0.05)
    distances = np.array([[run[name] for name in DESCRIPTIONS] for run in summary["runs"][-2:]])
    slopes = np.log2(distances[0] / distances[1])
    np.testing.assert_allclose(slopes, [1, 2, 2], atol=0.25)
    assert "edge of stability along the limit" in out
    assert (folder / "figure.png").exists()
    check_page(folder)


@pytest.mark.parametrize("method", ["--momentum=0.5", "--optimizer=adam"])
def test_large_steps_of_optimizers_on_kinks(method, invoke, tmp_path):
    folder = tmp_path / "none"
    arguments = (*WITH_FLOW, "--experiment=large_steps", "--activation=relu", method)
    status, out, err = invoke(*arguments, f"--output_dir={folder}")
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {method}: its modified flow is known of losses without kinks")
    assert not folder.exists()


@pytest.mark.long
def test_large_steps_of_what_has_no_limit(invoke, tmp_path, monkeypatch):
    """One line, before anything is run, and no folder."""
    sign = OfBase(lambda size, base: optax.sign_sgd(size), 1.0)
    monkeypatch.setattr(descent, "named", lambda name, base: sign)
    folder = tmp_path / "none"
    arguments = (*WITH_FLOW[:-1], "--experiment=large_steps", "--optimizer=adam")
    status, _, err = invoke(*arguments, f"--output_dir={folder}")
    assert status == 2
    assert "--optimizer=adam: optimizer: its steps jump where an entry of the gradient" in err
    assert not folder.exists()


@pytest.mark.long
def test_large_steps_mark_what_diverges(invoke, tmp_path):
    folder = tmp_path / "large"
    arguments = (
        *WITH_FLOW[:-2],
        "--experiment=large_steps",
        "--widths=6,6",
        "--step_sizes=64,0.02",
    )
    status, out, _ = invoke(*arguments, "--iterations=4", f"--output_dir={folder}")
    assert status == EXIT_DIVERGED
    assert "diverged" in out
    wild, tame = json.loads((folder / "summary.json").read_text())["runs"]
    assert wild["from_flow"] is None
    assert tame["from_flow"] > 0
