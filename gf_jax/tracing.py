"""A loss as a program: checked, and split from the data that it closes over."""

import contextlib
import gc
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jaxtyping import Array

from gf_jax.equations import equations_within

PyTree = Any
Loss = Callable[[PyTree], Array]


def hoist_constants(f: Loss, params: PyTree) -> tuple[Callable, list[Array]]:
    """Splits f into a pure function of (constants, params) and its constants.

    Arrays that f closes over, a training set above all, would otherwise be copied
    into the compiled program once per use.

    JAX holds a NumPy array in the precision in which it has met it, as long as any program with
    it is kept, and whatever the precision is meanwhile. So f is traced under a name of its own,
    nothing of that is kept, and what others have kept is given up if it does not fit.

    Raises:
      ValueError: unless f maps params to a floating-point scalar and JAX can differentiate it.
    """
    if not jax.tree.leaves(params):
        raise ValueError("params: the pytree holds no arrays")
    with contextlib.suppress(TypeError):
        return _checked(*_trace(f, params), params)
    jax.clear_caches()
    gc.collect()
    return _checked(*_trace(f, params), params)


def _trace(f: Loss, params: PyTree) -> tuple[Any, list[Array]]:
    """The program of f, and its constants on the device."""
    closed, loss = jax.make_jaxpr(lambda params: f(params), return_shape=True)(params)
    if not (
        isinstance(loss, jax.ShapeDtypeStruct)
        and loss.shape == ()
        and jnp.issubdtype(loss.dtype, jnp.floating)
    ):
        raise ValueError(f"f: returns {loss}; accepted is a floating-point scalar")
    fresh = [np.asarray(c) if isinstance(c, np.ndarray) else c for c in closed.consts]
    for eqn in equations_within(closed.jaxpr):
        for atom in eqn.invars:  # of numbers JAX does the same
            if isinstance(atom, core.Literal) and isinstance(atom.val, np.ndarray):
                atom.val = atom.val.copy()
    closed.consts[:] = jax.device_put(fresh)
    return closed.jaxpr, list(closed.consts)


def _checked(
    jaxpr: Any, constants: list[Array], params: PyTree
) -> tuple[Callable[[list[Array], PyTree], Array], list[Array]]:
    """The program as a function; TypeError if precisions within it do not fit together."""

    def pure(constants: list[Array], params: PyTree) -> Array:
        (loss,) = jax.core.eval_jaxpr(jaxpr, constants, *jax.tree.leaves(params))
        return loss

    try:
        # Beside params there may be an index, of a batch.
        jax.eval_shape(jax.grad(pure, argnums=1, allow_int=True), constants, params)
    except (NotImplementedError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"f: JAX cannot differentiate it ({reason}); accepted are functions that it can, with "
            "loops by scan, or fori_loop with a fixed number of rounds"
        ) from None
    return pure, constants
