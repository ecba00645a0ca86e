"""What items measure on: the device, the CPU beside it, runs on the networks, and limits."""

import functools
import math
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

import gf_jax
from experiments.accelerator.rows import Clock
from experiments.benchmark import measuring, program
from experiments.benchmark.program import Runs
from experiments.benchmark.workload import STEP_SIZE, Workload
from experiments.problems.data import Dataset
from experiments.problems.problem import Problem
from experiments.process.mistakes import UsageError
from gf_jax.descent.placement import Memory
from gf_jax.program.program import Loss

PyTree = Any
FULL_RUN = 10_000  # base iterations
CALLS = 4  # of the compiled segment, of which the first is not measured
CHECK = 50  # base iterations of a segment, where runs are compared


class Limits(NamedTuple):
    """How much is done.

    Attributes:
      product: rows of the matrices whose product is checked.
      largest: rows of the largest matrices whose product is timed.
      iterations: base iterations of runs that are compared, at most.
      run_seconds: for each of these runs.
      call_seconds: of one timed call of descent.
      starts: numbers of starting points.
    """

    product: int = 1024
    largest: int = 8192
    iterations: int = 2000
    run_seconds: float = 30.0
    call_seconds: float = 1.0
    starts: tuple[int, ...] = (1, 4, 16, 64, 256, 1024, 4096)


QUICK = Limits(256, 512, CHECK, 2.0, 0.05, (1, 4))


class Timing(NamedTuple):
    """How long descent takes.

    Attributes:
      seconds: of a base iteration of all runs.
      ready: seconds until the first result, less what later calls take: tracing and compiling.
      iterations: how many were measured.
      fastest: seconds of a base iteration in the fastest call that was measured.
      slowest: likewise in the slowest.
    """

    seconds: float
    ready: float
    iterations: int
    fastest: float
    slowest: float

    @property
    def words(self) -> str:
        """How sure it is."""
        low, high = (f"{1e3 * seconds:.3g}" for seconds in (self.fastest, self.slowest))
        return f"{self.iterations:,} measured, {low} to {high} ms; {self.ready:.1f} s to compile"


class Place(NamedTuple):
    """A loss whose data lie on a device, and the starting point."""

    device: jax.Device
    f: Loss
    params: PyTree

    def gaps(self, ratios: tuple[int, ...], iterations: int, **options: Any) -> Iterator[Any]:
        """Distances to the base run of every segment, shape (iterations, lanes)."""
        schedule = gf_jax.Schedule(
            STEP_SIZE, ratios, iterations, snapshots=1, segments=iterations // CHECK
        )
        segments = gf_jax.descent_segments(self.f, self.params, schedule, **options)
        while True:
            with jax.default_device(self.device):  # not the consumer's between segments
                part = next(segments, None)
            if part is None:
                return
            yield part.metrics.distance_to_base[-CHECK:]


class Bench:
    """What all items have in common; what is dear is made once, when it is asked for.

    Args:
      settings: which runs.
      limits: how much is done.
      clock: the time that there is.
    """

    def __init__(self, settings: Runs, limits: Limits, clock: Clock) -> None:
        self.settings, self.limits, self.clock = settings, limits, clock
        self.device, self.cpu = jax.devices()[0], cpu()
        self._datasets: dict[bool, Dataset] = {}
        self._workloads: dict[str, Workload] = {}
        self._timings: dict[str, Timing] = {}

    @property
    def on_cpu(self) -> bool:
        """Whether the device is a CPU itself."""
        return self.device.platform == "cpu"

    def workload(self, network: str) -> Workload:
        """The runs on a network."""
        if network not in self._workloads:
            made = program.build_workload(self.settings, network, self._datasets)
            self._workloads[network] = made
        return self._workloads[network]

    @property
    def first(self) -> Workload:
        """The runs on the first network, on which runs are compared."""
        return self.workload(self.settings.networks[0])

    @functools.cached_property
    def exact(self) -> Float[np.ndarray, "iterations lanes"]:
        """Gaps in float64 on the CPU, as far as their time goes."""
        return self.gaps(self.cpu, "float64")

    def gaps(
        self, device: jax.Device, arithmetic: str, iterations: int | None = None
    ) -> Float[np.ndarray, "iterations lanes"]:
        """Gaps of the first network, of so many base iterations, or of fewer for lack of time."""
        there, parts = place(self.first.study, device), []
        iterations = iterations or self.limits.iterations
        end = time.monotonic() + min(self.limits.run_seconds, self.clock.left / 2)
        for gaps in there.gaps(self.first.ratios, iterations, arithmetic=arithmetic):
            parts.append(np.asarray(gaps, np.float64))
            if time.monotonic() > end:
                break
        return np.concatenate(parts)

    def timing(self, network: str) -> Timing:
        """How long descent takes on a network, on the device."""
        if network not in self._timings:
            runs = self.workload(network)._replace(iterations=1)
            estimate = measuring.step_by_step_seconds(runs)
            length = max(1, min(round(self.limits.call_seconds / estimate), 500))
            there = place(runs.study, self.device)
            self._timings[network] = timed(there.f, there.params, runs.ratios, length)
        return self._timings[network]


def cpu() -> jax.Device:
    """The CPU that stands beside the device.

    Raises:
      UsageError: if the environment forbids it.
    """
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        wanted = os.environ.get("JAX_PLATFORMS", "")
        raise UsageError(
            f"environment: JAX_PLATFORMS={wanted} leaves out the CPU, with which the device is "
            f"compared; accepted is JAX_PLATFORMS={wanted},cpu, or to unset it"
        ) from None


def place(study: Problem, device: jax.Device) -> Place:
    """The same loss and the same starting point, to the last bit, on a device."""
    with jax.default_device(device):
        made = gf_jax.problems.classification(
            study.network, study.inputs, study.dataset.labels, loss=study.loss
        )
    return Place(device, made.loss, jax.tree.map(np.asarray, study.initial_params))


def timed(
    f: Loss,
    params: PyTree,
    ratios: tuple[int, ...],
    length: int,
    *,
    starts: bool = False,
    check: Callable[[Memory], None] | None = None,
) -> Timing:
    """Times the first segments of a full run on the default device.

    Of a shorter run less would be compiled, for it would not be worth it.

    Args:
      f: the loss.
      params: the starting point, or a stack of them.
      ratios: of the runs.
      length: base iterations of one call of the compiled segment.
      starts: whether params are a stack.
      check: is told what memory is needed, and may raise.
    """
    calls = max(CALLS, math.ceil(FULL_RUN / length))
    whole = calls * length
    schedule = gf_jax.Schedule(STEP_SIZE, ratios, whole, snapshots=(whole,), segments=calls)
    segments = gf_jax.descent_segments(f, params, schedule, starts=starts, check_memory=check)
    seconds = []
    for _ in range(CALLS):
        begun = time.perf_counter()
        next(segments)
        seconds.append(time.perf_counter() - begun)
    fastest, usual, slowest = np.percentile(seconds[1:], (0, 50, 100)).tolist()
    return Timing(
        seconds=usual / length,
        ready=max(seconds[0] - usual, 0.0),
        iterations=(CALLS - 1) * length,
        fastest=fastest / length,
        slowest=slowest / length,
    )
