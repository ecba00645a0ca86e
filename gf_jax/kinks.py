"""The gated form of a piecewise smooth function.

Every kink of f is ``below + H(z) (above - below)`` with a kink variable z and the
unit step H: max(a, b) has z = a - b, and min, abs and ``where(x >= 0, x, s x)`` are
of the same form. ``gate`` traces f and gives F(params, gates), in which the gates,
the values of H, are explicit inputs, together with all kink variables:

    f(params) = F(params, [H(z) for z in kinks(params)])
    grad f    = dF/dparams at those gates
    jump of grad f where kink i is crossed = d²F/dgate_i dparams

Kinks inside loops and branches, and those of ``reduce_max``, are left as they are.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jaxtyping import Array

PyTree = Any

# A comparison of floating values, and the sign of left minus right where it is true.
COMPARISONS = {"gt": 1.0, "ge": 1.0, "lt": -1.0, "le": -1.0}
# Their jaxprs run a varying number of times, or not always.
OPAQUE = {"scan", "while", "cond", "reduce", "sort", "custom_linear_solve"}
# A custom derivative around these marks a smooth function in a stable form (logaddexp).
STABILISED = {"exp", "exp2", "expm1", "log", "log1p", "logistic", "tanh"}
# What these give is positive, and what keeps it so: its abs (in logsumexp) is no kink.
POSITIVE = {"exp", "exp2", "logistic"}
KEEP_SIGN = {"reduce_sum", "broadcast_in_dim", "reshape", "squeeze"}


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


def gate(f: Callable[[PyTree], Array], params: PyTree) -> Gated:
    """The gated form of f, traced at params, of which only the shapes matter."""
    closed = jax.make_jaxpr(f)(params)

    def both(params: PyTree, gates: list[Array] | None) -> tuple[Array, list[Array]]:
        walker = _Walker(gates)
        (out,) = walker.run(closed.jaxpr, closed.consts, jax.tree.leaves(params))
        return out, walker.found

    def kinks(params: PyTree) -> list[Array]:
        return both(params, None)[1]

    return Gated(kinks, both, sum(z.size for z in jax.eval_shape(kinks, params)))


def step(z: Array) -> Array:
    """H, as a number; one half on the kink itself, as jnp.maximum differentiates."""
    return jnp.heaviside(z, 0.5)


class _Walker:
    """Interprets a jaxpr, taking gates from a list or, without one, from H(z)."""

    def __init__(self, gates: list[Array] | None) -> None:
        self.given = gates
        self.found: list[Array] = []

    def run(
        self,
        jaxpr: core.Jaxpr,
        consts: Sequence[Any],
        args: Sequence[Any],
        differences: Sequence[Array | None] = (),
    ) -> list[Any]:
        """Values of the outputs.

        Args:
          jaxpr: to interpret.
          consts: values of its constants.
          args: values of its arguments.
          differences: for each argument that is a comparison of floating values made
            outside, the difference with the sign of "true"; else None.
        """
        values = dict(zip(jaxpr.constvars, consts, strict=True))
        values |= dict(zip(jaxpr.invars, args, strict=True))
        pairs = zip(jaxpr.invars, differences, strict=False)
        compared: dict[Any, Array] = {variable: z for variable, z in pairs if z is not None}
        positive: set[Any] = set()

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, core.Literal) else values[atom]

        for eqn in jaxpr.eqns:
            name, operands = eqn.primitive.name, [read(atom) for atom in eqn.invars]
            variables = [None if isinstance(a, core.Literal) else a for a in eqn.invars]
            if name in COMPARISONS and _floating(eqn.invars[0]):
                difference = jnp.asarray(operands[0]) - operands[1]
                compared[eqn.outvars[0]] = COMPARISONS[name] * difference
            if name in POSITIVE or (name in KEEP_SIGN and variables[0] in positive):
                positive.update(eqn.outvars)
            if name == "abs" and variables[0] in positive:
                results = operands
            else:
                results = self.equation(eqn, operands, [compared.get(a) for a in variables])
            values.update(zip(eqn.outvars, results, strict=True))
        return [read(variable) for variable in jaxpr.outvars]

    def equation(self, eqn: Any, operands: list[Any], differences: list[Array | None]) -> list[Any]:
        """Values of the outputs of one equation."""
        name = eqn.primitive.name
        inner = _inner(eqn)
        if inner is not None:
            return self.run(inner.jaxpr, inner.consts, operands, differences)
        if _is_kink(eqn):
            out = eqn.outvars[0].aval
            pair = operands if len(operands) == 2 else (operands[0], -operands[0])
            a, b = (jnp.broadcast_to(jnp.asarray(x, out.dtype), out.shape) for x in pair)
            return [self.choose(a - b, b, a) if name == "min" else self.choose(a - b, a, b)]
        if name == "select_n" and differences[0] is not None and _floating(eqn.outvars[0]):
            z = jnp.broadcast_to(differences[0], eqn.outvars[0].aval.shape)
            return [self.choose(z, operands[2], operands[1])]
        # As jax.core.eval_jaxpr does, whose return value here differs between versions.
        params = eqn.primitive.get_bind_params(eqn.params)
        functions, params = params if isinstance(params, tuple) else ((), params)
        results = eqn.primitive.bind(*functions, *operands, **params)
        return results if eqn.primitive.multiple_results else [results]

    def choose(self, z: Array, above: Array, below: Array) -> Array:
        """Above where z > 0, below where z < 0, and between for gates between."""
        if self.given is None:
            gates = step(jax.lax.stop_gradient(z))
        else:
            gates = self.given[len(self.found)]
        self.found.append(z)
        return gates * above + (1 - gates) * below


def _inner(eqn: Any) -> core.ClosedJaxpr | None:
    """The jaxpr to walk into; None if the equation is to be evaluated as it is."""
    inner = eqn.params.get("call_jaxpr", eqn.params.get("jaxpr"))
    if eqn.primitive.name in OPAQUE or not isinstance(inner, core.Jaxpr | core.ClosedJaxpr):
        return None
    inner = inner if isinstance(inner, core.ClosedJaxpr) else core.ClosedJaxpr(inner, ())
    if eqn.primitive.name.startswith("custom_"):
        equations = list(_equations(inner.jaxpr))
        names = {equation.primitive.name for equation in equations}
        has_kinks = "select_n" in names or any(_is_kink(equation) for equation in equations)
        if names & STABILISED or not has_kinks:
            return None  # its own derivative rule stands
    return inner


def _equations(jaxpr: core.Jaxpr) -> Iterator[Any]:
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            if isinstance(value, core.Jaxpr | core.ClosedJaxpr):
                yield from _equations(value.jaxpr if isinstance(value, core.ClosedJaxpr) else value)


def _is_kink(eqn: Any) -> bool:
    """Whether this is max, min or abs of finite floating values.

    A literal infinity makes no kink, and 0 * inf would be NaN.
    """
    return (
        eqn.primitive.name in ("max", "min", "abs")
        and _floating(eqn.outvars[0])
        and _floating(eqn.invars[0])
        and all(not isinstance(a, core.Literal) or np.all(np.isfinite(a.val)) for a in eqn.invars)
    )


def _floating(atom: Any) -> bool:
    return bool(jnp.issubdtype(atom.aval.dtype, jnp.floating))
