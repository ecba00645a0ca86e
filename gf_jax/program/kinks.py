"""The gated form of a piecewise smooth function.

Every kink of f is ``below + H(z) (above - below)`` with a kink variable z and the
unit step H: max(a, b) has z = a - b, and min, abs, sign and ``where(x >= 0, x, s x)`` are
of the same form. ``gate`` traces f and gives F(params, gates), in which the gates,
the values of H, are explicit inputs, together with all kink variables:

    f(params) = F(params, [step(kink) for kink in kinks(params)])
    grad f    = dF/dparams at those gates, on the kinks themselves as well
    jump of grad f where kink i is crossed = d²F/dgate_i dparams

On a kink JAX's derivative is a matter of definition, and descent goes by it: half the sum of
both sides for ``jnp.maximum``, that of zero for ``jax.nn.relu``. So every kink has its own gate
there, its tie. A side that is not taken is never multiplied: it may not be finite.

A choice is a kink only where derivatives in the parameters reach it and its sign may change,
see ``facts``: not in softmax, whose maximum is subtracted behind ``stop_gradient``, nor in
masks, nor in the guards of normalisation layers. Loops with a fixed number of rounds
(``scan``) and branches (``cond``) are walked through, and so is the rule of a ``custom_jvp``, which
need not be the derivative of its function; what has a ``custom_vjp`` keeps its own derivative, and
sorting is left as it is.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jaxtyping import Array

from gf_jax.program.equations import (
    call_of,
    closed,
    difference,
    evaluate,
    floating,
    is_choice,
    live,
    loop_parts,
    settled,
)
from gf_jax.program.facts import Fact, Facts

PyTree = Any


class Kink(NamedTuple):
    """Kink variables z, and the gates where they are zero, of the same shape."""

    z: Array
    tie: Array


class Gated(NamedTuple):
    """A function in gated form.

    Attributes:
      kinks: maps params to the list of kinks.
      both: maps (params, gates) to (f, kinks) with the gates given, arrays like the kink
        variables; with gates None, those of params themselves.
      size: number of kink variables, over all arrays.
    """

    kinks: Callable[[PyTree], list[Kink]]
    both: Callable[[PyTree, list[Array] | None], tuple[Array, list[Kink]]]
    size: int


def gate(f: Callable[[PyTree], Array], params: PyTree, *, given: int = 0) -> Gated:
    """The gated form of f, traced at params, of which only the shapes matter.

    Args:
      f: maps params to a scalar.
      params: a pytree of arrays.
      given: number of leaves, the first ones, in which f is not differentiated: its data.
    """
    program = jax.make_jaxpr(f)(params)

    def both(params: PyTree, gates: list[Array] | None) -> tuple[Array, list[Kink]]:
        walker, leaves = _Walker(Facts(), gates), jax.tree.leaves(params)
        known = [walker.facts.argument(depends=at >= given) for at in range(len(leaves))]
        (out,), _ = walker.run(program.jaxpr, program.consts, leaves, known)
        return out, walker.found

    def kinks(params: PyTree) -> list[Kink]:
        return both(params, None)[1]

    return Gated(kinks, both, sum(kink.z.size for kink in jax.eval_shape(kinks, params)))


def step(kink: Kink) -> Array:
    """The gates: H of the kink variables, and on the kinks themselves as JAX differentiates."""
    z, tie = jax.lax.stop_gradient(kink)
    return jnp.where(z > 0, 1.0, jnp.where(z < 0, 0.0, tie)).astype(z.dtype)


class _Walker:
    """Interprets a jaxpr, taking gates from a list or, without one, from H(z).

    Where only the value of a program matters, and not its derivative, continuous choices such
    as the larger of two are no kinks.
    """

    def __init__(
        self, facts: Facts, gates: list[Array] | None, *, value_only: bool = False
    ) -> None:
        self.facts, self.given, self.value_only = facts, gates, value_only
        self.found: list[Kink] = []

    def within(self, gates: list[Array] | None) -> "_Walker":
        """A walker for a program within this one."""
        return _Walker(self.facts, gates, value_only=self.value_only)

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
        name, inner = eqn.primitive.name, call_of(eqn)
        if name == "custom_jvp_call" and any(matters):
            if not self.value_only:
                return self.with_own_rule(eqn, operands, known)
            inner = closed(eqn.params["call_jaxpr"])
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
                return [chosen], [fact._replace(chosen=True)]
        results = evaluate(eqn, operands)
        if eqn.primitive.multiple_results:
            return results, [fact._replace(name=self.facts.fresh()) for _ in results]
        return results, [fact._replace(compared=difference(eqn, operands, known))]

    def chosen(self, eqn: Any, operands: list[Any], known: list[Fact]) -> Array | None:
        """The value of an equation that may be a kink; None if it is none."""
        name, out = eqn.primitive.name, eqn.outvars[0].aval
        compared = known[0].compared if known else None
        if is_choice(eqn) and any(k.depends for k in known) and not settled(name, known):
            continuous = self.value_only and name != "sign"
            return None if continuous else self.choice(eqn, operands)
        if compared is None or not floating(eqn.outvars[0]):
            return None
        if name == "select_n":
            z, mask = (jnp.broadcast_to(x, out.shape) for x in (compared, operands[0]))
            return self.choose(z, operands[2], operands[1], mask)
        if name == "convert_element_type":  # a mask as a factor
            ones, zeros = jnp.ones((), out.dtype), jnp.zeros((), out.dtype)
            return self.choose(compared, ones, zeros, operands[0])
        return None

    def choice(self, eqn: Any, operands: list[Any]) -> Array:
        """The value of a choice between floating values."""
        name, out = eqn.primitive.name, eqn.outvars[0].aval
        if name in ("reduce_max", "reduce_min"):
            return self.reduce(operands[0], eqn.params["axes"], least=name == "reduce_min")
        if name == "reduce_window_max":
            return self.windows(operands[0], eqn.params)
        if name == "clamp":  # whose derivative is zero at both ends
            low, value, high = (jnp.broadcast_to(x, out.shape) for x in operands)
            return self.larger(self.larger(value, low, tie=0.0), high, tie=0.0, least=True)
        a = jnp.broadcast_to(jnp.asarray(operands[0], out.dtype), out.shape)
        if name == "sign":
            return self.choose(a, jnp.ones_like(a), -jnp.ones_like(a))
        b = -a if name == "abs" else jnp.asarray(operands[1], out.dtype)
        b = jnp.broadcast_to(b, out.shape)
        return self.larger(a, b, tie=_tie(name), least=name == "min")

    def larger(self, a: Array, b: Array, *, tie: Any = 0.5, least: bool = False) -> Array:
        """The larger of two arrays, or the lesser; tie is the weight of a where they are equal."""
        z = jnp.where(a == b, 0.0, a - b)  # infinities may be equal
        return self.choose(z, b, a, 1 - tie) if least else self.choose(z, a, b, tie)

    def reduce(self, array: Array, axes: Sequence[int], *, least: bool = False) -> Array:
        """Largest or least entries along axes, by halves; equal ones share the derivative."""
        kept = [axis for axis in range(array.ndim) if axis not in axes]
        stack = jnp.transpose(array, (*axes, *kept)).reshape(-1, *(array.shape[a] for a in kept))
        equal = jnp.ones_like(stack)
        while len(stack) > 1:
            half = len(stack) // 2
            (a, b), (m, n) = ((x[:half], x[half : 2 * half]) for x in (stack, equal))
            best = self.larger(a, b, tie=m / (m + n), least=least)
            number = jnp.where(a == b, m + n, jnp.where((a < b) == least, m, n))
            stack = jnp.concatenate([best, stack[2 * half :]])
            equal = jnp.concatenate([number, equal[2 * half :]])
        return stack[0]

    def windows(self, array: Array, params: dict[str, Any]) -> Array:
        """Largest entries of all windows; of equal ones the first takes the derivative."""
        padded = jnp.pad(array, params["padding"], constant_values=-np.inf)
        shape, strides = params["window_dimensions"], params["window_strides"]
        spread = params["window_dilation"]
        parts = []
        for corner in np.ndindex(*shape):
            begin = np.multiply(corner, spread)
            reach = np.multiply(np.subtract(shape, 1), spread)
            end = np.subtract(padded.shape, reach) + begin
            parts.append(jax.lax.slice(padded, begin, end, strides))
        stack = jnp.stack(parts)
        while len(stack) > 1:
            half = len(stack) // 2
            larger = self.larger(stack[:half], stack[half : 2 * half], tie=1.0)
            stack = jnp.concatenate([larger, stack[2 * half :]])
        return stack[0]

    def choose(self, z: Array, above: Array, below: Array, tie: Any = 0.5) -> Array:
        """A new kink: ``above`` where z > 0 and ``below`` where z < 0.

        In gated form the gates that are given decide in place of z; a gate between 0 and 1
        gives the weighted mean of both sides.
        """
        ties = jnp.broadcast_to(jnp.asarray(jax.lax.stop_gradient(tie), z.dtype), z.shape)
        kink = Kink(z, ties)
        gates = step(kink) if self.given is None else self.given[len(self.found)]
        self.found.append(kink)
        return _between(gates, above, below)

    def with_own_rule(
        self, eqn: Any, operands: list[Any], known: list[Fact]
    ) -> tuple[list[Any], list[Fact]]:
        """A function with a rule for its derivative, whose kinks are those of the rule.

        The value has kinks of its own where it may jump. To it is added what the rule says of
        the distance from here, which is zero, so that the derivative is that of the rule.
        """
        moving = [
            floating(atom) and fact.depends for atom, fact in zip(eqn.invars, known, strict=True)
        ]
        here = [
            x if fact.number else jax.lax.stop_gradient(jnp.asarray(x))
            for x, fact in zip(operands, known, strict=True)
        ]
        chosen = [(x, at) for x, at, moves in zip(operands, here, moving, strict=True) if moves]
        rule = _rule(eqn, here, moving)
        arguments = [*known, *(self.facts.argument(depends=True) for _ in chosen)]

        def gates_of(program: core.ClosedJaxpr, *values: Any) -> list[Array]:
            """The gates of a program, whose kinks are entered."""
            walker, at = _Walker(self.facts, None, value_only=True), len(self.found)
            walker.run(program.jaxpr, program.consts, values, arguments[: len(values)])
            self.found.extend(walker.found)
            if self.given is None:
                return [step(kink) for kink in walker.found]
            return self.given[at : len(self.found)]

        def run(program: core.ClosedJaxpr, gates: list[Array], *values: Any) -> Any:
            walker = _Walker(self.facts, gates, value_only=True)
            return walker.run(program.jaxpr, program.consts, values, arguments[: len(values)])

        inner = closed(eqn.params["call_jaxpr"])
        of_value = gates_of(inner, *operands)
        of_rule = gates_of(rule, *operands, *(jnp.zeros_like(at) for _, at in chosen))
        values, facts = run(inner, of_value, *operands)
        facts = [
            fact._replace(depends=bool(chosen) and floating(variable), compared=None)
            for fact, variable in zip(facts, eqn.outvars, strict=True)
        ]
        if not of_value and not of_rule:
            return evaluate(eqn, operands), facts
        slopes, _ = run(rule, of_rule, *here, *(x - at for x, at in chosen))
        changes = iter(slopes)
        return [
            jax.lax.stop_gradient(value) + next(changes) if floating(variable) else value
            for value, variable in zip(values, eqn.outvars, strict=True)
        ], facts

    def scan(
        self, eqn: Any, operands: list[Any], known: list[Fact]
    ) -> tuple[list[Any], list[Fact]]:
        """A loop whose rounds have their own gates, stacked as its other inputs are."""
        params, inner = eqn.params, closed(eqn.params["jaxpr"])
        consts, carries = loop_parts(eqn)
        given, first, rows = _split(operands, consts, carries)
        depends, outs = self.reach(inner, [fact.depends for fact in known], consts, carries)
        chosen = any(fact.chosen for fact in known)

        def body(carry: list[Any], row: tuple[list[Any], list[Array] | None]) -> Any:
            walker = self.within(row[1])
            arguments = [self.facts.argument(depends=each, chosen=chosen) for each in depends]
            values, _ = walker.run(inner.jaxpr, inner.consts, [*given, *carry, *row[0]], arguments)
            return values[:carries], (values[carries:], walker.found)

        one = [jax.ShapeDtypeStruct(jnp.shape(row)[1:], jnp.result_type(row)) for row in rows]
        number = len(jax.eval_shape(body, first, (one, None))[1][1])
        facts = [self.facts.argument(depends=each, chosen=chosen or number > 0) for each in outs]
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

        def trace(*values: Any) -> list[Kink]:
            walker = self.within(None)
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
        chosen = any(fact.chosen for fact in known) or any(number for _, number in tried)
        facts = [
            self.facts.argument(depends=any(each) or compared is not None, chosen=chosen)
            for each in zip(*(outs for outs, _ in tried), strict=True)
        ]
        if compared is None and not any(number for _, number in tried):
            return evaluate(eqn, operands), facts
        return self.branches(branches, operands, known, tried), facts

    def branches(
        self,
        branches: list[core.ClosedJaxpr],
        operands: list[Any],
        known: list[Fact],
        tried: list[tuple[list[bool], int]],
    ) -> list[Any]:
        """The results of the branch that is taken, or of two of them between a kink's sides.

        A branch that is not taken is not computed: what it holds may be no number at all.
        None of its kinks is then met.
        """
        index, rest, compared = operands[0], operands[1:], known[0].compared
        choice: Any = None
        if compared is not None:
            self.choose(compared, jnp.ones(()), jnp.zeros(()), index)
            kink = self.found[-1]
            choice = step(kink) if self.given is None else self.given[len(self.found) - 1]
        at, number = len(self.found), sum(count for _, count in tried)
        given = None if self.given is None else self.given[at : at + number]
        ends = np.cumsum([count for _, count in tried])

        def one(which: int) -> tuple[list[Any], list[Kink]]:
            own = None if given is None else given[ends[which] - tried[which][1] : ends[which]]
            walker, branch = self.within(own), branches[which]
            values, _ = walker.run(branch.jaxpr, branch.consts, rest, known[1:])
            return [jnp.asarray(value) for value in values], walker.found

        shapes = [jax.eval_shape(lambda n=n: one(n)[1]) for n in range(len(branches))]

        def only(which: int) -> tuple[list[Any], list[Kink]]:
            values, found = one(which)
            others = [found if n == which else _apart(each) for n, each in enumerate(shapes)]
            return values, [kink for each in others for kink in each]

        def both() -> tuple[list[Any], list[Kink]]:
            (below, first), (above, second) = one(0), one(1)
            pairs = zip(above, below, strict=True)
            return [
                _between(choice, a, b) if jnp.issubdtype(a.dtype, jnp.floating) else a
                for a, b in pairs
            ], [*first, *second]

        ways: list[Callable] = [functools.partial(only, n) for n in range(len(branches))]
        if choice is not None and len(branches) == 2:
            ways.append(both)
            index = jnp.where(choice == 0, 0, jnp.where(choice == 1, 1, 2))
        values, found = jax.lax.switch(index.astype(np.int32), ways)
        self.found.extend(found)
        return values


@functools.cache
def _tie(name: str) -> float:
    """The weight of the first of two equal values in the derivative that JAX takes of a choice."""
    with jax.ensure_compile_time_eval():
        if name == "abs":  # the larger of x and -x
            return float(jax.grad(jax.lax.abs)(0.0) + 1) / 2
        return float(jax.grad({"max": jax.lax.max, "min": jax.lax.min}[name])(0.0, 0.0))


def _between(gates: Array, above: Array, below: Array) -> Array:
    """The mean of both sides with the gates as weights: 1 is above alone, 0 below alone.

    One side is taken alone where the other is not finite.
    """
    gates = gates.astype(jnp.result_type(above))  # of data, another precision than the kink's
    mixes = jnp.isfinite(above) & jnp.isfinite(below)
    a, b = (jnp.where(mixes, side, 0.0) for side in (above, below))
    alone = (gates == 1) | ((gates > 0) & (jnp.isfinite(above) | ~jnp.isfinite(below)))
    return jnp.where(mixes, gates * a + (1 - gates) * b, jnp.where(alone, above, below))


def _rule(eqn: Any, operands: list[Any], moving: list[bool]) -> core.ClosedJaxpr:
    """The rule of a ``custom_jvp``: floating results from operands and tangents of those moving."""

    def rule(operands: list[Any], tangents: list[Any]) -> list[Any]:
        def of_moving(*chosen: Any) -> list[Any]:
            others = iter(chosen)
            whole = [next(others) if m else x for x, m in zip(operands, moving, strict=True)]
            results = zip(evaluate(eqn, whole), eqn.outvars, strict=True)
            return [result for result, variable in results if floating(variable)]

        chosen = [x for x, moves in zip(operands, moving, strict=True) if moves]
        return jax.jvp(of_moving, chosen, tangents)[1]

    tangents = [x for x, moves in zip(operands, moving, strict=True) if moves]
    return jax.make_jaxpr(rule)(operands, tangents)


def _apart(shapes: Sequence[Kink]) -> list[Kink]:
    """Kinks of these shapes at z = 1, so that none of them is met."""
    return [Kink(*(jnp.ones(x.shape, x.dtype) for x in kink)) for kink in shapes]


def _split(values: list[Any], first: int, second: int) -> tuple[list[Any], list[Any], list[Any]]:
    return values[:first], values[first : first + second], values[first + second :]
