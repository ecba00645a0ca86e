"""Deep linear networks as a user of the command line meets them."""

import json

import numpy as np
import pytest

from experiments.problems import data, regression
from experiments.process.mistakes import EXIT_DIVERGED, UsageError
from experiments.studies.deep_linear import study as deep_linear
from tests.conftest import check_page

SMALL = (
    "--experiment=deep_linear",
    "--dataset=digits",
    "--examples=80",
    "--seeds=8",
    "--init_scale=0.1",
    "--snapshots=50",
)


def test_whitened_inputs(digits):
    """Mean 0, covariance 1, and the leading directions: a projection of the images on them."""
    images = digits.images.reshape(len(digits.images), -1)
    inputs = regression.whiten(images, 10)
    assert inputs.dtype == np.float64
    np.testing.assert_allclose(inputs.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(inputs.T @ inputs / len(inputs), np.eye(10), atol=1e-12)
    # The data are known up to the rest of the variance, which is that of no other projection.
    variances = np.linalg.eigvalsh(np.cov(images.T.astype(np.float64), bias=True))[::-1]
    centred = images - images.mean(axis=0, dtype=np.float64)
    left = centred - inputs @ (inputs.T @ centred) / len(inputs)
    np.testing.assert_allclose(np.square(left).sum() / len(left), variances[10:].sum(), rtol=1e-6)
    # Copies of three images span two directions.
    assert regression.whiten(images[[0, 1, 2, 0, 1, 2]], 10).shape == (6, 2)


def test_the_loss_is_a_distance_from_the_cross_covariance(digits, generator):
    for problem in (regression.parity(digits), regression.synthetic(3, 200, 50)):
        inputs, target, correlation = problem.inputs, problem.target, problem.cross_covariance
        w = generator.normal(size=inputs.shape[1])
        loss = 0.5 * np.square(inputs @ w - target).mean()
        least = 0.5 * (1 - problem.correlation**2)
        np.testing.assert_allclose(loss, 0.5 * np.square(w - correlation).sum() + least, rtol=1e-12)
        best = np.linalg.lstsq(inputs, target, rcond=None)[0]
        np.testing.assert_allclose(best, correlation, atol=1e-12)
        assert 0.5 < problem.correlation < 1


def test_parity_of_nothing_to_tell_apart(digits):
    twos = digits.labels == 2
    chosen = data.Dataset(digits.images[twos], digits.labels[twos], "twos", "", 0, 1)
    with pytest.raises(UsageError, match="there is nothing to tell apart"):
        regression.parity(chosen)


def test_arrival():
    """Interpolated on a logarithmic axis; never, from the start, and where a run diverges."""
    times = np.array([0.0, 1.0, 2.0, 4.0])
    decaying = np.exp(-3 * times)
    excess = np.stack([decaying, 0 * decaying, 1 + decaying, decaying], axis=1)
    excess[2:, 3] = np.nan
    found = deep_linear.arrival(times, excess, np.exp(-7.5))
    np.testing.assert_allclose(found, [2.5, 0, np.inf, np.inf], rtol=1e-12)


@pytest.mark.parametrize("depth", [2, pytest.param(3, marks=pytest.mark.long)])
def test_deep_linear(depth, invoke, tmp_path):
    folder = tmp_path / "deep"
    arguments = (*SMALL, f"--depths={depth}", "--iterations=200", f"--output_dir={folder}")
    status, out, err = invoke(*arguments)
    assert status == 0, err
    summary = json.loads((folder / "summary.json").read_text())
    assert [label[:9] for label in summary["data"]] == ["parity of", "synthetic"]
    assert "scikit-learn digits, 80 images" in summary["data"][0]
    for depth in summary["depths"]:
        with np.load(folder / f"depth_{depth['depth']}.npz") as file:
            saved = dict(file)
        times, steps = saved["times"], saved["step_sizes"]
        np.testing.assert_allclose(steps, [0.1, 0.05, 0.025])
        assert saved["arrival"].shape == (4, 2, 8)
        assert np.isfinite(saved["arrival"]).all()
        # Descent arrives with the flow, to first order in the step size: within a few steps.
        assert np.abs(saved["arrival"][1:] - saved["arrival"][0]).max() < 0.3
        assert saved["reduced_difference"].max() < 1e-7  # tolerance 1e-8 a step
        assert saved["unbalancedness"][0].max() < 1e-7
        # Half the step size, half the gap: the second order is a few percent.
        for name in ("gap", "unbalancedness"):
            np.testing.assert_allclose(
                saved[name][1:-1] / saved[name][2:], 2, rtol=0.15, err_msg=name
            )
        if depth["depth"] == 2:
            # The opposite start stays opposite: s' = -2 s (size - s) from s = -0.1.
            size = regression.parity(data.load("digits", None, 80)).correlation
            s = size / (1 - (size / 0.1 + 1) * np.exp(2 * size * times))
            np.testing.assert_allclose(saved["opposite"][:, 0, 0], 0.5 * (s - size) ** 2, atol=1e-6)
        assert all(run["opposite"] > 0.1 for part in depth["data"] for run in part["runs"])
        orders = [
            part[name] for part in depth["data"] for name in ("gap_order", "unbalancedness_order")
        ]
        np.testing.assert_allclose(orders, 1, atol=0.1)
    text = " ".join(out.split())
    assert "Verdict: every one of 8 random balanced starts" in text
    assert "falls to zero instead" in text
    assert (folder / "figure.png").exists()
    check_page(folder)
    assert (folder / "figure.pdf").exists()


@pytest.mark.long
def test_too_large_steps_and_too_little_time(invoke, tmp_path):
    folder = tmp_path / "wild"
    arguments = (*SMALL, "--depths=2", "--step_sizes=50,0.5", "--iterations=50", "--snapshots=5")
    status, out, err = invoke(*arguments[:-1], f"--output_dir={folder}")
    assert status == EXIT_DIVERGED, err
    summary = json.loads((folder / "summary.json").read_text())
    flow, wild, tame = summary["depths"][0]["data"][0]["runs"]
    assert wild["reached"] == 0
    assert wild["gap"] == wild["arrival"] == [None, None, None]
    assert flow["reached"] == tame["reached"] == 1
    assert "none (none to none)" in out
    assert "Verdict: at least 0.0% of 8" in " ".join(out.split())


@pytest.mark.long
def test_rounding_and_an_interrupt(invoke, tmp_path, monkeypatch):
    """Complete depths are kept; after a long time rounding carries the opposite start away."""
    measure, folder = deep_linear.measure, tmp_path / "some"

    def interrupted(workplace, depth):
        if depth == 3:
            raise KeyboardInterrupt
        return measure(workplace, depth)

    monkeypatch.setattr(deep_linear, "measure", interrupted)
    arguments = (*SMALL, "--step_sizes=0.2", "--iterations=600", "--seeds=1")
    status, out, _ = invoke(*arguments, "--depths=2,3", f"--output_dir={folder}")
    text = " ".join(out.split())
    assert status == 130
    assert "interrupted: 1 of 2 depths are complete" in text
    assert "is carried away from it by rounding at depth 2" in text
    with np.load(folder / "depth_2.npz") as saved:
        opposite, times = saved["opposite"], saved["times"]
    # Rounding, 1e-16, grows as exp(t) there: it takes 37 for it to matter.
    assert (opposite[times <= 20] > 0.1).all()
    assert (opposite[-1] < 1e-3).all()
    assert (folder / "summary.json").exists()
    status, out, _ = invoke(*arguments, "--depths=3", f"--output_dir={tmp_path / 'none'}")
    assert status == 130
    assert not (tmp_path / "none" / "summary.json").exists()


def test_mistakes(invoke, tmp_path):
    folder = f"--output_dir={tmp_path / 'never'}"
    for arguments, words in (
        (("--examples=1",), "there is nothing to tell apart"),
        (("--widths=3,3",), "accepted is one width"),
        (("--depths=1",), "accepted are integers from 2"),
    ):
        status, _, err = invoke(*SMALL, *arguments, folder)
        assert status == 2
        assert words in err
        assert len(err.splitlines()) == 1
    assert not (tmp_path / "never").exists()
