"""Losses and weight-space distances of lanes on stacked trajectories.

Every distance is the Euclidean norm over *all* parameters of a pytree, biases
included. Stacks carry their axes first: a lane axis, or snapshots then lanes.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

PyTree = Any
AnyArray = Any  # a JAX array while computed, a NumPy array once recorded


class Metrics(NamedTuple):
    """What is recorded of every lane at one base iteration.

    Attributes:
      loss: f at the iterate that is compared.
      distance_to_base: distance between the lane and lane 0 at the same time.
      distance_from_init: distance between the lane and the common initial point.
      gradient_norm: norm of the gradient of f at the iterate.
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
    """
    tree: Any = jax.tree.structure(params)
    other_tree: Any = jax.tree.structure(reference)
    if tree != other_tree:
        raise ValueError(f"reference: tree {other_tree} differs from that of params, {tree}")
    for (path, leaf), other in zip(
        jax.tree.leaves_with_path(params), jax.tree.leaves(reference), strict=True
    ):
        _check_leaf(jax.tree_util.keystr(path), jnp.shape(leaf), jnp.shape(other), stack_axes)
    return _norm(jax.tree.map(jnp.subtract, params, reference), stack_axes)


def measure(
    params: PyTree, losses: Float[Array, " lanes"], gradients: PyTree, initial_params: PyTree
) -> Metrics:
    """Metrics of stacked lanes, of which the first is the base run.

    Args:
      params: parameters with a leading lane axis.
      losses: f of every lane, shape (lanes,).
      gradients: gradients with a leading lane axis.
      initial_params: the common initial point, without lane axis.
    """
    base = jax.tree.map(lambda leaf: leaf[:1], params)
    return Metrics(
        loss=losses,
        distance_to_base=distance(params, base, stack_axes=1),
        distance_from_init=distance(params, initial_params, stack_axes=1),
        gradient_norm=_norm(gradients, 1),
    )


def _norm(tree: PyTree, stack_axes: int) -> Array:
    norm = optax.tree.norm
    for _ in range(stack_axes):
        norm = jax.vmap(norm)
    return norm(tree)


def _check_leaf(
    name: str, shape: tuple[int, ...], reference: tuple[int, ...], stack_axes: int
) -> None:
    """Holds the reference to whole points: its own parameter axes are never repeated."""
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
