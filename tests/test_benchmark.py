"""The benchmark measures programs that make the same runs; how fast they are is not tested."""

import importlib.util
import json
import math
import sys

import numpy as np
import pytest
from absl import flags

from experiments.benchmark import __main__ as benchmark
from experiments.benchmark import engine, measuring, program, textbook
from experiments.cli import command_line

JAX_FORMS = ["eager JAX", "jitted step", "scan per run", "padded vmap", "gf_jax"]
TINY = ("--dataset=digits", "--examples=40", "--ratios=2", "--rounds=1")
TORCH = importlib.util.find_spec("torch") is not None


def call(*arguments):
    values = flags.FlagValues()
    command_line.define(benchmark.page().groups, values)
    return benchmark.main(command_line.parse_flags(["benchmark", *arguments], values), values)


@pytest.fixture
def small(monkeypatch):
    """One point where a sweep may have one, and few base iterations in each measurement."""
    monkeypatch.setattr(program, "WIDTHS", (4,))
    monkeypatch.setattr(program, "SHARES", (1,))
    monkeypatch.setattr(program, "STARTS", (2,))
    monkeypatch.setattr(measuring, "MOST_ITERATIONS", 3)


@pytest.mark.long
@pytest.mark.oldest
def test_all_implementations_make_the_same_runs(small, tmp_path, capsys):
    assert call(*TINY, "--networks=relu", "--notorch", f"--output_dir={tmp_path}") == 0
    out = capsys.readouterr().out
    assert "how many times faster" in out
    assert "all losses agree" in out
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["ratios"] == [1, 2]
    (network,) = summary["networks"]
    rows = network["implementations"]
    assert [row["name"] for row in rows] == JAX_FORMS
    for row in rows:
        # Three base iterations of three steps, each rounding the weights' last digits.
        assert row["loss_difference"] < 2e-6
        assert len(row["losses"]) == 2
        assert 0 < row["seconds"]["lower"] <= row["seconds"]["median"] <= row["seconds"]["upper"]
        assert row["gradients_per_second"] == pytest.approx(3 / row["seconds"]["median"])
        assert row["compile_seconds"] > 0
    assert len({loss for row in rows for loss in row["losses"]}) >= 2  # runs differ by step size
    assert network["products"]["share"] > 0
    assert [sweep["sizes"] for sweep in summary["growth"]] == [[1, 3], [40], [4], [2]]
    assert math.isfinite(summary["growth"][0]["exponent"])
    assert summary["growth"][1]["exponent"] is None  # one point has no slope
    saved = json.loads((tmp_path / "configuration.json").read_text())
    assert saved["configuration"]["rounds"] == 1
    assert saved["device"]["platform"]
    assert (tmp_path / "figure.pdf").exists()


@pytest.fixture
def unmeasured(monkeypatch):
    """Networks that take no time; measuring some raises what is given by their names."""
    errors = {}

    def network(runs, *_):
        if runs.network in errors:
            raise errors[runs.network]
        seconds = {"median": 0.1, "lower": 0.1, "upper": 0.2}
        row = {"name": "gf_jax", "seconds": seconds, "gradients_per_second": 30.0}
        row |= {"compile_seconds": 1.0, "memory_bytes": None, "memory_source": "compiled"}
        row |= {"loss_difference": 0.0, "agrees": True}
        return {
            "network": runs.network,
            "label": runs.study.network_label,
            "implementations": [row],
            "failures": [],
            "products": {"flops": 1e6, "seconds": 0.05, "share": 0.5},
        }

    monkeypatch.setattr(program, "_network", network)
    monkeypatch.setattr(program, "_growth", lambda *_: [])
    return errors


TWO = (*TINY, "--networks=linear,relu", "--notorch")


def test_an_interrupt_keeps_the_networks_that_are_done(unmeasured, tmp_path, capsys):
    unmeasured["relu"] = KeyboardInterrupt()
    assert call(*TWO, f"--output_dir={tmp_path}") == 130
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("interrupted: this is less than was asked for, 1 of 2 networks")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [network["network"] for network in summary["networks"]] == ["linear"]
    assert summary["interrupted"]
    assert (tmp_path / "figure.png").exists()


def test_an_interrupt_before_any_network(unmeasured, tmp_path, capsys):
    unmeasured["linear"] = KeyboardInterrupt()
    assert call(*TWO, f"--output_dir={tmp_path}") == 130
    assert "0 of 2 networks are complete" in capsys.readouterr().out
    assert not (tmp_path / "figure.png").exists()


def test_too_little_memory_for_a_network_keeps_the_others(unmeasured, tmp_path, capsys):
    unmeasured["linear"] = RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes")
    assert call(*TWO, f"--output_dir={tmp_path}") == 2
    assert "memory: too little for linear, 1 of 2 networks" in capsys.readouterr().out
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [network["network"] for network in summary["networks"]] == ["relu"]


def test_other_errors_are_not_taken_for_too_little_memory(unmeasured, tmp_path):
    unmeasured["linear"] = RuntimeError("something else")
    with pytest.raises(RuntimeError, match="something else"):
        call(*TWO, f"--output_dir={tmp_path}")


def test_the_first_of_several_starts_is_that_of_a_single_one():
    settings = program.Settings(networks=("relu",), examples=20, ratios=(2,), dataset="digits")
    single = program.build_workloads(settings)["relu"]
    several = program._changed(single, single.study.dataset, seeds=2)
    assert several.starts == 2
    expected, losses = (
        textbook.final_losses(runs, engine.engine(runs, calls=1).run(1))
        for runs in (single, several)
    )
    # Stacks of other sizes may sum in another order.
    np.testing.assert_allclose(losses, expected, rtol=1e-6)


def test_other_runs_are_found_out():
    rows = [
        {"name": "gf_jax", "losses": [1.0, 2.0]},
        {"name": "rounded", "losses": [1.0, 2.0 + 1e-6]},
        {"name": "padded vmap", "losses": [1.0, 2.001]},
        {"name": "slow", "losses": [1.0, math.nan]},
    ]
    assert program.compare(rows)["name"] == "gf_jax"
    assert [row["agrees"] for row in rows] == [True, True, False, True]
    assert rows[2]["loss_difference"] == pytest.approx(5e-4)
    assert rows[3]["losses"] == [1.0, None]


def test_runs_that_have_steps_left_are_not_compared():
    settings = program.Settings(networks=("relu",), examples=20, ratios=(2, 3), dataset="digits")
    runs = program.build_workloads(settings)["relu"]._replace(iterations=2)
    whole = textbook.final_losses(runs, engine.engine(runs, calls=1).run(1))
    for make, units in ((textbook.jitted_step, 6 + 4), (textbook.padded_vmap, 3 + 2)):
        losses = textbook.final_losses(runs, make(runs).run(units))
        np.testing.assert_allclose(losses, [*whole[:2], np.nan], rtol=1e-6)


NETWORKS = [
    "relu",
    *(pytest.param(n, marks=pytest.mark.long) for n in ("linear", "conv_adapted", "lenet5")),
]


@pytest.mark.parametrize("network", NETWORKS)
def test_the_forms_agree_on_every_network(network):
    ratios = (2,) if network in ("linear", "relu") else ()  # one run compiles sooner
    settings = program.Settings(networks=(network,), examples=20, ratios=ratios, dataset="digits")
    runs = program.build_workloads(settings)[network]
    makers = [textbook.jitted_step, textbook.padded_vmap, textbook.scan_per_run]
    if TORCH:
        makers.append(importlib.import_module("experiments.benchmark.pytorch").eager)
    (expected, *others) = (
        textbook.final_losses(runs, form.run(form.whole))
        for form in (engine.engine(runs, calls=1), *(make(runs) for make in makers))
    )
    for losses in others:
        # Sums over examples and up to 400 inputs in another order.
        np.testing.assert_allclose(losses, expected, rtol=1e-6)


def test_products_of_a_gradient():
    settings = program.Settings(networks=("relu",), examples=30, dataset="digits", torch=False)
    runs = program.build_workloads(settings)["relu"]
    products = engine.products_of_gradient(runs, lanes=4)
    # Forward, by the weights, and by the inputs of all layers but the first.
    sizes = [(runs.study.inputs.shape[1], 50), (50, 50), (50, 10)]
    multiplied = 2 * sum(a * b for a, b in sizes) + sum(a * b for a, b in sizes[1:])
    assert sum(n * p.flops for p, n in products.items()) == 2 * 4 * 30 * multiplied


def test_spans_within_spans_count_once():
    assert measuring.covered([(0, 4), (1, 2), (3, 5), (7, 8)]) == 6
    assert measuring.covered([]) == 0


def test_pytorch_that_is_wanted_and_missing(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "experiments.benchmark.pytorch", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert call(*TINY, "--torch") == 2
    assert "install it by pip install -e '.[benchmark]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--networks=vgg"], "--networks=vgg: accepted are some of linear, relu"),
        (["--networks=relu,relu"], "give every network once"),
        (["--networks="], "--networks=: accepted"),
        (["--rounds=0"], "--rounds=0: accepted is a positive integer"),
        (["--ratios=0"], "--ratios: got 0"),
        (["--ratios=a"], "integers separated by commas"),
        (["--examples=0"], "--examples=0"),
        (["--dataset=digits", "--data_dir=x"], "--data_dir: holds files of a data set"),
        (["--data_dir=/no/such/folder"], "--data_dir=/no/such/folder: no such folder"),
        (["word"], "word: not a flag"),
    ],
)
def test_mistakes_give_one_line(arguments, message, capsys):
    try:
        status = call(*arguments)
    except SystemExit as error:
        status = error.code
    err = capsys.readouterr().err
    assert status == 2
    assert message in err
    assert err.count("\n") == 1
