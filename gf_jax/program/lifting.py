"""A traced program, evaluated in a higher precision than it was traced in.

A loss is traced once, as its user would run it. Where it is needed in float64, the program
is interpreted with float64 in place of float32, and f is not traced again: under another
precision JAX's random generators draw other numbers, data are cast in other places, and the loss
would be another one. Two rules say what is lifted:

* What does not depend on a lifted value is computed as the program has it: random numbers,
  masks, casts of data, counters.
* An operation of which some operand is lifted is done in the higher precision, all its floating
  operands lifted. So are loops, branches and functions with derivatives of their own, whose
  rules are traced in the user's precision and lifted in turn.

An operation that exists in the user's precision only, such as a callback, is done in it.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from gf_jax.program.equations import branches_of, call_of, closed, evaluate, loop_parts, while_parts
from gf_jax.program.rules import Rule, Settings, as_declared, cast, is_lifted, is_literal, is_number

# What has its meaning in the user's precision only.
KEPT = {"bitcast_convert_type", "pure_callback", "io_callback", "ffi_call", "nextafter"}
DTYPES = ("new_dtype", "preferred_element_type", "dtype", "out_dtype")


class Lifter:
    """Interprets a program that was traced under some settings.

    A value is lifted if its dtype is not the one that the program declares.

    Attributes:
      settings: those that the program was traced under.
      target: dtype that floating values are lifted to, if theirs is narrower.
      narrows: whether wider ones are narrowed to it instead.
      lifts_all: whether all arguments that derivatives are taken in are lifted.
      through_stops: whether derivatives pass through ``stop_gradient``.
    """

    def __init__(
        self,
        settings: Settings,
        target: Any,
        *,
        lifts_all: bool = False,
        narrows: bool = False,
        through_stops: bool = False,
    ) -> None:
        self.settings, self.target, self.lifts_all = settings, target, lifts_all
        self.narrows, self.through_stops = narrows, through_stops

    def run(self, program: core.ClosedJaxpr, args: Sequence[Any]) -> list[Any]:
        """The program's results for arguments of which any may be lifted."""
        jaxpr = program.jaxpr
        values: dict[Any, Any] = dict(zip(jaxpr.invars, args, strict=True))
        for variable, value in zip(jaxpr.constvars, program.consts, strict=True):
            values[variable] = as_declared(value, variable.aval)

        def read(atom: Any) -> Any:
            return as_declared(atom.val, atom.aval) if is_literal(atom) else values[atom]

        for eqn in jaxpr.eqns:
            results = self.equation(eqn, [read(atom) for atom in eqn.invars])
            values.update(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def equation(self, eqn: Any, operands: list[Any]) -> list[Any]:
        """The results of one equation."""
        name, inner = eqn.primitive.name, call_of(eqn)
        lifted = any(is_lifted(x, atom.aval) for x, atom in zip(operands, eqn.invars, strict=True))
        if name == "stop_gradient" and self.through_stops:
            return operands
        if name == "custom_jvp_call":
            return self.with_own_jvp(eqn, operands)
        if name.startswith("custom_vjp_call"):
            return self.with_own_vjp(eqn, operands)
        if name in ("checkpoint", "remat2") and inner is not None:
            options = {key: eqn.params[key] for key in ("prevent_cse", "policy")}
            return list(jax.checkpoint(self.function(inner), **options)(*operands))
        if inner is not None:
            return self.run(inner, operands)
        if name == "scan":
            return self.scan(eqn, operands)
        if name == "while":
            return self.while_loop(eqn, operands)
        if name == "cond":
            return self.cond(eqn, operands)
        if not lifted:
            return evaluate(eqn, operands)
        if name not in KEPT:
            with contextlib.suppress(TypeError, ValueError, NotImplementedError):
                return self.lift(eqn, operands)
        return self.keep(eqn, operands)

    def lift(self, eqn: Any, operands: list[Any]) -> list[Any]:
        """A single operation in the higher precision."""
        params = dict(eqn.params)
        if eqn.primitive.name == "reduce_precision":  # of no effect if to what its operand had
            finfo: Any = jnp.finfo
            info = finfo(eqn.invars[0].aval.dtype)
            if (params["exponent_bits"], params["mantissa_bits"]) == (info.nexp, info.nmant):
                return [operands[0]]
        for key in DTYPES:
            if params.get(key) is not None:
                params[key] = self.dtype(params[key])
        if isinstance(params.get("precision"), lax.DotAlgorithm | lax.DotAlgorithmPreset):
            params["precision"] = lax.Precision.HIGHEST
        params = {key: self.lifted_programs(value) for key, value in params.items()}
        whole = [self.cast(x) for x in operands]
        return evaluate(eqn.replace(params=params), whole)

    def keep(self, eqn: Any, operands: list[Any]) -> list[Any]:
        """A single operation in the precision that it was traced in."""
        narrow = [cast(x, atom.aval.dtype) for x, atom in zip(operands, eqn.invars, strict=True)]
        return evaluate(eqn, narrow)

    def lifted_programs(self, value: Any) -> Any:
        """A parameter of an equation, with all programs in it traced anew in the precision."""
        if isinstance(value, core.ClosedJaxpr):
            avals = value.jaxpr.invars
            shapes = [jax.ShapeDtypeStruct(v.aval.shape, self.dtype(v.aval.dtype)) for v in avals]
            return jax.make_jaxpr(self.function(value))(*shapes)
        if isinstance(value, core.Jaxpr):
            return self.lifted_programs(closed(value)).jaxpr
        if isinstance(value, tuple):
            parts = [self.lifted_programs(part) for part in value]
            return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
        return value

    def function(self, program: core.ClosedJaxpr) -> Callable[..., tuple[Any, ...]]:
        """The program as a function of its arguments."""
        return lambda *args: tuple(self.run(program, args))

    def dtype(self, dtype: Any) -> Any:
        """The dtype that a value of this dtype has once it is lifted."""
        if not jnp.issubdtype(dtype, jnp.inexact):
            return dtype
        real = jnp.issubdtype(dtype, jnp.floating)
        wanted = self.target if real else jnp.promote_types(self.target, jnp.complex64)
        return wanted if self.narrows else jnp.promote_types(dtype, wanted)

    def cast(self, value: Any) -> Any:
        """A value, lifted if it is of floating numbers."""
        return cast(value, self.dtype(jnp.result_type(value)))

    # Loops and branches, of which a value may be lifted in some rounds or branches only.

    def scan(self, eqn: Any, operands: list[Any]) -> list[Any]:
        """A loop with a fixed number of rounds."""
        inner = closed(eqn.params["jaxpr"])
        consts, carries = loop_parts(eqn)
        given, first, rows = _split(operands, consts, carries)

        def body(carry: list[Any], row: list[Any]) -> tuple[list[Any], list[Any]]:
            results = self.run(inner, [*given, *carry, *row])
            return _like(results[:carries], carry), results[carries:]

        def after_one(carry: list[Any]) -> list[Any]:
            row = [x[0] for x in rows]
            return self.run(inner, [*given, *carry, *row])[:carries]

        options = {name: eqn.params[name] for name in ("length", "reverse", "unroll")}
        last, stacked = lax.scan(body, self.settled(first, after_one), rows, **options)
        return [*last, *stacked]

    def while_loop(self, eqn: Any, operands: list[Any]) -> list[Any]:
        """A loop that ends by a condition."""
        condition, body, for_condition, for_body = while_parts(eqn)
        given, others, first = _split(operands, for_condition, for_body)

        def step(carry: list[Any]) -> list[Any]:
            return self.run(body, [*others, *carry])

        return lax.while_loop(
            lambda carry: self.run(condition, [*given, *carry])[0],
            lambda carry: _like(step(carry), carry),
            self.settled(first, step),
        )

    def settled(self, carry: list[Any], step: Callable[[list[Any]], list[Any]]) -> list[Any]:
        """What a loop begins with, lifted where any of its rounds lifts it."""
        while True:
            after = jax.eval_shape(step, carry)
            wider = [
                cast(x, jnp.promote_types(jnp.result_type(x), y.dtype)) if is_number(x) else x
                for x, y in zip(carry, after, strict=True)
            ]
            if all(x is y for x, y in zip(wider, carry, strict=True)):
                return carry
            carry = wider

    def cond(self, eqn: Any, operands: list[Any]) -> list[Any]:
        """Branches, each of whose results is lifted if it is in any of them."""
        branches, index, rest = branches_of(eqn), operands[0], operands[1:]
        shapes = [jax.eval_shape(self.function(branch), *rest) for branch in branches]
        dtypes = [
            functools.reduce(jnp.promote_types, (x.dtype for x in each))
            if is_number(each[0])
            else None
            for each in zip(*shapes, strict=True)
        ]

        def taken(branch: core.ClosedJaxpr) -> Callable[..., tuple[Any, ...]]:
            def function(*args: Any) -> tuple[Any, ...]:
                results = zip(self.run(branch, args), dtypes, strict=True)
                return tuple(x if dtype is None else cast(x, dtype) for x, dtype in results)

            return function

        functions = [taken(branch) for branch in branches]
        if len(functions) == 2:
            wanted = lax.convert_element_type(index, np.dtype(bool))
            return list(lax.cond(wanted, functions[1], functions[0], *rest))
        return list(lax.switch(index, functions, *rest))

    # Functions with a derivative of their own: the rule is traced as the user would run it.

    def with_own_jvp(self, eqn: Any, operands: list[Any]) -> list[Any]:
        """A function whose derivative rule was given by jax.custom_jvp."""
        function = jax.custom_jvp(self.function(closed(eqn.params["call_jaxpr"])))
        rule = Rule(eqn, self.settings, self.moving(eqn, operands))

        @function.defjvp
        def lifted_rule(primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
            moving = [tangents[at] for at in rule.inputs]
            results = self.run(rule.forward(), [*primals, *moving])
            return rule.with_zeros(results)

        return list(function(*operands))

    def with_own_vjp(self, eqn: Any, operands: list[Any]) -> list[Any]:
        """A function whose derivative rule was given by jax.custom_vjp."""
        program = closed(eqn.params["call_jaxpr"])
        function = jax.custom_vjp(self.function(program))
        rule = Rule(eqn, self.settings, self.moving(eqn, operands))

        def forward(*primals: Any) -> tuple[Any, Any]:
            results = self.run(rule.outward(), primals)
            count = len(eqn.outvars)
            return tuple(results[:count]), (primals, results[count:])

        def backward(kept: tuple[Any, Any], cotangents: Any) -> tuple[Any, ...]:
            primals, residuals = kept
            slopes = self.run(rule.backward(), [*residuals, *rule.chosen(cotangents)])
            return rule.spread(slopes, primals)

        function.defvjp(forward, backward)
        return list(function(*operands))

    def moving(self, eqn: Any, operands: list[Any]) -> list[bool]:
        """Which operands change with the params, as far as it can be told."""
        pairs = zip(operands, eqn.invars, strict=True)
        lifted = [is_lifted(x, atom.aval) for x, atom in pairs]
        return lifted if self.lifts_all else [True] * len(operands)


def _like(values: list[Any], wanted: Sequence[Any]) -> list[Any]:
    return [
        cast(x, jnp.result_type(y)) if is_number(y) else x
        for x, y in zip(values, wanted, strict=True)
    ]


def _split(values: list[Any], first: int, second: int) -> tuple[list[Any], list[Any], list[Any]]:
    return values[:first], values[first : first + second], values[first + second :]
