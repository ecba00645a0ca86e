"""Structures of what is kept of a run: pytrees whose leaves say what arrays there have to be.

Checkpoints hold arrays only; what they are put together to is known here, and nothing that does
not fit is. They may be a stranger's, or another version's.
"""

import dataclasses
import typing
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

import gf_jax
from experiments.process.mistakes import UsageError
from gf_jax.descent.schedule import Schedule
from gf_jax.descent.segments import Trajectory
from gf_jax.problems.networks import Params
from gf_jax.study.fields import BOOLEANS, FLOATS, INTEGERS, MOST, Numbers, Sizes, check_numbers
from gf_jax.study.files import printable
from gf_jax.study.record import METRICS, RUN

PyTree = Any
Leaves = Sequence[np.ndarray]

# Of single numbers.
_SINGLE: dict[Any, Any] = {
    int: Numbers((), INTEGERS, least=0, most=MOST),
    bool: Numbers((), BOOLEANS, least=0, most=1),
    float: Numbers((), unknown=True),
}


def of(
    kind: type, params: PyTree = None, stack: Sequence[str] = ("times",), **sizes: int | None
) -> Any:
    """The structure of a record, as the annotations of its fields have it.

    Args:
      kind: a record or named tuple of arrays, numbers, and such; what has no annotation of its own
        is stacked parameters.
      params: a single point, whose leaves those of stacked parameters are like.
      stack: axes in front of these; they take the place of the first of them in other arrays.
      sizes: lengths of axes by their name, None of one that is not there; of others the length
        is found.
    """

    def axes(names: Sequence[str]) -> tuple[Any, ...]:
        whole = [each for name in names for each in (stack if name == stack[0] else [name])]
        known = [sizes.get(name, name) for name in whole]
        return tuple(axis for axis in known if axis is not None)

    def field(hint: Any) -> Any:
        if hasattr(hint, "_fields") or dataclasses.is_dataclass(hint):
            return of(hint, params, stack, **sizes)
        if hint in _SINGLE:
            return _SINGLE[hint]
        if hasattr(hint, "dim_str"):
            dtypes = next(each for each in (FLOATS, INTEGERS, BOOLEANS) if each[0] in hint.dtypes)
            names = axes(hint.dim_str.split())
            if dtypes is FLOATS:
                return Numbers(names, dtypes, unknown=True)
            return Numbers(names, dtypes, least=0, most=MOST if dtypes is INTEGERS else 1)
        front = axes(stack[:1])
        return jax.tree.map(lambda leaf: Numbers((*front, *leaf.shape), unknown=True), params)

    return kind(*map(field, typing.get_type_hints(kind).values()))


def trajectory(params: PyTree, times: int) -> Trajectory:
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
      params: the initial point; from several starts, or of several draws, a stack.
      schedule: of the run.
      starts: how many starts or draws there are, 0 for a single one.

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


def _numbers(*axes: str | int) -> Any:
    return Numbers(axes, unknown=True)
