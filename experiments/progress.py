"""Progress bars, with an estimate of the time left, of what takes long."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from tqdm import tqdm

import gf_jax
from experiments import devices, interruption
from gf_jax.flow_problem import Progress
from gf_jax.program import Loss
from gf_jax.schedule import Schedule
from gf_jax.segments import Trajectory

Solution = TypeVar("Solution")


def segments(
    f: Loss,
    params: Any,
    schedule: Schedule,
    arithmetic: str,
    label: str | None = None,
    resume_from: tuple[int, Sequence[np.ndarray]] | None = None,
    **options: Any,
) -> Iterator[tuple[Trajectory, list[jax.Array]]]:
    """Segments of descent and states, see ``gf_jax.resumable_segments``, with a progress bar."""
    options |= {"arithmetic": arithmetic, "resume_from": resume_from}
    initial = resume_from[0] if resume_from else 0
    with tqdm(total=schedule.iterations, initial=initial, unit="it", desc=label, **_bar()) as bar:
        computed = gf_jax.resumable_segments(f, params, schedule, **options)
        while (segment := interruption.call(lambda: next(computed, None))) is not None:
            bar.update(int(segment[0].iterations[-1]) - bar.n)
            yield segment


def _bar() -> dict[str, Any]:
    """Of every progress bar: as wide as the terminal, and shown by one process."""
    return {"dynamic_ncols": True, "disable": not devices.leads()}


def solve(label: str, solver: Callable[[Progress], Solution]) -> Solution:
    """Calls a solver of a flow with a progress bar."""
    shape = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
    with tqdm(total=1.0, desc=label, bar_format=shape, **_bar()) as bar:
        solution = interruption.call(
            lambda: solver(lambda share: bar.update(max(0.0, float(share) - bar.n)))
        )
        bar.update(1.0 - bar.n)
    return solution
