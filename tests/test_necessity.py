"""The saddle on which steps must be exponentially small."""

import json

import numpy as np
import pytest

from experiments.runs import progress
from experiments.studies.necessity import study as necessity
from tests.conftest import check_page


def test_closed_form():
    """Against plain powers, at a step size that leaves them digits enough."""
    times, step_sizes = np.array([[0.5], [2.0]]), np.array([0.1, 0.05])
    along_y = 1e-3 * (np.exp(times) - 1.1 ** (times / 0.1))
    along_x = np.exp(-times) - 0.9 ** (times / 0.1)
    found = [necessity.closed_form(name, times, step_sizes)[:, 0] for name in "xy"]
    np.testing.assert_allclose(found, [along_x[:, 0], along_y[:, 0]], rtol=1e-11)


def test_largest_step():
    """Gaps s t have largest steps epsilon/t; where they fall again, the past counts."""
    step_sizes, times = np.array([0.4, 0.2, 0.1]), np.array([0.1, 1.0, 2.0, 5.0, 20.0])
    gaps = times[:, None] * step_sizes
    found = necessity.largest_step(step_sizes, gaps, 0.5)
    # None where the gap is 0.04 at most, or 2 at least.
    np.testing.assert_allclose(found, [np.nan, np.nan, 0.25, 0.1, np.nan], rtol=1e-12)
    falling = np.concatenate([gaps[:3], 0 * gaps[:1]])
    np.testing.assert_allclose(necessity.largest_step(step_sizes, falling, 0.5)[-1], 0.25)


def test_necessity(invoke, tmp_path):
    folder = tmp_path / "saddle"
    status, out, err = invoke("--experiment=necessity", f"--output_dir={folder}")
    assert status == 0, err
    summary = json.loads((folder / "summary.json").read_text())
    with np.load(folder / "saddle.npz") as saved:
        times, step_sizes, gap = (saved[name] for name in ("times", "step_sizes", "gap"))
        known = gap >= 10 * saved["flow_error"][:, None]
        largest = saved["largest"]
    assert known.mean() == summary["known_gaps"] > 0.99
    assert step_sizes[-1] < 2 * 0.01 / (10 * 1e-3 * np.exp(10))  # the ladder reaches far enough
    # The closed form once more, in extended precision; the flow knows 1e-5 of the smallest gaps.
    t, s = times[:, None].astype(np.longdouble), step_sizes.astype(np.longdouble)
    exact = np.longdouble(1e-3) * (np.exp(t) - np.exp(t / s * np.log1p(s)))
    assert np.abs(gap[1] / exact - 1)[known[1]].max() < 1e-5
    assert summary["largest_error"] < 1e-5
    # Exponential along y: t times the largest step falls by e per time, once steps are small.
    late = times >= 8
    slope = np.polyfit(times[late], np.log(times * largest[1])[late], 1)[0]
    np.testing.assert_allclose(slope, -1, atol=2e-3)
    # Interpolated between step sizes that differ by two.
    last = summary["table"][-1]
    np.testing.assert_allclose(last["largest_step"]["y"], last["approximation"], rtol=1e-3)
    # Constant along x, after time 1: the gap there is s/2e to first order, within s/2 of it.
    assert np.ptp(largest[0][times >= 1]) == 0
    np.testing.assert_allclose(largest[0][-1], 0.01 * 2 * np.e, rtol=0.03)
    assert "Verdict: to stay within 0.01 of the flow up to time 10" in " ".join(out.split())
    assert (folder / "figure.png").exists()
    check_page(folder)
    assert (folder / "figure.pdf").exists()


@pytest.mark.long
def test_an_accuracy_that_every_step_size_or_none_reaches(monkeypatch, invoke, tmp_path):
    for epsilon, words in (("100", "more than any"), ("1e-12", "less than any")):
        folder = tmp_path / epsilon
        arguments = ("--experiment=necessity", f"--epsilon={epsilon}", f"--output_dir={folder}")
        status, out, err = invoke(*arguments)
        assert status == 0, err
        assert words in " ".join(out.split())

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(progress, "segments", interrupted)
    status, out, _ = invoke("--experiment=necessity", f"--output_dir={tmp_path / 'short'}")
    assert status == 130
    assert "interrupted: the runs are not complete" in out
