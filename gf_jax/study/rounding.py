"""What rounding did to runs of descent, as runs in float64 tell it."""

from typing import Any, NamedTuple

import jax
import numpy as np

from gf_jax import stacks
from gf_jax.comparison import precise_distance
from gf_jax.descent.schedule import Schedule
from gf_jax.descent.segments import Trajectory
from gf_jax.program.arithmetic import flow_arithmetic
from gf_jax.program.program import Program
from gf_jax.study.record import Run
from gf_jax.study.solving import FAILURES, Solve, descend, missing, work_of

PyTree = Any

OF_OTHERS = 2.0  # rounding of the other runs, over that of the base run
LONG = 1000  # iterations, beyond which progress is told in between
SAME = 0.01  # relative difference between two precisions at the start that may be rounding


class Rounding(NamedTuple):
    """What rounding did to the runs, as runs in float64 tell it.

    Attributes:
      moved: how far it has moved every lane, shape (snapshots, lanes).
      loss: losses of the lanes that were run in float64, the first ones; shape (snapshots, those).
    """

    moved: np.ndarray
    loss: np.ndarray


def rounding_of(
    program: Program,
    params: PyTree,
    run: Run,
    snapshots: PyTree,
    solve: Solve,
    descent: dict[str, Any],
    doubts: list[str],
) -> Rounding | None:
    """How far rounding has moved the runs, and their losses without it; None in float64.

    All runs are made once more in float64, where that costs next to nothing or updates are not
    compensated, so that rounding grows with the number of steps. Else the base run is; rounding
    of the others is taken for twice as much, as smaller steps may be more sensitive to it.
    """
    dtypes = {np.dtype(leaf.dtype) for leaf in jax.tree.leaves(snapshots)}
    if dtypes == {np.dtype(np.float64)}:
        return None
    double = flow_arithmetic()
    if double.dtype != "float64" or double.on_host:
        # Whole runs on the host would take far longer than they did.
        doubts.append("What rounding does to the gradients is not known, without float64.")
        return None
    compensated = descent.get("arithmetic", "compensated") == "compensated"
    base_alone = compensated and work_of(run) > program.pure.cheap
    options: dict[str, Any] = {"arithmetic": "float64"}
    options |= {key: descent[key] for key in ("optimizer", "batches") if key in descent}
    at_once = len(run.iterations) <= LONG and 2 * stacks.size(snapshots) <= stacks.LARGE
    schedule = Schedule(
        run.step_size,
        () if base_alone else run.ratios,
        int(run.iterations[-1]),
        tuple(run.snapshot_iterations.tolist()),
        1 if at_once else None,
    )
    try:
        exact = solve("rounding", lambda tell: descend(program, params, schedule, tell, options))
    except FAILURES as error:
        doubts.append(missing("rounding of gradients", error))
        return None
    _check_same(run, exact, doubts)
    lanes = len(schedule.lanes)
    made = jax.tree.map(lambda leaf: np.asarray(leaf)[:, :lanes], snapshots)
    count = min(len(exact.snapshot_iterations), len(run.snapshot_iterations))
    moved = precise_distance(
        jax.tree.map(lambda leaf: leaf[:count], made),
        jax.tree.map(lambda leaf: leaf[:count], exact.snapshots),
        2,
    )
    whole = np.full((len(run.snapshot_iterations), len(run.ratios)), np.nan)
    whole[:count] = moved
    if base_alone:
        whole[:, 1:] *= OF_OTHERS
    loss = np.full((len(whole), lanes), np.nan)
    at_snapshots = np.isin(exact.iterations, exact.snapshot_iterations)
    loss[:count] = exact.metrics.loss[at_snapshots][:count]
    return Rounding(whole, loss)


def _check_same(run: Run, exact: Trajectory, doubts: list[str]) -> None:
    """Doubts that f is the same in both precisions, if it is not at the start."""
    for name in ("loss", "gradient_norm"):
        narrow, wide = (
            float(getattr(metrics, name)[0, 0]) for metrics in (run.metrics, exact.metrics)
        )
        if abs(narrow - wide) > SAME * abs(wide) + float(np.finfo(np.float32).tiny):
            what = "f itself" if name == "loss" else "the norm of its gradient"
            doubts.append(
                f"At the start {what} is {narrow:.6g} in the precision of the parameters and "
                f'{wide:.6g} in float64: rounding hides it; take arithmetic="float64".'
            )
