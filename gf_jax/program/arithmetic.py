"""The numbers that descent computes with, and how it adds an update to a weight.

With a small step size an update is often below half an ulp of the weight it is
added to, and is lost; plain float32 then measures rounding, not discretisation.
Compensated accumulation carries beside each weight the part of the updates that
rounding dropped, and adds it to the next update. The gradient is taken at the
weights, without that part.

Source: Knuth, The Art of Computer Programming 2, section 4.2.2, theorem B (the
exact error of an addition, whichever term is larger); Kahan 1965 (carrying it).
"""

import contextlib
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

PyTree = Any


class Arithmetic(NamedTuple):
    """How weights are held, and products taken, along a trajectory.

    Attributes:
      dtype: of weights and gradients; None is each weight's own, at least float32.
      compensated: whether the rounding of every update is carried along.
      products: precision of matrix products, as ``jax.default_matmul_precision``.
      on_host: whether it is that of the host's CPU, for what the device has no numbers for.
    """

    dtype: str | None
    compensated: bool = False
    products: str = "highest"
    on_host: bool = False

    def context(self) -> contextlib.AbstractContextManager:
        """A context in which the dtype exists and products have their precision.

        It changes nothing outside, and a stricter configuration of the user's does not disturb it.
        """
        stack = contextlib.ExitStack()
        if self.on_host:
            stack.enter_context(jax.default_device(host()))
        if self.dtype == "float64":
            stack.enter_context(jax.enable_x64(True))
        stack.enter_context(jax.numpy_rank_promotion("allow"))
        stack.enter_context(jax.numpy_dtype_promotion("standard"))
        stack.enter_context(jax.default_matmul_precision(self.products))
        return stack

    def cast(self, params: PyTree) -> PyTree:
        """The parameters, all of them floating-point numbers, in this arithmetic."""
        return jax.tree.map(self._cast, self.near(params))

    def _cast(self, leaf: Any) -> Array:
        dtype = self.dtype or jnp.promote_types(jnp.result_type(leaf), jnp.float32)
        if isinstance(leaf, np.ndarray):  # NumPy converts it without a program for its shape
            return jnp.asarray(np.asarray(leaf, dtype, order="C"))
        return lax.convert_element_type(leaf, dtype)

    def near(self, arrays: PyTree) -> PyTree:
        """Arrays where they are computed with: those that are bound to a device are moved too."""
        return jax.device_put(arrays, host()) if self.on_host else arrays

    def residual(self, params: PyTree) -> PyTree:
        """What rounding has dropped so far: zeros like params, or None where it is not kept."""
        return jax.tree.map(jnp.zeros_like, params) if self.compensated else None

    def add(self, params: PyTree, residual: PyTree, updates: PyTree) -> tuple[PyTree, PyTree]:
        """Params and residual after one update of every weight."""
        if not self.compensated:
            return jax.tree.map(jnp.add, params, updates), residual
        pairs = jax.tree.map(lambda p, r, u: two_sum(p, u + r), params, residual, updates)
        return jax.tree.transpose(jax.tree.structure(params), jax.tree.structure((0, 0)), pairs)


WITHOUT_FLOAT64 = ("tpu",)  # platforms

ARITHMETICS = {
    "compensated": Arithmetic(None, compensated=True),
    "float32": Arithmetic("float32"),
    "float64": Arithmetic("float64"),
    "tf32": Arithmetic("float32", products="tensorfloat32"),
}


def arithmetic(name: str) -> Arithmetic:
    """The arithmetic of that name.

    compensated: the weights' own precision, at least float32, with compensated
    accumulation. float32, float64: plain accumulation in that precision. tf32:
    float32 with the products that GPUs take by default, where they have them.

    Raises:
      ValueError: if there is none, or not on this device.
      FloatingPointError: if the compiler reorders additions, which cancels the
        compensation; measured once per backend.
    """
    if name not in ARITHMETICS:
        raise ValueError(f"arithmetic: got {name!r}; accepted are {', '.join(ARITHMETICS)}")
    if name == "tf32" and jax.default_backend() in ("cpu", "tpu"):
        raise ValueError(
            f"arithmetic: tf32 products exist on GPUs only, and this is a {jax.default_backend()}; "
            "take another arithmetic"
        )
    if ARITHMETICS[name].compensated and not _compensation_survives(jax.default_backend()):
        raise FloatingPointError(
            "arithmetic: the compiler reorders additions (fast math), which cancels the "
            "compensation; remove such options from XLA_FLAGS, or use float64"
        )
    return ARITHMETICS[name]


def flow_arithmetic(data: list[Array] | None = None) -> Arithmetic:
    """That of flows and curvature: float64, on the host's CPU where the device has none.

    It is float32 on such a device where JAX was told to leave the CPU out, or the data lie on
    devices of other processes too.

    Args:
      data: of the loss.
    """
    double = ARITHMETICS["float64"]
    if jax.default_backend() not in WITHOUT_FLOAT64:
        return double
    reached = all(leaf.is_fully_addressable for leaf in data or ())
    return double._replace(on_host=True) if reached and host() else ARITHMETICS["float32"]


def host() -> jax.Device | None:
    """The CPU of this process, None if JAX was told to leave it out."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """The rounded sum of two arrays, and exactly what rounding dropped."""
    total = a + b
    virtual = total - a
    return total, (a - (total - virtual)) + (b - virtual)


@functools.cache
def _compensation_survives(backend: str) -> bool:
    """Adds 4096 times an update of a 16th of an ulp: 256 ulps, none of which rounding keeps."""
    compensated = ARITHMETICS["compensated"]
    update = jnp.full(8, 2.0**-27, jnp.float32)

    @jax.jit
    def accumulate(params: Array, update: Array) -> Array:
        def step(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
            return compensated.add(*carry, update), None

        return lax.scan(step, (params, compensated.residual(params)), length=4096)[0][0]

    return bool((accumulate(jnp.ones(8, jnp.float32), update) == 1 + 2.0**-15).all())
