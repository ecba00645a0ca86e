"""The gated form of a piecewise smooth function.

Every kink of f is ``below + H(z) (above - below)`` with a kink variable z and the
unit step H: max(a, b) has z = a - b, and min, abs, sign and ``where(x >= 0, x, s x)`` are
of the same form. ``gate`` traces f and gives F(params, gates), in which the gates,
the values of H, are explicit inputs, together with all kink variables:

    f(params) = F(params, [H(z) for z in kinks(params)])
    grad f    = dF/dparams at those gates
    jump of grad f where kink i is crossed = d²F/dgate_i dparams

A choice is a kink only where derivatives in the parameters reach it and its sign may change,
see ``facts``: not in softmax, whose maximum is subtracted behind ``stop_gradient``, nor in
masks, nor in the guards of normalisation layers. Loops with a fixed number of rounds
(``scan``) and branches (``cond``) are walked through; what has a ``custom_vjp`` keeps its own
derivative, and sorting is left as it is.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jaxtyping import Array

from gf_jax.equations import (
    closed,
    difference,
    evaluate,
    floating,
    inner_of,
    is_choice,
    live,
    loop_parts,
    settled,
)
from gf_jax.facts import Fact, Facts

PyTree = Any


class Gated(NamedTuple):
    """A function in gated form.

    Attributes:
      kinks: maps params to the list of kink variables.
      both: maps (params, gates) to (f, kink variables) with the gates given, arrays
        like the kink variables; with gates None, those of params themselves.
      size: number of kink variables, over all arrays.
    """

    kinks: Callable[[PyTree], list[Array]]
    both: Callable[[PyTree, list[Array] | None], tuple[Array, list[Array]]]
    size: int


def gate(f: Callable[[PyTree], Array], params: PyTree, *, given: int = 0) -> Gated:
    """The gated form of f, traced at params, of which only the shapes matter.

    Args:
      f: maps params to a scalar.
      params: a pytree of arrays.
      given: number of leaves, the first ones, in which f is not differentiated: its data.
    """
    program = jax.make_jaxpr(f)(params)

    def both(params: PyTree, gates: list[Array] | None) -> tuple[Array, list[Array]]:
        walker, leaves = _Walker(Facts(), gates), jax.tree.leaves(params)
        known = [walker.facts.argument(depends=at >= given) for at in range(len(leaves))]
        (out,), _ = walker.run(program.jaxpr, program.consts, leaves, known)
        return out, walker.found

    def kinks(params: PyTree) -> list[Array]:
        return both(params, None)[1]

    return Gated(kinks, both, sum(z.size for z in jax.eval_shape(kinks, params)))


def step(z: Array) -> Array:
    """H, as a number; one half on the kink itself, as jnp.maximum differentiates."""
    return jnp.heaviside(z, 0.5)


class _Walker:
    """Interprets a jaxpr, taking gates from a list or, without one, from H(z)."""

    def __init__(self, facts: Facts, gates: list[Array] | None) -> None:
        self.facts, self.given = facts, gates
        self.found: list[Array] = []

    def run(
        self,
        jaxpr: core.Jaxpr,
        consts: Sequence[Any],
        args: Sequence[Any],
        known: Sequence[Fact],
        wanted: Sequence[bool] | None = None,
    ) -> tuple[list[Any], list[Fact]]:
        """Values of the outputs and their facts, from those of the arguments.

        Args:
          jaxpr: to interpret.
          consts: values of its constants.
          args: values of its arguments.
          known: facts of its arguments.
          wanted: which outputs matter to derivatives; None is all of them.
        """
        reached = live(jaxpr, [True] * len(jaxpr.outvars) if wanted is None else wanted)
        values = dict(zip(jaxpr.constvars, consts, strict=True))
        facts = {variable: self.facts.argument(depends=False) for variable in jaxpr.constvars}
        values |= dict(zip(jaxpr.invars, args, strict=True))
        facts |= dict(zip(jaxpr.invars, known, strict=True))

        def read(atom: Any) -> tuple[Any, Fact]:
            if isinstance(atom, core.Literal):
                return atom.val, self.facts.literal(atom.val)
            return values[atom], facts[atom]

        for eqn in jaxpr.eqns:
            pairs = [read(atom) for atom in eqn.invars]
            matters = [variable in reached for variable in eqn.outvars]
            operands, facts_of = [p[0] for p in pairs], [p[1] for p in pairs]
            results, found = self.equation(eqn, operands, facts_of, matters)
            values.update(zip(eqn.outvars, results, strict=True))
            facts.update(zip(eqn.outvars, found, strict=True))
        ends = [read(atom) for atom in jaxpr.outvars]
        return [value for value, _ in ends], [fact for _, fact in ends]

    def equation(
        self, eqn: Any, operands: list[Any], known: list[Fact], matters: list[bool]
    ) -> tuple[list[Any], list[Fact]]:
        """Values of the outputs of one equation, and their facts."""
        name, inner = eqn.primitive.name, inner_of(eqn)
        if inner is not None:
            return self.run(inner.jaxpr, inner.consts, operands, known, matters)
        if name == "scan" and any(matters):
            return self.scan(eqn, operands, known)
        if name == "cond" and any(matters):
            return self.cond(eqn, operands, known)
        if not eqn.outvars:  # prints, or tells something
            return evaluate(eqn, operands), []
        if known and all(fact.number for fact in known):  # so that its sign is known
            with jax.ensure_compile_time_eval():
                results = evaluate(eqn, operands)
            return results, [self.facts.literal(result) for result in results]
        fact = self.facts.result(eqn, known)
        if any(matters):
            chosen = self.chosen(eqn, operands, known)
            if chosen is not None:
                return [chosen], [fact]
        results = evaluate(eqn, operands)
        if eqn.primitive.multiple_results:
            return results, [fact._replace(name=self.facts.fresh()) for _ in results]
        return results, [fact._replace(compared=difference(eqn, operands, known))]

    def chosen(self, eqn: Any, operands: list[Any], known: list[Fact]) -> Array | None:
        """The value of what may choose another way on the path; None of all else."""
        name, out = eqn.primitive.name, eqn.outvars[0].aval
        compared = known[0].compared if known else None
        if is_choice(eqn) and any(k.depends for k in known) and not settled(name, known):
            return self.choice(eqn, operands)
        if compared is None or not floating(eqn.outvars[0]):
            return None
        if name == "select_n":
            z = jnp.broadcast_to(compared, out.shape)
            return self.choose(z, operands[2], operands[1])
        if name == "convert_element_type":  # a mask as a factor
            return self.choose(compared, jnp.ones((), out.dtype), jnp.zeros((), out.dtype))
        return None

    def choice(self, eqn: Any, operands: list[Any]) -> Array:
        """The value of a choice between floating values."""
        name, out = eqn.primitive.name, eqn.outvars[0].aval
        if name in ("reduce_max", "reduce_min"):
            return self.reduce(operands[0], eqn.params["axes"], least=name == "reduce_min")
        if name == "reduce_window_max":
            return self.windows(operands[0], eqn.params)
        if name == "clamp":
            low, value, high = (jnp.broadcast_to(x, out.shape) for x in operands)
            return self.larger(self.larger(value, low), high, least=True)
        a = jnp.broadcast_to(jnp.asarray(operands[0], out.dtype), out.shape)
        if name == "sign":
            return self.choose(a, jnp.ones_like(a), -jnp.ones_like(a))
        b = -a if name == "abs" else jnp.asarray(operands[1], out.dtype)
        return self.larger(a, jnp.broadcast_to(b, out.shape), least=name == "min")

    def larger(self, a: Array, b: Array, *, least: bool = False) -> Array:
        """The larger of two arrays, or the lesser."""
        return self.choose(a - b, b, a) if least else self.choose(a - b, a, b)

    def reduce(self, array: Array, axes: Sequence[int], *, least: bool = False) -> Array:
        """Largest or least entries along axes, by halves."""
        kept = [axis for axis in range(array.ndim) if axis not in axes]
        stack = jnp.transpose(array, (*axes, *kept)).reshape(-1, *(array.shape[a] for a in kept))
        while len(stack) > 1:
            half = len(stack) // 2
            larger = self.larger(stack[:half], stack[half : 2 * half], least=least)
            stack = jnp.concatenate([larger, stack[2 * half :]])
        return stack[0]

    def windows(self, array: Array, params: dict[str, Any]) -> Array:
        """Largest entries of all windows."""
        least = float(np.finfo(array.dtype).min) / 4  # an infinity times a gate of 0 would be NaN
        padded = jnp.pad(array, params["padding"], constant_values=least)
        shape, strides = params["window_dimensions"], params["window_strides"]
        spread = params["window_dilation"]
        parts = []
        for corner in np.ndindex(*shape):
            begin = np.multiply(corner, spread)
            reach = np.multiply(np.subtract(shape, 1), spread)
            end = np.subtract(padded.shape, reach) + begin
            parts.append(jax.lax.slice(padded, begin, end, strides))
        return self.reduce(jnp.stack(parts), (0,))

    def choose(self, z: Array, above: Array, below: Array) -> Array:
        """Above where z > 0, below where z < 0, and between for gates between."""
        if self.given is None:
            gates = step(jax.lax.stop_gradient(z))
        else:
            gates = self.given[len(self.found)]
        self.found.append(z)
        return gates * above + (1 - gates) * below

    def scan(
        self, eqn: Any, operands: list[Any], known: list[Fact]
    ) -> tuple[list[Any], list[Fact]]:
        """A loop whose rounds have their own gates, stacked as its other inputs are."""
        params, inner = eqn.params, closed(eqn.params["jaxpr"])
        consts, carries = loop_parts(eqn)
        given, first, rows = _split(operands, consts, carries)
        depends, outs = self.reach(inner, [fact.depends for fact in known], consts, carries)

        def body(carry: list[Any], row: tuple[list[Any], list[Array] | None]) -> Any:
            walker = _Walker(self.facts, row[1])
            arguments = [self.facts.argument(depends=each) for each in depends]
            values, _ = walker.run(inner.jaxpr, inner.consts, [*given, *carry, *row[0]], arguments)
            return values[:carries], (values[carries:], walker.found)

        one = [jax.ShapeDtypeStruct(jnp.shape(row)[1:], jnp.result_type(row)) for row in rows]
        number = len(jax.eval_shape(body, first, (one, None))[1][1])
        facts = [self.facts.argument(depends=each) for each in outs]
        if not number:
            return evaluate(eqn, operands), facts
        at = len(self.found)
        gates = None if self.given is None else self.given[at : at + number]
        options = {name: params[name] for name in ("length", "reverse", "unroll")}
        last, (stacked, found) = jax.lax.scan(body, first, (rows, gates), **options)
        self.found.extend(found)
        return [*last, *stacked], facts

    def reach(
        self, inner: core.ClosedJaxpr, depends: list[bool], consts: int, carries: int
    ) -> tuple[list[bool], list[bool]]:
        """Which inputs and outputs of a loop's round derivatives reach, after all rounds."""
        shapes = [variable.aval for variable in inner.jaxpr.invars]
        while True:
            outs = self.dry(inner, shapes, depends)[0]
            carried = [a or b for a, b in zip(depends[consts:], outs[:carries], strict=False)]
            found = [*depends[:consts], *carried, *depends[consts + carries :]]
            if found == depends:
                return depends, outs
            depends = found

    def dry(
        self, inner: core.ClosedJaxpr, shapes: Sequence[Any], depends: Sequence[bool]
    ) -> tuple[list[bool], int]:
        """Of a program that is not run: which outputs derivatives reach, and how many kinks."""
        reached: list[bool] = []

        def trace(*values: Any) -> list[Array]:
            walker = _Walker(self.facts, None)
            known = [self.facts.argument(depends=each) for each in depends]
            _, facts = walker.run(inner.jaxpr, inner.consts, values, known)
            reached.extend(fact.depends for fact in facts)
            return walker.found

        structs = [jax.ShapeDtypeStruct(s.shape, s.dtype) for s in shapes]
        return reached, len(jax.eval_shape(trace, *structs))

    def cond(
        self, eqn: Any, operands: list[Any], known: list[Fact]
    ) -> tuple[list[Any], list[Fact]]:
        """Branches: all are evaluated, if one has kinks or the choice itself is one."""
        branches, compared = [closed(b) for b in eqn.params["branches"]], known[0].compared
        depends = [fact.depends for fact in known[1:]]
        shapes = [variable.aval for variable in eqn.invars[1:]]
        tried = [self.dry(branch, shapes, depends) for branch in branches]
        facts = [
            self.facts.argument(depends=any(each) or compared is not None)
            for each in zip(*(outs for outs, _ in tried), strict=True)
        ]
        if compared is None and not any(number for _, number in tried):
            return evaluate(eqn, operands), facts
        values = [self.run(b.jaxpr, b.consts, operands[1:], known[1:])[0] for b in branches]
        return [
            self.branch(operands[0], compared, each) for each in zip(*values, strict=True)
        ], facts

    def branch(self, index: Array, compared: Array | None, cases: Sequence[Any]) -> Array:
        """One output of the branch that is taken."""
        if compared is None or not jnp.issubdtype(jnp.result_type(cases[0]), jnp.floating):
            return jax.lax.select_n(index, *map(jnp.asarray, cases))
        return self.choose(jnp.broadcast_to(compared, jnp.shape(cases[0])), cases[1], cases[0])


def _split(values: list[Any], first: int, second: int) -> tuple[list[Any], list[Any], list[Any]]:
    return values[:first], values[first : first + second], values[first + second :]
