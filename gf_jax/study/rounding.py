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
      loss_by_chance: by how much misjudged kinks may have changed the losses of the others, shape
        (snapshots, others); 0 without kinks.
    """

    moved: np.ndarray
    loss: np.ndarray
    loss_by_chance: np.ndarray


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
    loss = np.full((len(whole), lanes), np.nan)
    at_snapshots = np.isin(exact.iterations, exact.snapshot_iterations)
    loss[:count] = exact.metrics.loss[at_snapshots][:count]
    loss_by_chance = np.zeros((len(whole), len(run.ratios) - lanes))
    if lanes == len(run.ratios):
        return Rounding(whole, loss, loss_by_chance)
    if problem is None:
        whole[:, lanes:] = OF_OTHERS * whole[:, :1]
        return Rounding(whole, loss, loss_by_chance)
    first = jax.tree.map(lambda leaf: leaf[:count, 0], exact.snapshots)
    reached = problem._replace(times=problem.times[:count])
    expected = solve(
        "rounding at kinks",
        lambda tell: misjudged(reached, first, snapshots, run.step_size, tell),
    )
    roots = np.sqrt(np.asarray(run.ratios[lanes:], float))
    least = precision_of(snapshots)[:count, lanes:]
    whole[:count, lanes:] = _of_others(whole[:count, 0], expected.moved, least, roots)
    loss_by_chance[:count] = RARE * expected.loss[:, None] / roots
    return Rounding(whole, loss, loss_by_chance)


def _of_others(
    moved: np.ndarray, expected: np.ndarray, least: np.ndarray, roots: np.ndarray
) -> np.ndarray:
    """How far misjudged kinks may have moved the runs that were not made again.

    What the base run does not owe to chance alone counts for all.

    Args:
      moved: how far rounding moved the base run, shape (snapshots,).
      expected: root mean square of what misjudged kinks do to it, likewise.
      least: what the snapshots' own precision drops, shape (snapshots, others).
      roots: of the ratios of the others.
    """
    rare = RARE * expected[:, None]
    common = np.where(moved[:, None] > np.hypot(rare, OF_OTHERS * least), moved[:, None], 0.0)
    return np.maximum(np.hypot(rare / roots, OF_OTHERS * least), OF_OTHERS * common)


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
