"""Losses and weight-space distances of lanes on stacked trajectories.

Every distance is the Euclidean norm over *all* parameters of a pytree, biases
included. Stacks carry their axes first: a lane axis, or snapshots then lanes.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from gf_jax import stacks
from gf_jax.records import record

PyTree = Any
AnyArray = Any  # a JAX array while computed, a NumPy array once recorded

WELL_BELOW = 10.0  # a distance counts as measured from this many times its error on


@record
class Metrics:
    """What is recorded of every lane at one base iteration.

    Attributes:
      loss: f at the iterate that is compared.
      distance_to_base: distance between the lane and lane 0 at the same time.
      distance_from_init: distance between the lane and the common initial point.
      gradient_norm: norm of the gradient of f at the iterate.

    Example:
      >>> def f(w):
      ...     return jnp.sum((w**2 - 1) ** 2)
      >>> w = jnp.array([0.1, 1.5])
      >>> run = gf_jax.gradient_descent(f, w, step_size=0.01, ratios=(2,), iterations=10)
      >>> run.metrics.distance_to_base[-1].round(4)
      array([0.    , 0.0066], dtype=float32)
    """

    loss: Float[AnyArray, "*stack lanes"]
    distance_to_base: Float[AnyArray, "*stack lanes"]
    distance_from_init: Float[AnyArray, "*stack lanes"]
    gradient_norm: Float[AnyArray, "*stack lanes"]


def distance(params: PyTree, reference: PyTree, *, stack_axes: int = 0) -> Float[Array, "*stack"]:
    """Euclidean distance over all parameters, for single or stacked pytrees.

    Args:
      params: pytree of arrays whose first ``stack_axes`` axes enumerate points,
        for example (snapshots, lanes, ...).
      reference: pytree of the same structure, whose leaves broadcast against
        those of ``params``: a single point, or a stack with axes of length one.
      stack_axes: how many leading axes of ``params`` are not parameters.

    Returns:
      Array of the shape of the stack; a scalar for ``stack_axes=0``.

    Raises:
      ValueError: if the structures differ, a leaf has fewer than ``stack_axes``
        axes, or a reference leaf does not broadcast to the leaf it is
        compared with.

    Example:
      >>> gap = gf_jax.distance({"a": jnp.ones(3), "b": 1.0}, {"a": jnp.zeros(3), "b": 0.0})
      >>> float(gap)
      2.0
    """
    _check_trees(params, reference, stack_axes)
    return _norm(jax.tree.map(jnp.subtract, params, reference), stack_axes)


def precise_distance(params: PyTree, reference: PyTree, stack_axes: int) -> np.ndarray:
    """As ``distance``, of arrays on the host, in float64; nothing is compiled for it.

    Raises:
      ValueError: as ``distance``.
    """
    _check_trees(params, reference, stack_axes)

    def squares(leaf: Any, other: Any) -> np.ndarray:
        difference = np.asarray(leaf, np.float64) - np.asarray(other, np.float64)
        stacked, own = difference.shape[:stack_axes], difference.shape[stack_axes:]
        return np.square(difference).reshape(*stacked, math.prod(own)).sum(axis=-1)

    def of_block(params: list[Any], reference: list[Any]) -> np.ndarray:
        pairs = zip(params, reference, strict=True)
        return np.sqrt(sum(squares(leaf, other) for leaf, other in pairs))

    leaves, others = (list(map(np.asarray, jax.tree.leaves(t))) for t in (params, reference))
    with np.errstate(invalid="ignore", over="ignore"):  # of lanes that diverged
        if not stack_axes or not leaves:
            return of_block(leaves, others)
        return stacks.along(of_block, leaves, list(map(_at_times, others, leaves)))


def _at_times(reference: np.ndarray, leaf: np.ndarray) -> np.ndarray:
    """A reference at every time of a leaf, by repeating it where it has none; nothing is copied."""
    aligned = reference.reshape(*(1,) * (leaf.ndim - reference.ndim), *reference.shape)
    return np.broadcast_to(aligned, (len(leaf), *aligned.shape[1:]))


def _check_trees(params: PyTree, reference: PyTree, stack_axes: int) -> None:
    tree: Any = jax.tree.structure(params)
    other_tree: Any = jax.tree.structure(reference)
    if tree != other_tree:
        raise ValueError(f"reference: tree {other_tree} differs from that of params, {tree}")
    for (path, leaf), other in zip(
        jax.tree.leaves_with_path(params), jax.tree.leaves(reference), strict=True
    ):
        _check_leaf(jax.tree_util.keystr(path), jnp.shape(leaf), jnp.shape(other), stack_axes)


def measure(
    params: PyTree,
    losses: Float[Array, " lanes"],
    gradients: PyTree,
    initial_params: PyTree,
    *,
    residual: PyTree = None,
) -> Metrics:
    """Metrics of stacked lanes, of which the first is the base run.

    Args:
      params: parameters with a leading lane axis.
      losses: f of every lane, shape (lanes,).
      gradients: gradients with a leading lane axis.
      initial_params: the common initial point, without lane axis.
      residual: what rounding has dropped from the parameters, of their shapes; it
        counts in every distance. None where it is not kept.

    Example:
      >>> lanes = jnp.array([[1.0, 0.0], [1.0, 0.1]])
      >>> gf_jax.comparison.measure(lanes, jnp.zeros(2), lanes, jnp.zeros(2)).distance_to_base
      Array([0. , 0.1], dtype=float32)
    """

    def norm(differences: PyTree, residual: PyTree) -> Array:
        if residual is not None:
            differences = jax.tree.map(jnp.add, differences, residual)
        return _norm(differences, 1)

    def from_base(stack: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: leaf - leaf[:1], stack)

    return Metrics(
        loss=losses,
        distance_to_base=norm(from_base(params), from_base(residual)),
        distance_from_init=norm(jax.tree.map(jnp.subtract, params, initial_params), residual),
        gradient_norm=_norm(gradients, 1),
    )


class FlowComparison(NamedTuple):
    """How far lanes stand from gradient flow at equal times, as NumPy arrays.

    Attributes:
      distance: Euclidean distance over all parameters.
      resolution: error of that distance: of the flow, of the rounding of the snapshots where
        they hold fewer digits than the flow, and of all rounding on the way to them.
      measured: whether the distance is well above its resolution, ten times or more.
      order: slope of log distance against log step size over the measured lanes, 1
        for descent on a smooth loss; NaN with fewer than two.

    Example:
      >>> def f(w):
      ...     return jnp.sum((w**2 - 1) ** 2)
      >>> w = jnp.array([0.1, 1.5])
      >>> run = gf_jax.gradient_descent(f, w, step_size=0.01, ratios=(2,), iterations=10)
      >>> flow = gf_jax.gradient_flow(f, w, run.snapshot_times)
      >>> found = gf_jax.compare_with_flow(run.snapshots, flow.params, flow.error, run.step_sizes)
      >>> found.measured[-1], float(found.order[-1].round(2))
      (array([ True,  True]), 1.04)
    """

    distance: Float[np.ndarray, "snapshots lanes"]
    resolution: Float[np.ndarray, "snapshots lanes"]
    measured: Bool[np.ndarray, "snapshots lanes"]
    order: Float[np.ndarray, " snapshots"]


def compare_with_flow(
    snapshots: PyTree,
    flow_params: PyTree,
    flow_error: Float[np.ndarray, " snapshots"],
    step_sizes: Float[np.ndarray, " lanes"],
    *,
    rounding: Float[np.ndarray, "snapshots lanes"] | None = None,
) -> FlowComparison:
    """Measures every lane against gradient flow.

    Args:
      snapshots: stacked parameters, leaves of shape (snapshots, lanes, ...).
      flow_params: the flow at the same times, leaves of shape (snapshots, ...).
      flow_error: Euclidean error of the flow at these times.
      step_sizes: step size of every lane.
      rounding: how far rounding has moved the lanes before; None is not at all.

    Raises:
      ValueError: if the trees or shapes do not match.

    Example:
      >>> def f(w):
      ...     return jnp.sum((w**2 - 1) ** 2)
      >>> w = jnp.array([0.1, 1.5])
      >>> run = gf_jax.gradient_descent(f, w, step_size=0.01, ratios=(2,), iterations=10)
      >>> flow = gf_jax.gradient_flow(f, w, run.snapshot_times)
      >>> found = gf_jax.compare_with_flow(run.snapshots, flow.params, flow.error, run.step_sizes)
      >>> found.distance[-1].round(4)
      array([0.0129, 0.0063])
    """
    flow = jax.tree.map(lambda leaf: np.expand_dims(leaf, 1), flow_params)
    gaps = precise_distance(snapshots, flow, 2)
    resolution = np.hypot(np.asarray(flow_error)[:, None], precision_of(snapshots))
    if rounding is not None:
        resolution = np.hypot(resolution, rounding)
    measured = np.isfinite(gaps) & (gaps >= WELL_BELOW * resolution)
    return FlowComparison(gaps, resolution, measured, _order(gaps, measured, step_sizes))


def precision_of(stack: PyTree) -> Float[np.ndarray, "snapshots lanes"]:
    """Root mean square of what rounding to the leaves' own precision changes."""

    def squares(leaf: np.ndarray) -> np.ndarray:
        spacing = np.spacing(np.abs(leaf)).astype(np.float64)
        return np.square(spacing).reshape(*leaf.shape[:2], -1).sum(axis=-1) / 12

    def of_block(leaves: list[np.ndarray]) -> np.ndarray:
        return np.sqrt(sum(map(squares, leaves)))

    with np.errstate(invalid="ignore"):  # a lane that diverged has no spacing
        return stacks.along(of_block, list(map(np.asarray, jax.tree.leaves(stack))))


def _order(gaps: np.ndarray, measured: np.ndarray, step_sizes: np.ndarray) -> np.ndarray:
    """Least-squares slope in every row, over the entries that are measured."""
    logs = np.broadcast_to(np.log(step_sizes), gaps.shape)
    count = measured.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        x = logs - (logs * measured).sum(axis=1, keepdims=True) / count[:, None]
        y = np.where(measured, np.log(np.where(measured, gaps, 1.0)), 0.0)
        slope = (x * y * measured).sum(axis=1) / (np.square(x) * measured).sum(axis=1)
    return np.where(count >= 2, slope, np.nan)


def _norm(tree: PyTree, stack_axes: int) -> Array:
    norm = optax.tree.norm
    for _ in range(stack_axes):
        norm = jax.vmap(norm)
    return norm(tree)


def _check_leaf(
    name: str, shape: tuple[int, ...], reference: tuple[int, ...], stack_axes: int
) -> None:
    """Raises ValueError unless the reference broadcasts to the stack.

    It may be repeated along the axes of the stack. Along those of a parameter it may not: a
    reference with another number of weights is a mistake, even where NumPy would broadcast it.
    """
    if len(shape) < stack_axes:
        raise ValueError(f"params{name}: shape {shape} has no {stack_axes} stack axes")
    stack, point = shape[:stack_axes], shape[stack_axes:]
    split = max(0, len(reference) - len(point))
    aligned = zip(reversed(reference[:split]), reversed(stack), strict=False)
    if (
        reference[split:] != point
        or split > stack_axes
        or any(size not in (1, wanted) for size, wanted in aligned)
    ):
        raise ValueError(
            f"reference{name}: shape {reference} does not match {shape}; "
            f"accepted is one point of shape {point}, or a stack that broadcasts to {stack}"
        )
