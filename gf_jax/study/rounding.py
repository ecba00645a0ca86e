"""What rounding did to runs of descent, as runs in float64 tell it."""

from typing import Any, NamedTuple

import jax
import numpy as np

from gf_jax import stacks
from gf_jax.comparison import precise_distance, precision_of
from gf_jax.descent.schedule import Schedule
from gf_jax.descent.segments import Trajectory
from gf_jax.flow.misjudged import misjudged
from gf_jax.flow.problem import FlowProblem
from gf_jax.program.arithmetic import flow_arithmetic
from gf_jax.program.program import Program
from gf_jax.study.record import Run
from gf_jax.study.solving import FAILURES, Solve, descend, missing, work_of

PyTree = Any

OF_OTHERS = 2.0  # rounding of runs that were not made again, over that of the base run
RARE = 6.0  # what is told of what is left to chance, over its root mean square: thrice that, and
# as much again since flows magnify it, by 2.5 in half a unit of time on the paper's ReLU network
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
    problem: FlowProblem | None,
) -> Rounding | None:
    """How far rounding has moved the runs, and their losses without it; None in float64.

    All runs are made once more in float64, where that costs next to nothing or updates are not
    compensated, so that rounding grows with the number of steps. Else the base run is; rounding
    of the others is taken for twice as much, as smaller steps may be more sensitive to it. With
    kinks it is a matter of chance, see ``gf_jax.flow.misjudged``, and several times what is
    expected is told of them.
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
    lanes = 1 if compensated and work_of(run) > program.pure.cheap else len(run.ratios)
    options: dict[str, Any] = {"arithmetic": "float64"}
    options |= {key: descent[key] for key in ("optimizer", "batches") if key in descent}
    at_once = len(run.iterations) <= LONG and 2 * stacks.size(snapshots) <= stacks.LARGE
    schedule = Schedule(
        run.step_size,
        tuple(run.ratios[:lanes]),
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
    lanes = exact.metrics.loss.shape[1]  # of one that was kept there may be others
    made = jax.tree.map(lambda leaf: np.asarray(leaf)[:, :lanes], snapshots)
    count = min(len(exact.snapshot_iterations), len(run.snapshot_iterations))
    moved = precise_distance(
        jax.tree.map(lambda leaf: leaf[:count], made),
        jax.tree.map(lambda leaf: leaf[:count], exact.snapshots),
        2,
    )
    whole = np.full((len(run.snapshot_iterations), len(run.ratios)), np.nan)
    whole[:count, :lanes] = moved
    if lanes < len(run.ratios):
        chance = None
        if problem is not None:
            chance = np.full(len(whole), np.nan)
            first = jax.tree.map(lambda leaf: leaf[:count, 0], exact.snapshots)
            times = problem._replace(times=problem.times[:count])
            chance[:count] = misjudged(times, first, snapshots, run.step_size)
        ratios = np.asarray(run.ratios[lanes:], float)
        least = precision_of(snapshots)[:, lanes:]
        whole[:, lanes:] = _of_others(whole[:, 0], chance, least, ratios)
    loss = np.full((len(whole), lanes), np.nan)
    at_snapshots = np.isin(exact.iterations, exact.snapshot_iterations)
    loss[:count] = exact.metrics.loss[at_snapshots][:count]
    return Rounding(whole, loss)


def _of_others(
    moved: np.ndarray, chance: np.ndarray | None, least: np.ndarray, ratios: np.ndarray
) -> np.ndarray:
    """How far rounding may have moved the runs that were not made again.

    A smooth gradient is rounded alike whatever the step size is, so that the base run tells it.
    With kinks that run may have met more of them, or less, than others, and what it does not owe to
    chance alone counts for all.

    Args:
      moved: how far rounding moved the base run, shape (snapshots,).
      chance: root mean square of what misjudged kinks do to it, likewise; None without kinks.
      least: what the snapshots' own precision drops, shape (snapshots, others).
      ratios: of the others.
    """
    if chance is None:
        return OF_OTHERS * np.repeat(moved[:, None], len(ratios), axis=1)
    rare = RARE * chance[:, None]
    common = np.where(moved[:, None] > np.hypot(rare, OF_OTHERS * least), moved[:, None], 0.0)
    told = np.hypot(rare / np.sqrt(ratios), OF_OTHERS * least)
    return np.maximum(told, OF_OTHERS * common)


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
