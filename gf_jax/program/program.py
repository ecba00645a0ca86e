"""The user's f, prepared once: a pure function of data and parameters, and what is compiled of it.

f is traced once, as its user would run it. What does not depend on the parameters, such as
random draws, masks and casts, is evaluated once and is data. Everything else of the library, the
steps of descent, the flow and its derivatives, is made of the one program that remains, in higher
precision by ``lifting``, so that all of them follow the same loss.

What is compiled is kept with the program, and a program of the same equations and shapes takes it
over, so that a second comparison of the same kind compiles nothing.
"""

import collections
import functools
import math
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jaxtyping import Array

from gf_jax.program import compiling
from gf_jax.program.equations import equations_within
from gf_jax.program.flattening import Parts, split
from gf_jax.program.identity import identity
from gf_jax.program.kinks import Gated, gate
from gf_jax.program.leaves import partition, same
from gf_jax.program.lifting import Lifter
from gf_jax.program.rules import Settings

PyTree = Any
Loss = Callable[[PyTree], Array]
Made = TypeVar("Made")

KEPT_PROGRAMS, KEPT_RESULTS = 64, 64


class Recent:
    """A cache that keeps the values used last, at most so many of them, by name."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: collections.OrderedDict[Hashable, Any] = collections.OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: Hashable) -> Any:
        """What is kept under the name, or None."""
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
            return self._kept.get(name)

    def put(self, name: Hashable, value: Any) -> None:
        """Keeps a value, and gives up what was not asked for longest."""
        with self._lock:
            self._kept[name] = value
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)


class Pure:
    """A loss as a function of (data, params) that holds no data.

    It is computed in the precision of the params that it is given.

    Attributes:
      kept: what was compiled of it, by name, see ``once``.
    """

    def __init__(self, parts: Parts, structure: Any, settings: Settings) -> None:
        self._parts, self._structure, self._settings = parts, structure, settings
        self.kept: Recent = Recent(KEPT_RESULTS)

    @property
    def products(self) -> str:
        """Precision of the matrix products in it."""
        return self._settings.products

    @property
    def cheap(self) -> int:
        """Gradients that cost next to nothing beside compiling."""
        return compiling.cheap(self._numbers)

    @property
    def small(self) -> bool:
        """Whether that is so of all gradients that a flow takes."""
        return self._numbers <= compiling.SMALL

    def brief(self, evaluations: int) -> bool:
        """Whether so many gradients are worth no compiler that does its best."""
        return evaluations <= compiling.cheap(compiling.SLOWER * self._numbers)

    @property
    def _numbers(self) -> int:
        """In data and params."""
        return sum(math.prod(variable.shape) for variable in self._parts.moving.in_avals)

    @property
    def data_shapes(self) -> list[jax.ShapeDtypeStruct]:
        """Shapes and dtypes of its data."""
        arguments = self._parts.moving.in_avals
        count = len(arguments) - self._structure.num_leaves
        return [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arguments[:count]]

    def loss(self, data: list[Array], params: PyTree) -> Array:
        """f, in the precision of params."""
        leaves = jax.tree.leaves(params)
        program, arguments = self._parts.moving, [*data, *leaves]
        traced = [variable.aval.dtype for variable in program.jaxpr.invars[len(data) :]]
        given = [jnp.result_type(leaf) for leaf in leaves]
        if given == traced:
            return jax.core.eval_jaxpr(program.jaxpr, program.consts, *arguments)[0]
        return _lifter(self._settings, given, traced).run(program, arguments)[0]

    def data_of(self, program: core.ClosedJaxpr) -> list[Array]:
        """The data of a traced loss of these equations."""
        return self._parts.evaluate(program)

    def gradient(self, data: list[Array], params: PyTree) -> PyTree:
        """∇f, as JAX computes it."""
        return jax.grad(self.loss, argnums=1)(data, params)

    def linearize(
        self, data: list[Array], params: PyTree
    ) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
        """∇f, and the product of its Jacobian with a vector."""
        gradient = self.field(data, params)
        return jax.linearize(gradient, params)

    def field(self, data: list[Array], params: PyTree) -> Callable[[PyTree], PyTree]:
        """∇f as a function that may be differentiated again, at points like params.

        Where f holds a part of itself fixed (``stop_gradient``), the gradient changes with that
        part all the same, so its derivative passes through.
        """
        if not self.stops:
            return lambda point: self.gradient(data, point)
        program = jax.make_jaxpr(self.gradient)(data, params)
        dtypes = [jnp.result_type(leaf) for leaf in jax.tree.leaves(params)]
        # What this program holds was made here and now, not under the user's settings.
        settings = Settings.now(self._settings.products)
        lifter = Lifter(settings, dtypes[0], through_stops=True)

        def gradient(point: PyTree) -> PyTree:
            results = lifter.run(program, [*data, *jax.tree.leaves(point)])
            return jax.tree.unflatten(self._structure, results)

        return gradient

    def once_only(self, data: list[Array], params: PyTree) -> str | None:
        """Why ∇f cannot be differentiated again; None if it can."""

        def derivative(data: list[Array], params: PyTree) -> PyTree:
            return jax.jvp(self.field(data, params), (params,), (params,))[1]

        def reason() -> str | None:
            try:
                program = jax.make_jaxpr(derivative)(data, params)
            except Exception as error:  # JAX and its libraries raise errors of any kind here
                return (str(error).strip() or type(error).__name__).splitlines()[0]
            # JAX leaves this behind, and refuses it when it is compiled.
            left = any(e.primitive.name == "custom_lin" for e in equations_within(program.jaxpr))
            return "it has a derivative rule for the way back only (custom_vjp)" if left else None

        return self.once("once only", reason)

    @property
    def stops(self) -> bool:
        """Whether ∇f may be no gradient of any function."""
        names = {eqn.primitive.name for eqn in equations_within(self._parts.moving.jaxpr)}
        return any(name == "stop_gradient" or name.startswith("custom_vjp") for name in names)

    def gated(self, data: list[Array], params: PyTree) -> Gated:
        """Its gated form, a function of the pair (data, params), see ``kinks``."""
        dtypes = tuple(str(jnp.result_type(leaf)) for leaf in jax.tree.leaves(params))
        return self.once(
            ("gated", dtypes),
            lambda: gate(lambda pair: self.loss(*pair), (data, params), given=len(data)),
        )

    def once(self, name: Hashable, make: Callable[[], Made]) -> Made:
        """Calls ``make`` the first time, and returns what it made then whenever asked again."""
        found = self.kept.get(name)
        if found is None:
            found = (make(),)  # None may be what is made
            self.kept.put(name, found)
        return found[0]


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
            _check_differentiable(pure, shapes)
            _programs.put(key, pure)
        data = pure.data_of(program)
    return Program(pure, data, shapes)


_programs = Recent(KEPT_PROGRAMS)


def _lifter(settings: Settings, given: Sequence[Any], traced: Sequence[Any]) -> Lifter:
    """What computes a program for params of other dtypes than it was traced for."""
    pairs = [(g, t) for g, t in zip(given, traced, strict=True) if jnp.issubdtype(g, jnp.floating)]
    target = functools.reduce(jnp.promote_types, (g for g, _ in pairs))
    widest = functools.reduce(jnp.promote_types, (t for _, t in pairs))
    return Lifter(
        settings,
        target,
        lifts_all=all(g != t for g, t in pairs),
        narrows=jnp.promote_types(target, widest) != target,
    )


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


def _check_differentiable(pure: Pure, shapes: PyTree) -> None:
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
