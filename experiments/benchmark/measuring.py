"""Implementations measured in turn: time, what compiling takes, memory, and where runs end."""

import contextlib
import ctypes
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import backend
from jaxtyping import Float

from experiments.benchmark import textbook
from experiments.benchmark.workload import Implementation, Workload

TARGET_SECONDS = 0.5  # of one measurement: long beside the clock, short beside a run
CHECK_SECONDS = 20.0  # that seeing where runs end may take, if it is one base iteration
MOST_ITERATIONS = 20  # in one measurement

Make = Callable[[Workload], Implementation]


class Memory(NamedTuple):
    """Most memory in use at once.

    Attributes:
      bytes: how much; None where it cannot be known.
      source: "compiled" (what the compiler plans for the largest program: arguments,
        results and everything between) or "resident" (by how much the process grew).
    """

    bytes: int | None
    source: str


class Entrant(NamedTuple):
    """An implementation, ready to be measured.

    Attributes:
      implementation: the implementation, compiled.
      iterations: base iterations of its whole work.
      units: units of work in one measurement.
      compile_seconds: tracing, lowering and compiling.
      memory: most memory in use at once.
      losses: of every run after the workload's base iterations; NaN where getting there
        takes too long.
    """

    implementation: Implementation
    iterations: int
    units: int
    compile_seconds: float
    memory: Memory
    losses: Float[np.ndarray, " runs"]


def calibrated(workload: Workload) -> Workload:
    """The workload with as many base iterations as the compiled step takes in a measurement."""
    wanted = round(TARGET_SECONDS / step_by_step_seconds(workload))
    return workload._replace(iterations=min(max(wanted, 1), MOST_ITERATIONS))


def step_by_step_seconds(workload: Workload) -> float:
    """Seconds of the workload's iterations where every step is a call of its own: an estimate."""
    run = textbook.jitted_step(workload).run
    run(1)
    return _timed(run, 5)[1] / 5 * workload.steps * max(workload.starts, 1)


def enter(workload: Workload, make: Make) -> Entrant:
    """Makes an implementation ready: compiles it, and sees where its runs end.

    What JAX compiles is timed by JAX itself. Of PyTorch, compiling is all that getting ready
    takes, one step included.

    Raises:
      UnavailableError: if this implementation cannot be had here.
    """
    with fresh_executables() as executables, compiling() as spans:
        started = time.perf_counter()
        implementation = make(workload)
        ready = time.perf_counter() - started
        ends, each = _timed(implementation.run, 1)
    compiled = covered(spans)
    within = covered([span for span in spans if span[0] > started + ready])
    each = max(each - within, 1e-6)  # the clocks differ by microseconds
    units = whole = implementation.whole
    growth: list[int | None] = [None]
    if whole > 1:
        if workload.iterations == 1:  # several are together short enough
            units = min(max(int(CHECK_SECONDS / each), 1), whole)
        with resident_growth() as growth:
            ends, seconds = _timed(implementation.run, units)
        each = seconds / units
    return Entrant(
        implementation=implementation,
        iterations=workload.iterations,
        units=min(max(round(TARGET_SECONDS / each), 1), whole),
        compile_seconds=compiled or ready,
        memory=_planned(executables) if implementation.planned else Memory(growth[0], "resident"),
        losses=textbook.final_losses(workload, ends),
    )


def rounds(
    entrants: Sequence[Entrant], count: int, tell: Callable[[], None]
) -> Float[np.ndarray, "rounds entrants"]:
    """Seconds per base iteration of all runs, measured in turn.

    Args:
      entrants: what to measure.
      count: how often.
      tell: called after every measurement.
    """
    times = np.empty((count, len(entrants)))
    for row in times:
        for column, entrant in enumerate(entrants):
            done = entrant.iterations * entrant.units / entrant.implementation.whole
            row[column] = _timed(entrant.implementation.run, entrant.units)[1] / done
            tell()
    return times


@contextlib.contextmanager
def compiling() -> Iterator[list[tuple[float, float]]]:
    """Collects when JAX traces, lowers and compiles, as beginnings and ends in seconds."""
    spans: list[tuple[float, float]] = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event.startswith("/jax/core/compile/"):
            spans.append((time.perf_counter() - duration_secs, time.perf_counter()))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield spans
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def covered(spans: Sequence[tuple[float, float]]) -> float:
    """Total length of spans, some of which lie in others: functions traced within functions."""
    total, reached = 0.0, -np.inf
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return float(total)


@contextlib.contextmanager
def fresh_executables() -> Iterator[list[Any]]:
    """Collects the programs that are compiled meanwhile."""
    client = backend.get_backend()
    fresh: list[Any] = []
    before = client.live_executables()
    yield fresh
    fresh.extend(program for program in client.live_executables() if program not in before)


@contextlib.contextmanager
def resident_growth() -> Iterator[list[int | None]]:
    """Finds by how many bytes the process grows; None where Linux does not tell, or not in it."""
    growth: list[int | None] = []
    known = sys.platform == "linux" and jax.default_backend() == "cpu"
    if known:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed is to be given back, or it hides growth
        Path("/proc/self/clear_refs").write_text("5")  # the peak is that from here on
        before = _status("VmRSS")
    yield growth
    growth.append(max(_status("VmHWM") - before, 0) if known else None)


def _status(field: str) -> int:
    """Bytes of memory of this process, in one of Linux's counts."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith(f"{field}:"))
    return 1024 * int(kilobytes)


def _planned(executables: Sequence[Any]) -> Memory:
    """Memory of the largest of some programs."""
    sizes = []
    for executable in executables:
        plan = executable.get_compiled_memory_stats()
        held = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
        sizes.append(held + plan.temp_size_in_bytes)
    return Memory(max(sizes, default=None), "compiled")


def _timed(run: Callable[[int], Any], units: int) -> tuple[Any, float]:
    """What a piece of work gives, and the seconds it takes."""
    started = time.perf_counter()
    result = run(units)
    return result, time.perf_counter() - started
