"""Runs past the edge of stability and their central flows, from the command line."""

import json

import numpy as np
import pytest

from experiments.process.mistakes import EXIT_DIVERGED
from experiments.studies.edge import averages
from gf_jax.descent.schedule import Schedule
from tests.conftest import check_page

SMALL = ("--experiment=edge", "--dataset=digits", "--examples=60", "--widths=6", "--window=10")
SHORT = (*SMALL, "--iterations=40")


@pytest.mark.long
def test_past_the_edge(invoke, tmp_path):
    folder = tmp_path / "edge"
    arguments = ("--iterations=300", "--step_sizes=0.24,0.08", f"--output_dir={folder}")
    status, out, _ = invoke(*SMALL, *arguments)
    assert status == 0
    check_page(folder)
    saved = np.load(folder / "edge.npz")
    summary = json.loads((folder / "summary.json").read_text())
    past, below = summary["runs"]
    # The sharpness of the larger step stays near its edge, and gradient flow's goes past it.
    assert past["past_edge"] is not None
    assert below["past_edge"] is None
    assert saved["flow_sharpness"][-1, 0] * 0.24 / 2 > 1.1
    np.testing.assert_allclose(past["of_edge"], 1, atol=0.1)
    np.testing.assert_allclose(past["predicted_of_edge"], 1, atol=1e-3)
    assert past["from_central"] < past["from_flow"] / 2
    assert below["from_central"] < below["from_flow"] / 2
    assert past["central_evaluations"] > past["evaluations"] > 300
    text = " ".join(out.split())
    assert "reaches its edge of stability at time" in text
    assert "With step size 0.08 descent stays below its edge" in text


def test_what_oscillates_averages_to_nothing():
    """Of f = x²/2 + y²/2 with step size 2 x alternates, and so does y."""
    start = {"w": np.array([0.25, -0.5], np.float32)}
    found = averages.average(
        lambda params: (params["w"] ** 2).sum() / 2,
        start,
        Schedule(2.0, (), 8, tuple(range(1, 9))),
        np.array([2, 4, 6]),
        2,
        np.tile(np.eye(2)[None], (3, 1, 1)),
        "compensated",
        None,
        lambda share: None,
    )
    np.testing.assert_array_equal(found.params["w"], np.zeros((3, 2)))
    square = np.outer(start["w"], start["w"])
    np.testing.assert_allclose(np.abs(found.covariance), np.abs(np.tile(square, (3, 1, 1))))
    np.testing.assert_allclose(found.variance, np.trace(square))
    np.testing.assert_allclose(found.average_loss, np.trace(square) / 2)
    np.testing.assert_allclose(found.average_squared_gradient, np.trace(square))


@pytest.mark.long
def test_a_start_past_the_edge_and_a_run_that_diverges(invoke, tmp_path):
    arguments = ("--step_sizes=1.2", f"--output_dir={tmp_path / 'far'}")
    status, out, _ = invoke(*SHORT, *arguments)
    assert status == EXIT_DIVERGED
    text = " ".join(out.split())
    assert "the central flow ends early: the start is past the edge of stability" in text
    assert "the run diverged" in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--activation=relu",), "--experiment=edge: the network has kinks"),
        (("--network=lenet5",), "accepted is --network=fully_connected --activation="),
        (("--optimizer=adam",), "--optimizer=adam: optimizer: it remembers several numbers"),
        (("--optimizer=adamw",), "--optimizer=adamw: optimizer: it remembers several"),
        (("--optimizer=rmsprop", "--step_sizes=0.16"), "--optimizer=rmsprop: the default step"),
        (("--window=5",), "--window=5: accepted is an even integer from 4 on"),
        (("--window=50",), "--iterations=40: fewer than --window=50"),
    ],
)
def test_what_is_refused(flags, message, invoke, tmp_path):
    given = [flag for flag in SHORT if not (flag.startswith("--w") and "--network=lenet5" in flags)]
    given = [flag for flag in given if flag.split("=")[0] not in [f.split("=")[0] for f in flags]]
    status, _, err = invoke(*given, *flags, f"--output_dir={tmp_path / 'none'}")
    assert status == 2
    assert message in " ".join(err.split())
