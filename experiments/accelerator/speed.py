"""How fast descent runs on the device, and what changes it."""

import contextlib
import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
from jax import lax

from experiments.accelerator.bench import CALLS, FULL_RUN, QUICK, Bench, Timing, place, timed
from experiments.accelerator.rows import MEASURED, NO_TIME, Row, failed, left_out
from experiments.benchmark import engine
from experiments.benchmark.engine import Product
from experiments.cli.usage import in_words
from experiments.problems.networks import NETWORKS
from experiments.process import memory
from experiments.process.mistakes import UsageError
from gf_jax.descent.placement import Memory
from gf_jax.study.files import read_json

SMALLEST = 256  # rows of the first product that is timed
LONG = 0.02  # seconds of a product that are long beside a call
ROOM = 2.0  # times the time that is expected must be there, for compiling takes some too
UNROLLED: dict[int | bool, str] = {2: "by 2", 5: "by 5", True: "wholly"}
COMMAND = "experiments.accelerator"
# Settings of the compiler, each tried in a process of its own.
FLAGS = (
    "--xla_gpu_enable_command_buffer=+WHILE",
    "--xla_gpu_enable_command_buffer=",
    "--xla_gpu_enable_while_loop_unrolling=WHILE_LOOP_UNROLLING_DOUBLE_BUFFER",
)
FLAG_SECONDS = 90.0  # for each of them


def times(bench: Bench) -> Iterator[Row]:
    """Time of a base iteration on the fully connected networks, and of a whole run."""
    return _times(bench, _early(bench))


def convolutions(bench: Bench) -> Iterator[Row]:
    """The same of the convolutional networks, which take long to compile."""
    late = [network for network in bench.settings.networks if network not in _early(bench)]
    return (
        _times(bench, late)
        if late
        else iter([left_out("base iteration, others", "no more networks are asked for")])
    )


def _early(bench: Bench) -> list[str]:
    """The fully connected networks; all of them if there are none."""
    asked = bench.settings.networks
    return [network for network in asked if network not in NETWORKS] or list(asked)


def _times(bench: Bench, networks: list[str]) -> Iterator[Row]:
    for network in networks:
        timing = bench.timing(network)
        yield Row(f"base iteration, {network}", 1e3 * timing.seconds, "ms", note=timing.words)
        yield Row(
            f"run of {FULL_RUN:,} iterations, {network}",
            FULL_RUN * timing.seconds,
            "s",
            note=f"{timing.iterations:,} measured, and scaled",
        )


def share(bench: Bench) -> Iterator[Row]:
    """Operations per second in products of descent, and of the fastest product alone."""
    fastest, size = fastest_product(bench)
    yield Row("fastest product alone", fastest / 1e9, "GFLOP/s", note=f"{size:,} rows and columns")
    for network in bench.settings.networks:
        flops = engine.flops_of(engine.products_of_iteration(bench.workload(network)))
        reached = flops / bench.timing(network).seconds
        note = f"{flops / 1e9:.3g} GFLOP in a base iteration, {reached / 1e9:.3g} GFLOP/s"
        yield Row(f"share of that, {network}", 100 * reached / fastest, "%", note=note)


def fastest_product(bench: Bench) -> tuple[float, int]:
    """The highest rate of products of square matrices, per second, and their rows.

    They are doubled until one of them is long beside a call.
    """
    found, size, seconds = (0.0, 0), SMALLEST, 0.0
    while seconds < LONG and size <= bench.limits.largest:
        square = Product((size, size), (size, size), (((1,), (0,)), ((), ())))
        seconds = engine.seconds_of(square)
        found = max(found, (square.flops / seconds, size))
        size *= 2
    return found


def starts(bench: Bench) -> Iterator[Row]:
    """Time of a base iteration per starting point, of ever more of them."""
    name = bench.settings.networks[0]
    there = place(bench.first.study, bench.device)
    seconds, before = bench.timing(name).seconds, 1
    for count in bench.limits.starts:
        label = f"base iteration per start, of {count:,}, {name}"
        expected = seconds * count / before  # at most: devices have room to begin with
        length = max(1, min(round(bench.limits.call_seconds / expected), 100))
        if ROOM * CALLS * length * expected > bench.clock.left:
            yield left_out(label)
            continue
        needed: list[float] = []

        def check(need: Memory, needed: list[float] = needed) -> None:
            needed.append(need.device)
            memory.check(need)

        # All start at the same point: what it costs does not depend on where.
        stack = jax.tree.map(lambda w, n=count: np.broadcast_to(w, (n, *w.shape)), there.params)
        try:
            timing = timed(there.f, stack, bench.first.ratios, length, starts=True, check=check)
        except UsageError as error:
            yield left_out(label, str(error).partition(";")[0])
            return
        seconds, before = timing.seconds, count
        note = f"{1e3 * seconds:.3g} ms for all; told to need {memory.in_words(needed[0])}"
        yield Row(label, 1e3 * seconds / count, "ms", note=note + _peak_words(bench))


def _peak_words(bench: Bench) -> str:
    """The most memory that was in use so far, where the device tells."""
    stats = bench.device.memory_stats()
    return f", in use at most {memory.in_words(stats['peak_bytes_in_use'])}" if stats else ""


def loops(bench: Bench) -> Iterator[Row]:
    """Time of a base iteration with the inner loops, of the steps in between, unrolled."""
    name = bench.settings.networks[0]
    usual = bench.timing(name)
    for unroll, words in UNROLLED.items():
        label = f"base iteration, {name}, loops unrolled {words}"
        with unrolled(unroll) as traced:
            timing = _again(bench, usual)
        if not traced:
            yield left_out(label, "no loop of several steps lies between these ratios")
            return
        yield _compared(label, timing, usual)


def _again(bench: Bench, usual: Timing) -> Timing:
    """The runs on the first network once more, as many iterations as before."""
    there = place(bench.first.study, bench.device)
    return timed(there.f, there.params, bench.first.ratios, usual.iterations // (CALLS - 1))


def _compared(name: str, timing: Timing, usual: Timing) -> Row:
    note = f"{timing.seconds / usual.seconds:.2f} times the usual"
    return Row(name, 1e3 * timing.seconds, "ms", note=f"{note}; {timing.words}")


@contextlib.contextmanager
def unrolled(unroll: int | bool) -> Iterator[list[int]]:
    """Within it the loops of descent that only count are unrolled; collects their lengths.

    The library has no option for it, so its loop is exchanged while it is traced; what was
    compiled before is given up, and what is compiled within at the end.
    """
    scan, traced = lax.scan, []

    @functools.wraps(scan)
    def replaced(f: Any, init: Any, xs: Any = None, length: int | None = None, **rest: Any) -> Any:
        if xs is None and length is not None and length > 1:
            traced.append(length)
            rest["unroll"] = unroll if unroll is True else min(unroll, length)
        return scan(f, init, xs, length, **rest)

    jax.clear_caches()
    try:
        with mock.patch.object(lax, "scan", replaced):
            yield traced
    finally:
        jax.clear_caches()


def flags(bench: Bench) -> Iterator[Row]:
    """Time of a base iteration under settings of the compiler, in processes of their own."""
    name = bench.settings.networks[0]
    if bench.device.platform not in ("gpu", "cuda", "rocm"):
        yield left_out("settings of the compiler", "those tried here are of GPUs")
        return
    for flag in FLAGS:
        yield under(flag, bench, f"base iteration, {name}, {flag}")


def under(flag: str, bench: Bench, label: str) -> Row:
    """The row of a base iteration of the first network with a flag more in ``XLA_FLAGS``."""
    seconds = min(FLAG_SECONDS, bench.clock.left)
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                [sys.executable, "-m", COMMAND, *_arguments(bench, seconds, folder)],
                env=os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()},
                check=False,
                capture_output=True,
                text=True,
                timeout=seconds,
            )
        except subprocess.TimeoutExpired:
            return left_out(label, f"{NO_TIME}: it took more than {seconds:.0f} seconds")
        if done.returncode:
            reason = next(reversed(done.stderr.strip().splitlines()), "without a word")
            return failed(label, RuntimeError(reason))
        rows = read_json(Path(folder) / "summary.json")["rows"]
    row = next(row for row in rows if row["item"] == "times")
    if row["state"] != MEASURED:
        return Row(label, state=row["state"], note=row["note"])
    ratio = row["value"] / 1e3 / bench.timing(bench.settings.networks[0]).seconds
    return Row(label, row["value"], "ms", note=f"{ratio:.2f} times the usual; {row['note']}")


def _arguments(bench: Bench, seconds: float, folder: str) -> list[str]:
    """Arguments of this command that time the first network alone."""
    settings = bench.settings
    given: dict[str, Any] = {
        "dataset": settings.dataset,
        "data_dir": settings.data_dir,
        "examples": settings.examples,
        "ratios": settings.ratios,
        "networks": settings.networks[0],
        "items": "times",
        "quick": bench.limits == QUICK,
        "minutes": seconds / 60,
        "output_dir": folder,
    }
    return [f"--{name}={in_words(value)}" for name, value in given.items() if value is not None]


def peak(bench: Bench) -> Iterator[Row]:
    """The most memory of the device that was in use, and how much there is."""
    stats = bench.device.memory_stats()
    if not stats:
        yield left_out("memory in use at most", "this device does not tell")
        return
    whole = stats.get("bytes_limit")
    note = f"of {memory.in_words(whole)}" if whole else ""
    yield Row("memory in use at most", stats["peak_bytes_in_use"] / memory.GIB, "GiB", note=note)
