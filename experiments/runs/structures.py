"""Structures of what is kept of a run: pytrees whose leaves say what arrays there have to be.

Checkpoints hold arrays only; what they are put together to is known here, and nothing that does
not fit is. They may be a stranger's, or another version's.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

import gf_jax
from experiments.cli.configuration import UsageError
from gf_jax.descent.schedule import Schedule
from gf_jax.descent.segments import Trajectory
from gf_jax.problems.networks import Params
from gf_jax.study.fields import BOOLEANS, INTEGERS, MOST, Numbers, Sizes, check_numbers
from gf_jax.study.files import printable
from gf_jax.study.record import METRICS, RUN

PyTree = Any
Leaves = Sequence[np.ndarray]

_COUNT: Any = Numbers((), INTEGERS, least=0, most=MOST)
_WHETHER: Any = Numbers((), BOOLEANS, least=0, most=1)


def flow(params: Params, times: int) -> gf_jax.Flow:
    """The structure of a flow from a point, at so many times."""
    one, distance = _numbers(times), _numbers(times, least=0)
    stack = jax.tree.map(lambda leaf: _numbers(times, *leaf.shape), params)
    statistics = gf_jax.flow.Statistics(_COUNT, _COUNT, _COUNT, _WHETHER, _COUNT)
    return gf_jax.Flow(distance, stack, one, distance, statistics)


def prediction(params: Params, times: int, lanes: int) -> gf_jax.Prediction:
    """The structure of a prediction from a point, at so many times, for so many step sizes."""
    gaps = _numbers(times, lanes, least=0)
    sizes = _numbers(lanes, least=0)
    return gf_jax.Prediction(
        flow(params, times), sizes, *(gaps,) * 4, slides=_WHETHER, jumps=_WHETHER, kinks=_COUNT
    )


def trajectory(params: Params, times: int) -> Trajectory:
    """The structure of a whole trajectory from a point, with so many snapshots."""
    metrics = gf_jax.Metrics(*(_numbers("iterations", "lanes"),) * 4)
    counted: Any = Numbers(("iterations",), INTEGERS, least=0, most=MOST)
    snapped: Any = Numbers((times,), INTEGERS, least=0, most=MOST)
    stack = jax.tree.map(lambda leaf: _numbers(times, "lanes", *leaf.shape), params)
    return Trajectory(counted, metrics, snapped, stack)


def trajectories(
    label: str,
    kept: Sequence[Sequence[np.ndarray]],
    params: Params,
    schedule: Schedule,
    starts: int,
) -> list[Trajectory]:
    """The parts of a trajectory that were kept.

    Args:
      label: what they are parts of.
      kept: the arrays of every part.
      params: the initial point; from several starts their stack.
      schedule: of the run.
      starts: how many there are, 0 for a single one.

    Raises:
      UsageError: if they are not the beginning of such a run.
    """
    sizes: Sizes = {"seeds": starts or None, "lanes": len(schedule.lanes)}
    snapshots = jax.tree.map(
        lambda leaf: _numbers("snapshots", "seeds", "lanes", *leaf.shape[bool(starts) :]), params
    )
    fields: dict[str, Any] = {**RUN.fields, **METRICS.fields}
    metrics = gf_jax.Metrics(*map(fields.__getitem__, METRICS.fields))
    like = Trajectory(fields["iterations"], metrics, fields["snapshot_iterations"], snapshots)
    parts: list[Trajectory] = [restored(label, like, leaves, sizes) for leaves in kept]
    recorded = [at for part in parts for at in part.iterations.tolist()]
    snapped = [at for part in parts for at in part.snapshot_iterations.tolist()]
    wanted = schedule.snapshot_iterations
    whole = recorded == list(range(len(recorded))) and all(len(p.iterations) for p in parts)
    if not whole or snapped != wanted[wanted < len(recorded)].tolist():
        raise other(label, "iterations are missing")
    return parts


def restored(label: str, like: PyTree, leaves: Leaves, sizes: Sizes | None = None) -> Any:
    """What was kept, put together.

    Args:
      label: what it is.
      like: its structure.
      leaves: its arrays.
      sizes: lengths of axes that the structure names.

    Raises:
      UsageError: if the arrays are not of that structure.
    """
    declared, structure = jax.tree.flatten_with_path(like)
    known = dict(sizes or {})
    try:
        if len(leaves) != len(declared):
            raise ValueError(f"{len(leaves)} arrays, wanted are {len(declared)}")
        for leaf, (path, numbers) in zip(leaves, declared, strict=True):
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            check_numbers(name, leaf, numbers, known)
    except ValueError as error:
        raise other(label, error) from None
    return jax.tree.unflatten(structure, [leaf if leaf.ndim else leaf.item() for leaf in leaves])


def other(label: str, reason: object) -> UsageError:
    """The mistake of resuming a run from checkpoints that are not its own."""
    return UsageError(
        f"--resume: checkpoints hold no {label} of this run ({printable(reason)}); take the "
        "version of gf_jax that wrote them, or start anew"
    )


def _numbers(*axes: str | int, least: float = -np.inf) -> Any:
    return Numbers(axes, least=least, unknown=True)
