"""The user's f, prepared once: a pure function of data and parameters, and its data.

f is traced once, as its user would run it. What does not depend on the parameters, such as
random draws, masks and casts, is evaluated once and is data. Everything else of the library, the
steps of descent, the flow and its derivatives, is made of the one program that remains, in higher
precision by ``lifting``, so that all of them follow the same loss.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from gf_jax.program.flattening import split
from gf_jax.program.identity import identity
from gf_jax.program.leaves import partition, same
from gf_jax.program.pure import KEPT_RESULTS, Pure, Recent
from gf_jax.program.rules import Settings

PyTree = Any
Loss = Callable[[PyTree], Array]

KEPT_PROGRAMS = 64


class Program(NamedTuple):
    """A prepared loss: pure, and the data that it is a loss on.

    Attributes:
      pure: the loss as a function of data and params.
      data: arrays, in the user's precision.
      shapes: of the params that it takes, a pytree of the leaves that move.
      held: the leaves that are held fixed, in a pytree of the same structure.

    Every function of the library that takes a loss takes a program, too, and does not trace it
    again. It then takes the whole model, or the leaves that move, as flows and snapshots are.

    Example:
      >>> def f(w):
      ...     return jnp.sum((w**2 - 1) ** 2)
      >>> w = jnp.array([0.1, 1.5])
      >>> round(float(gf_jax.prepare(f, w)(w)), 4)
      2.5426
    """

    pure: Pure
    data: list[Array]
    shapes: PyTree
    held: PyTree = None

    def __call__(self, params: PyTree) -> Array:
        """f, in the precision of params."""
        return self.pure.loss(self.data, params)

    def moving(self, params: PyTree) -> PyTree:
        """The leaves that move, of a whole model or of these alone.

        Raises:
          ValueError: if others are held fixed than those that f was prepared with.
        """
        moving, held = partition(params)
        if jax.tree.leaves(held) and not same(held, self.held):
            raise ValueError(
                "params: what is held fixed in them is not what f was prepared with; prepare f anew"
            )
        return moving

    def model(self, moving: PyTree) -> PyTree:
        """The whole model: the leaves that move, and those that are held fixed."""
        return eqx.combine(moving, self.held) if jax.tree.leaves(self.held) else moving


class FixedLoss:
    """A loss of which it is known that it never changes, so that it is traced only once.

    Any other function may be traced again whenever it is given, since what it closes over may
    have changed.
    """

    def __init__(self, f: Loss) -> None:
        self._f = f
        self.programs = Recent(KEPT_RESULTS)

    def __call__(self, params: PyTree) -> Array:
        """Its value."""
        return self._f(params)


def prepare(f: Loss | Program, params: PyTree, *, products: str = "highest") -> Program:
    """Traces f, once, at params, of which only shapes and dtypes matter.

    Args:
      f: maps params to a scalar loss; a program is returned as it is.
      params: a pytree, of which floating-point arrays move. All other leaves, such as functions
        and whole numbers, are held fixed, and f is given them as they are.
      products: precision of matrix products, as ``jax.default_matmul_precision``.

    Raises:
      ValueError: unless f maps params to a floating-point scalar and JAX can differentiate it,
        if params hold no floating-point array, and on a program of other products.

    Example:
      >>> def f(w):
      ...     return jnp.sum((w**2 - 1) ** 2)
      >>> w = jnp.array([0.1, 1.5])
      >>> program = gf_jax.prepare(f, w)  # then for any number of starting points:
      >>> flows = [gf_jax.gradient_flow(program, start, [0.1]) for start in (w, 2 * w)]
    """
    if isinstance(f, Program):
        if f.pure.products != products:
            raise ValueError(
                f"f: was prepared for products in {f.pure.products} precision, and {products} is "
                f"wanted here; give f itself, or prepare it with products={products!r}"
            )
        return _checked_program(f, _shapes(f.moving(params), products))
    moving, held = partition(params)
    if jax.tree.leaves(held):
        whole = f
        program = trace(lambda point: whole(eqx.combine(point, held)), moving, products=products)
        return program._replace(held=held)
    if not isinstance(f, FixedLoss):
        return trace(f, moving, products=products)
    shapes = _shapes(moving, products)
    leaves, structure = jax.tree.flatten(shapes)
    name = (*leaves, structure, Settings.now(products), jax.default_backend())
    program = f.programs.get(name)
    if program is None:
        program = trace(f, moving, products=products)
        f.programs.put(name, program)
    return program


class Batched(NamedTuple):
    """The losses of batches, prepared: a program of the pair (params, index), and how many."""

    program: Program
    number: int


def prepare_batches(program: Program, params: PyTree, loss: Any, number: Any) -> Batched:
    """Traces the loss of a batch, once.

    Args:
      program: the loss of all examples.
      params: the leaves that move, or their shapes and dtypes.
      loss: maps (params, index) to the loss of one batch.
      number: how many batches there are.

    Raises:
      ValueError: if there is no batch, or its loss is no scalar loss.
    """
    if not (isinstance(number, int) and 1 <= number < 2**31):
        raise ValueError(f"batches: number is {number!r}; accepted is a positive integer")
    of_batch = trace(
        lambda pair: loss(program.model(pair[0]), pair[1]),
        (params, np.int32(0)),
        products=program.pure.products,
    )
    return Batched(of_batch, number)


def prepare_at_stack(
    f: Loss | Program, params: PyTree, *, products: str = "highest"
) -> tuple[Program, PyTree]:
    """Prepares f at the points of a stack, whose leaves that move have an axis in front.

    Returns:
      The program, and the leaves of the stack that move.

    Raises:
      ValueError: as ``prepare``, and if that axis is not of one length.
    """
    moving, held = partition(params)
    counts = [jnp.shape(leaf)[0] if jnp.ndim(leaf) else 0 for leaf in jax.tree.leaves(moving)]
    if len(set(counts)) > 1 or not all(counts):
        raise ValueError(
            f"params: leading axes of lengths {counts}; accepted is a stack of points, with one "
            "length for all leaves"
        )
    return prepare(f, eqx.combine(one_of(moving), held), products=products), moving


def one_of(stack: PyTree) -> PyTree:
    """Shapes and dtypes of a single point of a stack."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf)[1:], jnp.asarray(leaf).dtype), stack
    )


def trace(f: Loss, params: PyTree, *, products: str) -> Program:
    """Traces f at params, every leaf of which is an argument; else as ``prepare``."""
    settings, shapes = Settings.now(products), _shapes(params, products)
    with settings.context():
        program, loss = jax.make_jaxpr(lambda point: f(point), return_shape=True)(shapes)
        _check_scalar(loss)
        structure: Any = jax.tree.structure(shapes)
        key = (identity(program, settings), structure, settings, jax.default_backend())
        pure = _programs.get(key)
        if pure is None:
            pure = Pure(split(program), structure, settings)
            _check_transformable(pure, shapes)
            _programs.put(key, pure)
        data = pure.data_of(program)
    return Program(pure, data, shapes)


_programs = Recent(KEPT_PROGRAMS)


def _shapes(params: PyTree, products: str) -> PyTree:
    with Settings.now(products).context():
        return jax.tree.map(_shape, params)


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    dtype = np.asarray(leaf).dtype if isinstance(leaf, float) else leaf.dtype
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jax.dtypes.canonicalize_dtype(dtype))


def _checked_program(program: Program, shapes: PyTree) -> Program:
    wanted: Any = jax.tree.structure(program.shapes)
    given: Any = jax.tree.structure(shapes)
    if wanted != given or any(
        a.shape != b.shape
        for a, b in zip(jax.tree.leaves(program.shapes), jax.tree.leaves(shapes), strict=True)
    ):
        raise ValueError(
            f"params: {shapes} are not what f was prepared for, {program.shapes}; prepare it anew"
        )
    return program


def _check_scalar(loss: Any) -> None:
    if not (
        isinstance(loss, jax.ShapeDtypeStruct)
        and loss.shape == ()
        and jnp.issubdtype(loss.dtype, jnp.floating)
    ):
        raise ValueError(f"f: returns {loss}; accepted is a floating-point scalar")


def _check_transformable(pure: Pure, shapes: PyTree) -> None:
    data = pure.data_shapes
    try:
        # Beside params there may be an index, of a batch.
        jax.eval_shape(jax.grad(pure.loss, argnums=1, allow_int=True), data, shapes)
    except (NotImplementedError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"f: JAX cannot differentiate it ({reason}); accepted are functions that it can, with "
            "loops by scan, or fori_loop with a fixed number of rounds"
        ) from None
    stack = jax.tree.map(lambda s: jax.ShapeDtypeStruct((1, *s.shape), s.dtype), shapes)
    try:
        jax.eval_shape(jax.vmap(pure.loss, in_axes=(None, 0)), data, stack)
    except (NotImplementedError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"f: JAX cannot compute it at several points at once ({reason}); accepted are "
            "functions under jax.vmap, with a vmap_method for callbacks, such as 'sequential'"
        ) from None
