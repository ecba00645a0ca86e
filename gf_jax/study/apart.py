"""Runs that have taken another side of a kink than the flow, whose sides lead apart."""

from typing import Any

import jax
import numpy as np

from gf_jax.comparison import FlowComparison
from gf_jax.flow import sides
from gf_jax.flow.problem import FlowProblem
from gf_jax.study.record import Run

PyTree = Any

OUT_OF_PROPORTION = 1.5  # distances over step sizes, the largest over the smallest


def apart(
    problem: FlowProblem, run: Run, snapshots: PyTree, flow: PyTree, compared: FlowComparison
) -> list[str]:
    """Which runs a kink parts from the flow, and which kink has most to do with it, in sentences.

    Only runs are looked at whose distance is measured at the end, and where distances are out of
    proportion to the step sizes, or there is but one.

    Args:
      problem: the loss and the times of the snapshots.
      run: of plain descent.
      snapshots: its parameters, leaves of shape (snapshots, lanes, ...).
      flow: the flow at these times, leaves of shape (snapshots, ...).
      compared: both compared.
    """
    measured = np.flatnonzero(compared.measured[-1])
    shares = compared.distance[-1, measured] / run.step_sizes[measured]
    if not len(measured) or (
        len(measured) > 1 and np.ptp(np.log(shares)) < np.log(OUT_OF_PROPORTION)
    ):
        return []
    found: dict[str, list[tuple[float, float]]] = {}
    for lane in measured:
        points = jax.tree.map(lambda leaf, lane=lane: leaf[:, lane], snapshots)
        partings = sides.partings(problem, points, flow)
        if partings:
            most = max(partings, key=lambda parting: parting.effect)
            found.setdefault(most.name, []).append((run.step_sizes[lane], most.time))
    return [_sentence(name, lanes) for name, lanes in found.items()]


def _sentence(name: str, lanes: list[tuple[float, float]]) -> str:
    many = len(lanes) > 1
    sizes = ", ".join(f"{size:.4g}" for size, _ in lanes)
    plural = "s" if many else ""
    begin = min(time for _, time in lanes)
    return (
        f"From time {begin:.4g} on the run{plural} with step size{plural} {sizes} "
        f"{'are' if many else 'is'} on the other side of a kink than the flow, {name}, whose sides "
        "lead apart: the distance is that of the two sides, and not in proportion to the step size."
    )
