"""Several starting points, as a user of the command line meets them."""

import json

import jax
import numpy as np
import pytest

import gf_jax
from experiments import show
from experiments.process.mistakes import EXIT_DIVERGED, EXIT_INTERRUPTED
from experiments.runs import store
from tests.conftest import SMALL, WITH_FLOW
from tests.test_program import Counts

RATIOS = "--ratios=2,3"


def rows(out):
    return [line for line in out.splitlines() if " median " in line or "Verdict" in line]


@pytest.mark.long
def test_every_seed_is_that_of_a_run_of_its_own(invoke, tmp_path, capsys):
    folder, alone = tmp_path / "seeds", tmp_path / "alone"
    arguments = (*WITH_FLOW, RATIOS, "--seeds=3", "--seed=4")
    status, out, err = invoke(*arguments, f"--output_dir={folder}")
    assert status == 0, err
    assert invoke(*WITH_FLOW, RATIOS, "--seed=5", f"--output_dir={alone}")[0] == 0
    with np.load(folder / "metrics.npz") as metrics, np.load(folder / "snapshots.npz") as kept:
        assert metrics["seed"].tolist() == [4, 5, 6]
        assert metrics["loss"].shape == (13, 3, 3)  # iterations, seeds, lanes
        assert kept["params.dense_1.weight"].shape == (12, 3, 3, 6, 64)
    with np.load(folder / "initial_params.npz") as many, np.load(alone / "initial_params.npz") as a:
        for name in set(a.files) - {"format"}:
            np.testing.assert_array_equal(many[name][1], a[name])
    with np.load(folder / "flow.npz") as many, np.load(alone / "flow.npz") as a:
        # The flow knows nothing of other starts.
        for name in ("loss", "predicted_to_base", "params.dense_1.weight"):
            np.testing.assert_array_equal(many[name][:, 1], a[name])
    single, own = store.read_run(folder).of_seeds[1], store.read_run(alone)
    for ours, its in zip(*map(jax.tree.leaves, (single.metrics, own.metrics)), strict=True):
        # Stacks of other sizes may sum in another order: a few ulps in each of 36 steps.
        np.testing.assert_allclose(ours, its, rtol=1e-5, atol=2e-6)
    np.testing.assert_array_equal(single.accuracy, own.accuracy)

    summary = json.loads((folder / "summary.json").read_text())
    assert [each["seed"] for each in summary["by_seed"]] == [4, 5, 6]
    for lane, over in enumerate(summary["runs"]):
        of_lane = [each["runs"][lane]["final_loss"] for each in summary["by_seed"]]
        assert over["final_loss"] == sorted(of_lane)  # of three all are percentiles
        gaps = [each["flow"]["runs"][lane]["gap"] for each in summary["by_seed"]]
        assert summary["flow"]["runs"][lane]["gap"] == sorted(gaps)
    assert "from 3 of 3 starting points" in " ".join(out.split())
    assert "seeds 4 to 6" in out

    (folder / "figure.png").unlink()
    assert show.main([str(folder)]) == 0
    assert rows(capsys.readouterr().out) == rows(out)
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.long
def test_a_diverging_seed_says_so(invoke, tmp_path):
    """At this step size the base run diverges from two of four starts."""
    folder = tmp_path / "wild"
    arguments = (*SMALL[:2], "--iterations=40", "--widths=6,6,6", "--step_size=0.3")
    options = ("--ratios=1000", "--seeds=4", "--noflow", "--segments=1")
    status, out, err = invoke(*arguments, *options, f"--output_dir={folder}")
    assert status == EXIT_DIVERGED, err
    summary = json.loads((folder / "summary.json").read_text())
    diverged = [each["runs"][0]["diverged_at"] is not None for each in summary["by_seed"]]
    base, other = summary["runs"]
    assert base["diverged"] == sum(diverged) == out.count("warning: with seed") == 2
    assert other["diverged"] == 0
    assert base["final_loss"][-1] is None  # above all others
    assert np.isfinite(base["final_loss"][0])
    loss = store.read_run(folder).metrics.loss
    assert np.isfinite(loss[-1]).tolist() == [[not each, True] for each in diverged]


@pytest.mark.long
def test_an_interrupt_keeps_the_flows_that_are_done(invoke, tmp_path, monkeypatch):
    solve, solved = gf_jax.gradient_flow, []

    def interrupted(*arguments, **options):
        if solved:
            raise KeyboardInterrupt
        solved.append(True)
        return solve(*arguments, **options)

    monkeypatch.setattr(gf_jax.study.following, "gradient_flow", interrupted)
    folder = tmp_path / "short"
    status, out, _ = invoke(*WITH_FLOW, RATIOS, "--seeds=2", f"--output_dir={folder}")
    assert status == EXIT_INTERRUPTED
    assert "from 1 of 2 starting points" in " ".join(out.split())
    first, second = store.read_run(folder).of_seeds
    assert np.isfinite(first.reference.loss).all()
    assert second.reference is None
    assert show.main([str(folder)]) == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--seeds=0", "--seeds=0: accepted is a positive integer"),
        ("--seeds=2 --initial_params=/nowhere.npz", "are a single start; drop one of the two"),
        (f"--seeds=2 --seed={2**32 - 1}", "--seeds=2: the last seed, 4294967296, is above 2^32"),
        ("--seeds=2 --experiment=rounding", "but on paper, deep_linear"),
    ],
)
def test_mistakes(flags, message, invoke, tmp_path):
    status, _, err = invoke(*SMALL, *flags.split(), f"--output_dir={tmp_path / 'never'}")
    assert status == 2
    assert message in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "never").exists()


def test_further_seeds_compile_nothing(invoke, tmp_path, monkeypatch):
    """Between the flows of two seeds there is all that is done for the second one."""
    solve, counts, at = gf_jax.gradient_flow, Counts(), []

    def counted(*arguments, **options):
        flow = solve(*arguments, **options)
        at.append(counts.compiled)
        return flow

    monkeypatch.setattr(gf_jax.study.following, "gradient_flow", counted)
    status, _, err = invoke(*WITH_FLOW, RATIOS, "--seeds=3", f"--output_dir={tmp_path / 'runs'}")
    assert status == 0, err
    assert at == [at[0]] * 3
