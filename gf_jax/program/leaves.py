"""Which leaves of a model move, and which are held fixed.

A model as users have it holds more than weights: activation functions, sizes, names, random keys.
Only arrays of floating-point numbers move; everything else is handed back to f as it was. A Python
float moves where it stands in a dictionary, list or tuple, as ``jax.grad`` has it; as an attribute
of a model, such as a dropout rate, it is held fixed, as ``equinox.is_inexact_array`` has it.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any

CONTAINERS = (dict, list, tuple)  # Python's own; all else is a model or a leaf


def partition(params: PyTree) -> tuple[PyTree, PyTree]:
    """The leaves that move and those that are held fixed, each with None for the others.

    ``equinox.combine`` puts both together again.

    Raises:
      ValueError: if no leaf moves, or one is an array of complex numbers.
    """
    moves = jax.tree.map(_moves, params, is_leaf=lambda node: not isinstance(node, CONTAINERS))
    moving, held = eqx.partition(params, moves)
    for path, leaf in jax.tree.leaves_with_path(held):
        if _is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise ValueError(
                f"params{jax.tree_util.keystr(path)}: dtype {leaf.dtype}; accepted are "
                "floating-point arrays; give the real and the imaginary part as two of them"
            )
    if not jax.tree.leaves(moving):
        raise ValueError(_nothing_moves(held))
    return moving, held


def same(held: PyTree, other: PyTree) -> bool:
    """Whether the leaves held fixed in two models are the same."""
    structure: Any = jax.tree.structure(held)
    others: Any = jax.tree.structure(other)
    return structure == others and all(
        map(_same_leaf, jax.tree.leaves(held), jax.tree.leaves(other))
    )


def _moves(node: Any) -> PyTree:
    """Which leaves of a node move that is none of Python's own containers."""
    if isinstance(node, float):
        return True
    return jax.tree.map(
        lambda leaf: _is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating), node
    )


def _is_array(leaf: Any) -> bool:
    """Whether it is one, or tells of one; a model of flax.linen has a dtype too."""
    return hasattr(leaf, "dtype") and hasattr(leaf, "shape")


def _nothing_moves(held: PyTree) -> str:
    leaves = jax.tree.leaves_with_path(held)
    if not leaves:
        return "params: the pytree holds no arrays"
    path, leaf = leaves[0]
    found = f"dtype {leaf.dtype}" if _is_array(leaf) else f"type {type(leaf).__name__}"
    return (
        f"params{jax.tree_util.keystr(path)}: {found}, and no leaf is a floating-point array; "
        "accepted is a pytree with at least one. Of a flax.linen model give what init returns; of "
        "a flax.nnx model that is no pytree the State of nnx.split(model, nnx.Param, ...), and "
        "nnx.merge it in f; of numbers jnp.array(1.0)"
    )


def _same_leaf(leaf: Any, other: Any) -> bool:
    if leaf is other:
        return True
    if type(leaf) is not type(other):
        return False
    if _is_array(leaf):
        if leaf.dtype != other.dtype or np.shape(leaf) != np.shape(other):
            return False
        return bool((leaf == other).all())  # of random keys, too
    return bool(leaf == other)
