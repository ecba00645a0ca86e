"""How a study calls its solvers, and what it says where one of them fails."""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import numpy as np

from gf_jax.descent.descent import descent_segments
from gf_jax.descent.gathering import Gathering
from gf_jax.descent.schedule import Schedule
from gf_jax.descent.segments import Trajectory
from gf_jax.flow.problem import Progress
from gf_jax.program.program import Loss, Program
from gf_jax.study.record import Run, clean_label

PyTree = Any
Solution = TypeVar("Solution")

# What the user's f, JAX and the solvers may raise; all else, such as a full disk, is not of f.
FAILURES = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class Solve(Protocol):
    """Calls a solver, which takes a function to be told its progress, under a label."""

    def __call__(self, label: str, solver: Callable[[Progress | None], Solution], /) -> Solution:
        """Its solution."""


def descend(
    f: Loss | Program,
    params: PyTree,
    schedule: Schedule,
    tell: Progress | None,
    options: dict[str, Any],
) -> Trajectory:
    """Descent, up to the segment in which the last lane diverges."""
    gathering = Gathering(schedule)
    for part in descent_segments(f, params, schedule, **options):
        gathering.add(part)
        if tell is not None:
            tell(part.iterations[-1] / schedule.iterations)
        if not np.isfinite(part.metrics.loss[-1]).any():
            break
    return gathering.trajectory()


def work_of(run: Run) -> int:
    """Gradients that the runs took."""
    return int(run.iterations[-1]) * sum(run.ratios)


def missing(what: str, error: Exception) -> str:
    """A doubt: what there is not, and the first line of why."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"There is no {what}: {clean_label(reason)}."
