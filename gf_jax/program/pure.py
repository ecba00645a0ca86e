"""The user's f without its data: a function of (data, params), and what is compiled of it.

What is compiled is kept with it, and a loss of the same equations and shapes takes it over, so
that a second comparison of the same kind compiles nothing.
"""

import collections
import functools
import math
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.extend import core
from jaxtyping import Array

from gf_jax.program import compiling
from gf_jax.program.compiling import Speed
from gf_jax.program.equations import equations_within
from gf_jax.program.flattening import Parts
from gf_jax.program.kinks import Gated, gate
from gf_jax.program.lifting import Lifter
from gf_jax.program.rules import Settings

PyTree = Any
Made = TypeVar("Made")

KEPT_RESULTS = 64


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
    def flow_speed(self) -> Speed:
        """How fast is compiled what takes all the gradients of a flow."""
        return self._quick if self._numbers <= compiling.SMALL else Speed.FULL

    def speed(self, evaluations: int) -> Speed:
        """How fast is compiled what takes so many gradients."""
        few = evaluations <= compiling.cheap(compiling.SLOWER * self._numbers)
        return self._quick if few else Speed.FULL

    @functools.cached_property
    def _quick(self) -> Speed:
        names = {eqn.primitive.name for eqn in equations_within(self._parts.moving.jaxpr)}
        return Speed.QUICK if names & compiling.EQUATING else Speed.QUICKEST

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
            compiling.make_room()
            found = (make(),)  # None may be what is made
            self.kept.put(name, found)
        return found[0]


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
