"""The check of a device tells what is wrong there, and goes on where something fails."""

import itertools
import json
import threading
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags

import gf_jax
from experiments.accelerator import __main__ as accelerator
from experiments.accelerator import agreement, program, rows, speed
from experiments.accelerator.agreement import BITS, rounded
from experiments.accelerator.bench import QUICK, Bench
from experiments.accelerator.rows import FAILED, FINE, LEFT_OUT, MEASURED, NOT_FINE, Clock, Row
from experiments.cli import command_line
from experiments.process import interruption

TINY = ("--quick", "--dataset=digits", "--examples=40", "--ratios=2,5", "--networks=linear")


def call(*arguments):
    values = flags.FlagValues()
    command_line.define(accelerator.page().groups, values)
    return accelerator.main(command_line.parse_flags(["accelerator", *arguments], values), values)


def bench_of(**given):
    given = {"dataset": "digits", "examples": 40, "ratios": (2,), "networks": ("linear",)} | given
    return Bench(program.Settings.of(**given), QUICK, Clock(60.0))


@pytest.mark.oldest
def test_numbers_of_fewer_digits():
    """The neighbours of 1 with 8 and 11 bits are 2^-7 and 2^-10 above; halves go to even."""
    ulps = np.array([0.0, 0.4, 0.5, 0.6, 1.0, 1.5])
    for bits in BITS.values():
        found = (rounded(1 + ulps * 2.0 ** (1 - bits), bits) - 1) / 2.0 ** (1 - bits)
        assert found.tolist() == [0, 0, 0, 1, 1, 2]
    exact = np.asarray(jnp.asarray(np.linspace(-3, 3, 500), jnp.bfloat16), np.float64)
    assert (rounded(np.linspace(-3, 3, 500).astype(np.float32), 8) == exact).all()


@pytest.mark.parametrize(("other", "least"), [("TF32", 1e-4), ("bfloat16", 1e-3)])
def test_a_product_of_rounded_numbers_is_told(other, least):
    """Each factor is off by a third of half an ulp or so, 2^-bits: 2e-4 and 2e-3 together."""

    def product(left, right):
        return rounded(left, BITS[other]) @ rounded(right, BITS[other])

    row = agreement.product_row("of another", product, 64)
    assert row.state == NOT_FINE
    assert least < row.value < 4 * least
    assert agreement.product_row("full", np.matmul, 64).state == FINE


def test_a_number_that_is_none_is_not_fine():
    assert rows.at_most("x", np.nan, 1.0).state == NOT_FINE
    assert rows.at_most("x", 1.0, 1.0).state == FINE


def test_the_largest_error_of_gaps_as_far_as_both_are_known():
    exact = np.array([[0.0, 1.0, 2.0], [0.0, 2.0, 4.0], [0.0, 1.0, 1.0]])
    found = exact[:2] * np.array([1.0, 1.25, 0.5])
    assert agreement.gap_error(found, exact) == (0.5, 2)


def test_an_item_that_fails_is_a_row_and_the_rest_goes_on():
    def broken(_):
        yield Row("first", 1.0)
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of\n memory")

    def whole(bench):
        yield Row(bench, 2.0)

    kept = []
    items = {"broken": broken, "whole": whole}
    rows.measure(items, "second", Clock(60.0), lambda item, row: kept.append((item, row)))
    assert [(item, row.name, row.state) for item, row in kept] == [
        ("broken", "first", MEASURED),
        ("broken", "broken", FAILED),
        ("whole", "second", MEASURED),
    ]
    assert kept[1][1].note == "RuntimeError: RESOURCE_EXHAUSTED: Out of memory"


def test_what_does_not_come_to_an_end_is_left_behind(monkeypatch):
    monkeypatch.setattr(rows, "LEAST", 0.01)
    goes_on, done, kept = threading.Event(), threading.Event(), []

    def endless(_):
        yield Row("begun")
        goes_on.wait(30)
        done.set()
        yield Row("too late")

    items = {"endless": endless, "next": lambda _: iter([Row("never")])}
    with interruption.handled():
        rows.measure(items, None, Clock(0.3), lambda item, row: kept.append((item, row.state)))
        goes_on.set()
        assert done.wait(30)
    assert kept == [("endless", MEASURED), ("endless", LEFT_OUT), ("next", LEFT_OUT)]


@pytest.mark.long
def test_unrolled_loops_make_the_same_runs():
    start = np.linspace(0.5, 1.5, 3).astype(np.float32)

    def run():
        options = {"step_size": 0.01, "ratios": (2, 5), "iterations": 3}
        return gf_jax.gradient_descent(lambda w: jnp.sum(w**4), start, **options).snapshots

    usual = run()
    with speed.unrolled(True) as traced:
        changed = run()
    assert 3 in traced  # from the second step of all lanes to the fifth
    # The compiler may contract products and sums otherwise: an ulp per step.
    np.testing.assert_allclose(changed, usual, rtol=3e-6)


@pytest.mark.long
def test_a_setting_that_the_compiler_does_not_know_is_told():
    row = speed.under("--xla_there_is_none=1", bench_of(), "none")
    assert row.state == FAILED
    assert "xla_there_is_none" in row.note


@pytest.mark.long
def test_a_setting_that_it_knows_is_measured():
    row = speed.under("--xla_cpu_enable_fast_min_max=false", bench_of(), "known")
    assert (row.state, row.unit) == (MEASURED, "ms")
    assert row.value > 0


def test_a_few_items(tmp_path, capsys):
    items = "--items=compensation,products,memory"
    assert call(*TINY, items, f"--output_dir={tmp_path}") == 0
    out = capsys.readouterr().out
    summary = json.loads((tmp_path / "summary.json").read_text())
    found = {row["name"]: row for row in summary["rows"]}
    assert [row["item"] for row in summary["rows"]] == [
        *["products"] * 3,
        *["compensation"] * 2,
        "memory",
    ]
    assert found["product, full float32"]["state"] == FINE
    kept = "sum of 4,096 updates of 1/16 ulp"
    assert found[f"{kept}, compensated"]["state"] == FINE
    assert found[f"{kept}, float32"]["value"] == 1.0  # all of them are lost
    assert summary["device"]["kind"] == jax.devices()[0].device_kind
    assert "6 rows: 2 fine" in out


def test_the_most_memory_is_told_where_the_device_tells():
    stats = {"peak_bytes_in_use": 3 * 2**29, "bytes_limit": 2**36}
    told = types.SimpleNamespace(device=types.SimpleNamespace(memory_stats=lambda: stats))
    (row,) = speed.peak(told)
    assert (row.shown, row.note) == ("1.5 GiB", "of 64 GiB")


@pytest.mark.long
def test_gaps_of_a_device_are_those_of_the_cpu_beside_it(monkeypatch):
    """Here they are the same, and so are their gaps to the last bit."""
    monkeypatch.setattr(Bench, "on_cpu", False)
    against_exact, of_cpu, apart = agreement.gaps(bench_of())
    assert against_exact.state == of_cpu.state == FINE
    assert 0 < against_exact.value == of_cpu.value
    assert apart.value == 0
    assert "50 base iterations" in apart.note


def test_kinks_are_not_judged():
    far = np.array([[0.0, 1.0]]), np.array([[0.0, 2.0]])
    assert agreement.gap_row("linear", "", *far, "").state == NOT_FINE
    assert agreement.gap_row("relu", "", *far, "").state == MEASURED


def test_gaps_are_compared_with_a_second_run(capsys):
    assert call("--ratios=1") == 2
    assert "accepted is one above 1" in capsys.readouterr().err


def test_a_device_without_the_cpu_beside_it_is_refused(monkeypatch, tmp_path, capsys):
    def without(backend):
        raise RuntimeError(f"Unknown backend {backend}")

    monkeypatch.setattr(jax, "local_devices", without)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    assert call(*TINY, f"--output_dir={tmp_path / 'out'}") == 2
    assert "accepted is JAX_PLATFORMS=cuda,cpu" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_an_interrupt_keeps_the_rows_that_are_there(monkeypatch, tmp_path, capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setitem(program.ITEMS, "compensation", interrupted)
    assert call(*TINY, "--items=products,compensation", f"--output_dir={tmp_path}") == 130
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["interrupted"]
    assert [row["item"] for row in summary["rows"]] == ["products"] * 3
    assert "interrupted: this is less" in capsys.readouterr().out


@pytest.mark.long
def test_the_whole_command(tmp_path, capsys):
    assert call(*TINY, f"--output_dir={tmp_path}") == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    order = [item for item, _ in itertools.groupby(row["item"] for row in summary["rows"])]
    assert order == list(program.ITEMS)
    assert not [row for row in summary["rows"] if row["state"] in (FAILED, NOT_FINE)]
    found = {row["name"]: row for row in summary["rows"]}
    once = found["base iteration, linear"]["value"]
    whole = found["run of 10,000 iterations, linear"]["value"]
    assert whole == pytest.approx(10_000 * once / 1e3)
    assert found["gaps, linear"]["value"] < found["gaps, linear, float32"]["value"]
    assert found["base iteration, others"]["state"] == LEFT_OUT  # there is one network only
    assert 0 < found["share of that, linear"]["value"] < 200  # of a product that is none too large
    ends = capsys.readouterr().out.splitlines()[-1]
    assert ends == f"everything lies in {tmp_path}"
