"""Curvature, bounds and near_zero, as a user of the command line meets them."""

import json

import jax
import numpy as np
import pytest

import gf_jax
from experiments.problems import data
from experiments.process.mistakes import EXIT_DIVERGED
from experiments.studies import spectra
from tests.conftest import WITH_FLOW, check_page
from tests.test_curvature import dense_eigenvalues

TINY = (*WITH_FLOW[:3], "--widths=4", "--step_size=0.05", "--snapshots=3")


def loss_and_start():
    """The problem of these flags."""
    digits = data.load("digits", None, 60)
    network = gf_jax.problems.fully_connected((64, 4, 10))
    f = gf_jax.problems.classification(network, digits.images.reshape(60, 64), digits.labels).loss
    return f, gf_jax.problems.xavier_uniform(jax.random.key(0), network.shapes)


def read(folder):
    return json.loads((folder / "summary.json").read_text())


def test_snapshots_are_dense_at_first():
    schedule = spectra.sampled(gf_jax.Schedule(0.1, (), 1000, 10))
    assert schedule.snapshots == (1, 8, 27, 64, 125, 216, 343, 512, 729, 1000)
    assert spectra.sampled(gf_jax.Schedule(0.1, (), 3, 3)).snapshots == (1, 3)
    assert spectra.times_of(schedule)[[0, 1, -1]].tolist() == pytest.approx([0, 0.1, 100])


@pytest.mark.oldest
@pytest.mark.parametrize("along", ["descent", pytest.param("flow", marks=pytest.mark.long)])
def test_curvature(along, invoke, tmp_path):
    folder = tmp_path / "run"
    arguments = (*TINY, "--experiment=curvature", f"--along={along}")
    status, out, err = invoke(*arguments, f"--output_dir={folder}")
    assert status == 0, err
    assert "Verdict: λ_min lies between" in out
    with np.load(folder / "curvature.npz") as saved:
        assert saved["times"].tolist() == pytest.approx([0, 0.05, 0.2, 0.6])
        assert (saved["spectrum.theorem"] <= saved["spectrum.sharpened"]).all()
        assert (saved["spectrum.sharpened"] <= saved["spectrum.lambda_min"]).all()
        f, start = loss_and_start()
        exact = dense_eigenvalues(f, start)
        # Residuals are below 1e-4 of the largest; the values are better than that.
        for name, eigenvalue in (("lambda_min", exact[0]), ("lambda_max", exact[-1])):
            assert abs(saved[f"spectrum.{name}"][0] - eigenvalue) < 1e-4 * exact[-1]
        largest = np.maximum(-saved["spectrum.lambda_min"], 0)
        np.testing.assert_allclose(
            saved["integral"][-1], np.trapezoid(largest, saved["times"]), rtol=1e-12
        )
        point = read(folder)["points"][1]
        assert point["lambda_min"] == saved["spectrum.lambda_min"][1]
    assert (folder / "figure.png").exists()
    check_page(folder)


def test_curvature_along_descent_that_diverges(invoke, tmp_path):
    folder = tmp_path / "run"
    arguments = (*TINY[:-2], "--experiment=curvature", "--along=descent", "--step_size=1e30")
    status, out, err = invoke(*arguments, f"--output_dir={folder}")
    assert status == EXIT_DIVERGED, err
    assert "diverged" in out
    assert len(read(folder)["points"]) < 13


@pytest.mark.long
@pytest.mark.parametrize("activation", ["linear", "relu"])
def test_bounds(activation, invoke, tmp_path):
    folder = tmp_path / "run"
    arguments = (*TINY, "--experiment=bounds", f"--activation={activation}", "--epsilon=0.01")
    status, out, err = invoke(*arguments, f"--output_dir={folder}")
    assert status == 0, err
    summary = read(folder)
    with np.load(folder / "bounds.npz") as saved:
        assert saved["gap"][0] == saved["bound"][0] == 0
        assert (saved["bound"][1:] >= saved["gap"][1:]).all()
        # A single step is a tenth of the edge: the bound is close there.
        assert saved["bound"][1] < 2 * saved["gap"][1]
        np.testing.assert_allclose(saved["predicted"][1:], saved["gap"][1:], rtol=0.2)
        if activation == "linear":
            f, start = loss_and_start()
            run = gf_jax.gradient_descent(f, start, step_size=0.05, ratios=(), iterations=12)
            flow = gf_jax.gradient_flow(f, start, [0.6])
            last = jax.tree.map(lambda leaf: leaf[-1:, 0], run.snapshots)
            with jax.enable_x64(True):
                gap = gf_jax.distance(last, flow.params, stack_axes=1)
            np.testing.assert_allclose(saved["gap"][-1], gap[0], rtol=1e-6)
    answers = {answer["by"]: answer for answer in summary["answers"]}
    assert ("theorem" in answers) == (activation == "linear")
    assert ("The loss has kinks" in out) == (activation == "relu")
    sampled, measured = answers["theorem, sampled"], answers["measured"]
    assert 0 < sampled["step_size"] < measured["step_size"]
    assert measured["measured_gap"] <= 0.01
    if activation == "linear":
        assert 0 < answers["theorem"]["step_size"] < sampled["step_size"]
        # The prediction is within its own error of the largest step size that suffices.
        assert measured["measured_gap"] > 0.008
        assert answers["prediction"]["step_size"] == pytest.approx(measured["step_size"], rel=0.1)


def test_bounds_of_a_run_that_diverges(invoke, tmp_path):
    arguments = (*TINY[:-2], "--experiment=bounds", "--step_size=1e30")
    status, out, _ = invoke(*arguments, f"--output_dir={tmp_path / 'run'}")
    assert status == EXIT_DIVERGED
    assert "diverged; try a smaller one" in out


@pytest.mark.long
def test_interrupted_bounds_keep_the_gap(invoke, tmp_path, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(gf_jax.theory, "allowed_step_size", interrupted)
    folder = tmp_path / "run"
    status, out, _ = invoke(*TINY, "--experiment=bounds", f"--output_dir={folder}")
    assert status == 130
    assert "interrupted" in out
    with np.load(folder / "bounds.npz") as saved:
        assert saved["gap"][-1] > 0


def test_near_zero(invoke, tmp_path):
    folder = tmp_path / "run"
    arguments = (*WITH_FLOW[:2], "--experiment=near_zero", "--depths=2,3", "--widths=4")
    status, out, err = invoke(*arguments, f"--output_dir={folder}")
    assert status == 0, err
    shallow, deep = read(folder)["depths"]
    # Powers n - 2 of the scale; at scale 1/128 the next power is below a hundredth.
    assert shallow["slope"] == pytest.approx(0, abs=0.02)
    assert deep["slope"] == pytest.approx(1, abs=0.02)
    for entry in (shallow, deep):
        assert all(a <= b for a, b in zip(entry["bound"], entry["lambda_min"], strict=True))
        tubes = zip(entry["tube_bound"], entry["tube_lambda_min"], strict=True)
        assert all(a <= b for a, b in tubes)
        # The narrowest tube has no room left to differ from its middle.
        nearest, narrow = entry["lambda_min"][-1], entry["tube_lambda_min"][-1]
        assert narrow <= nearest + 1e-6
        assert narrow == pytest.approx(nearest, rel=0.3)
    f, start = loss_and_start()
    quarter = jax.tree.map(lambda leaf: leaf / 4, start)
    exact = dense_eigenvalues(f, quarter)
    assert shallow["lambda_min"][2] == pytest.approx(exact[0], abs=1e-4 * exact[-1])
    assert "3 layers" in out
