"""Rules of derivatives that a user gave, as programs, and the settings they are traced under."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from gf_jax.program.equations import evaluate


class Settings(NamedTuple):
    """JAX's configuration under which a user's f was traced, where it changes what f means."""

    x64: bool
    rank_promotion: str
    dtype_promotion: str
    products: str

    @classmethod
    def now(cls, products: str) -> "Settings":
        """Those in force, with that precision of matrix products."""
        config: Any = jax.config
        return cls(
            config.jax_enable_x64,
            config.jax_numpy_rank_promotion,
            config.jax_numpy_dtype_promotion,
            products,
        )

    def context(self) -> contextlib.AbstractContextManager:
        """A context within which these settings are in force."""
        stack = contextlib.ExitStack()
        stack.enter_context(jax.enable_x64(self.x64))
        stack.enter_context(jax.numpy_rank_promotion(self.rank_promotion))
        stack.enter_context(jax.numpy_dtype_promotion(self.dtype_promotion))
        stack.enter_context(jax.default_matmul_precision(self.products))
        return stack


class Rule:
    """The derivative of an equation that has one of its own, as programs.

    They are traced when they are asked for, under the user's settings and in the precision that
    the equation was traced in. Derivatives are taken in those of its floating operands that move.
    """

    def __init__(self, eqn: Any, settings: Settings, moving: Sequence[bool] | None = None) -> None:
        self.eqn, self.settings = eqn, settings
        # JAX allows no derivative in what a function with a rule for the way back closes over.
        first = 0 if eqn.primitive.name == "custom_jvp_call" else eqn.params.get("num_consts", 0)
        self.inputs = [
            at
            for at, atom in enumerate(eqn.invars)
            if at >= first and _inexact(atom) and (moving is None or moving[at])
        ]
        self.outputs = [at for at, atom in enumerate(eqn.outvars) if _inexact(atom)]
        self._structure: Any = None

    def forward(self) -> core.ClosedJaxpr:
        """Maps operands and tangents of the floating ones to results, and tangents of those."""

        def program(*args: Any) -> list[Any]:
            primals, tangents = args[: len(self.eqn.invars)], args[len(self.eqn.invars) :]
            function, floats = self._in_floats(primals)
            results, moved, others = jax.jvp(function, floats, tuple(tangents), has_aux=True)
            return [*self._whole(results, others), *moved]

        return self._trace(program, [*self._operands(), *self._floats()])

    def outward(self) -> core.ClosedJaxpr:
        """Maps operands to results and what is kept for the way back."""

        def program(*primals: Any) -> list[Any]:
            function, floats = self._in_floats(primals)
            results, pull, others = jax.vjp(function, *floats, has_aux=True)
            kept, self._structure = jax.tree.flatten(pull)
            return [*self._whole(results, others), *kept]

        return self._trace(program, self._operands())

    def backward(self) -> core.ClosedJaxpr:
        """Maps what was kept, and cotangents of floating results, to those of the operands."""
        whole = self.outward()
        kept = [_struct(aval) for aval in whole.out_avals[len(self.eqn.outvars) :]]
        along = [_struct(self.eqn.outvars[at].aval) for at in self.outputs]

        def program(*args: Any) -> tuple[Any, ...]:
            pull = jax.tree.unflatten(self._structure, args[: len(kept)])
            return pull(tuple(args[len(kept) :]))

        return self._trace(program, [*kept, *along])

    def both(self) -> core.ClosedJaxpr:
        """Maps operands and cotangents to results and slopes, as ``outward`` and ``backward``."""

        def program(*args: Any) -> tuple[Any, ...]:
            primals, cotangents = args[: len(self.eqn.invars)], args[len(self.eqn.invars) :]
            function, floats = self._in_floats(primals)
            results, pull, others = jax.vjp(function, *floats, has_aux=True)
            return (*self._whole(results, others), *pull(tuple(cotangents)))

        along = [_struct(self.eqn.outvars[at].aval) for at in self.outputs]
        return self._trace(program, [*self._operands(), *along])

    def with_zeros(self, results: list[Any]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Results and tangents of ``forward``, the latter zeros where results do not move."""
        count = len(self.eqn.outvars)
        values, moved = results[:count], iter(results[count:])
        tangents = [
            cast(next(moved), jnp.result_type(x)) if at in self.outputs else _still(x)
            for at, x in enumerate(values)
        ]
        return tuple(values), tuple(tangents)

    def chosen(self, cotangents: Sequence[Any]) -> list[Any]:
        """Of the cotangents of all results, those of the floating-point ones."""
        return [cotangents[at] for at in self.outputs]

    def spread(self, slopes: list[Any], primals: Sequence[Any]) -> tuple[Any, ...]:
        """Slopes of all operands: those given for the floating-point ones, zeros for the others."""
        each = iter(slopes)
        return tuple(
            cast(next(each), jnp.result_type(x)) if at in self.inputs else _still(x)
            for at, x in enumerate(primals)
        )

    def _in_floats(self, primals: Sequence[Any]) -> tuple[Callable, tuple[Any, ...]]:
        """The equation as a function of its floating-point operands alone, and these operands.

        It returns the floating-point results, and beside them the list of the others.
        """

        def function(*floats: Any) -> tuple[tuple[Any, ...], list[Any]]:
            operands = list(primals)
            for at, value in zip(self.inputs, floats, strict=True):
                operands[at] = value
            results = evaluate(self.eqn, operands)
            others = [x for at, x in enumerate(results) if at not in self.outputs]
            return tuple(results[at] for at in self.outputs), others

        return function, tuple(primals[at] for at in self.inputs)

    def _whole(self, results: Sequence[Any], others: Sequence[Any]) -> list[Any]:
        moving, fixed = iter(results), iter(others)
        count = len(self.eqn.outvars)
        return [next(moving) if at in self.outputs else next(fixed) for at in range(count)]

    def _operands(self) -> list[jax.ShapeDtypeStruct]:
        return [_struct(atom.aval) for atom in self.eqn.invars]

    def _floats(self) -> list[jax.ShapeDtypeStruct]:
        return [_struct(self.eqn.invars[at].aval) for at in self.inputs]

    def _trace(self, program: Callable, shapes: Sequence[Any]) -> core.ClosedJaxpr:
        with self.settings.context():
            return jax.make_jaxpr(program)(*shapes)


def as_declared(value: Any, aval: Any) -> Any:
    """A constant of a program in the precision that the program declares.

    JAX keeps NumPy arrays and numbers as it has met them, which may be another one.
    """
    if is_number(value) and not isinstance(value, jax.Array):
        return np.asarray(value, aval.dtype)[()]  # a number stays one, not an array
    return value


def is_literal(atom: Any) -> bool:
    """Whether an operand is a constant that stands in the program itself."""
    return isinstance(atom, core.Literal)


def is_lifted(value: Any, aval: Any) -> bool:
    """Whether a value has another precision than the program declares."""
    return is_number(value) and jnp.result_type(value) != aval.dtype


def is_number(value: Any) -> bool:
    """Whether a value has a dtype of NumPy's, as keys of random generators have not."""
    return not jnp.issubdtype(getattr(value, "dtype", np.dtype(float)), jax.dtypes.extended)


def cast(value: Any, dtype: Any) -> Any:
    """A value in a precision; itself if it has it."""
    same = not is_number(value) or jnp.result_type(value) == dtype
    return value if same else lax.convert_element_type(value, dtype)


def _inexact(atom: Any) -> bool:
    return bool(jnp.issubdtype(atom.aval.dtype, jnp.inexact))


def _struct(aval: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)


def _still(value: Any) -> Any:
    """The zero tangent of a value that does not depend on the parameters."""
    inexact = is_number(value) and jnp.issubdtype(jnp.result_type(value), jnp.inexact)
    return jnp.zeros_like(value) if inexact else np.zeros(jnp.shape(value), jax.dtypes.float0)
