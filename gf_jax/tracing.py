"""A loss as a program: checked, and split from the data that it closes over."""

import gc
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

PyTree = Any
Loss = Callable[[PyTree], Array]


def check_loss(f: Loss, params: PyTree) -> None:
    """Raises ValueError unless f maps params to a scalar, and JAX can differentiate it."""
    if not jax.tree.leaves(params):
        raise ValueError("params: the pytree holds no arrays")
    loss = jax.eval_shape(f, params)
    if not (
        isinstance(loss, jax.ShapeDtypeStruct)
        and loss.shape == ()
        and jnp.issubdtype(loss.dtype, jnp.floating)
    ):
        raise ValueError(f"f: returns {loss}; accepted is a floating-point scalar")
    try:
        jax.eval_shape(jax.grad(f), params)
    except (NotImplementedError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"f: JAX cannot differentiate it ({reason}); accepted are functions that it can, with "
            "loops by scan, or fori_loop with a fixed number of rounds"
        ) from None


def hoist_constants(f: Loss, params: PyTree) -> tuple[Callable, list[Array]]:
    """Splits f into a pure function of (constants, params) and its constants.

    Arrays that f closes over, a training set above all, would otherwise be copied
    into the compiled program once per use.
    """
    try:
        return _hoist(f, params)
    except TypeError:
        # JAX keeps a NumPy array in the precision in which it has met it first, whatever holds
        # now, as long as some program with it is kept.
        gc.collect()
        jax.clear_caches()
    try:
        return _hoist(f, params)
    except TypeError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"f: cannot be traced in the precision of params ({reason}); if it closes over NumPy "
            "arrays, make them JAX arrays"
        ) from None


def _hoist(f: Loss, params: PyTree) -> tuple[Callable, list[Array]]:
    """As above; TypeError if what was traced does not fit together."""
    closed = jax.make_jaxpr(f)(params)

    def pure(constants: list[Array], params: PyTree) -> Array:
        (loss,) = jax.core.eval_jaxpr(closed.jaxpr, constants, *jax.tree.leaves(params))
        return loss

    fresh = [np.asarray(c) if isinstance(c, np.ndarray) else c for c in closed.consts]
    constants = jax.device_put(fresh)
    jax.eval_shape(pure, constants, params)
    return pure, constants
