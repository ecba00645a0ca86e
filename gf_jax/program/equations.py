"""The equations of a traced program: which choose, which compare, which call."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jaxtyping import Array

from gf_jax.program.facts import REARRANGE, STEPS, Fact

# A comparison of floating values, and the sign of left minus right where it is true.
COMPARISONS = {"gt": 1.0, "ge": 1.0, "lt": -1.0, "le": -1.0}
EQUALITIES = {"eq": 1.0, "ne": -1.0}
COMPARING = {"max", "min", "abs", "sign", "clamp", "reduce_max", "reduce_min", "reduce_window_max"}
# What only calls a program. All else that holds one is evaluated as it is, or handled below.
CALLS = {"jit", "pjit", "closed_call", "core_call", "checkpoint", "remat2"}


def live(jaxpr: core.Jaxpr, wanted: Sequence[bool]) -> set[Any]:
    """The variables whose derivatives reach the outputs that are wanted."""
    outputs = zip(jaxpr.outvars, wanted, strict=True)
    found = {atom for atom, each in outputs if each and not isinstance(atom, core.Literal)}
    for eqn in reversed(jaxpr.eqns):
        reached, inner = [variable in found for variable in eqn.outvars], call_of(eqn)
        if not any(reached) or eqn.primitive.name in STEPS | {"stop_gradient"}:
            continue
        operands = eqn.invars
        if inner is not None:
            within = live(inner.jaxpr, reached)
            pairs = zip(operands, inner.jaxpr.invars, strict=True)
            operands = [atom for atom, variable in pairs if variable in within]
        found.update(atom for atom in operands if not isinstance(atom, core.Literal))
    return found


def evaluate(eqn: Any, operands: list[Any]) -> list[Any]:
    """Computes the results of an equation of its operands, as JAX would."""
    # As jax.core.eval_jaxpr does, whose return value here differs between versions.
    params = eqn.primitive.get_bind_params(eqn.params)
    functions, params = params if isinstance(params, tuple) else ((), params)
    results = eqn.primitive.bind(*functions, *operands, **params)
    return results if eqn.primitive.multiple_results else [results]


def difference(eqn: Any, operands: list[Any], known: list[Fact]) -> Array | None:
    """What a truth value, an output of this equation, compares with zero.

    For a > b it is a - b; for a > b and c > d the smaller one of both differences, and so on.
    For a == b, where one of them is what a kink chooses, as the largest entry, it is 1 where they
    are equal and -1 elsewhere: between the sides of that kink no two would be.
    None if it is no truth value that may change with the parameters.
    """
    name, compared = eqn.primitive.name, [fact.compared for fact in known]
    if name in EQUALITIES and floating(eqn.invars[0]):
        infinite = any(fact.number and np.isinf(x) for fact, x in zip(known, operands, strict=True))
        same = known[0].name == known[1].name  # so that NaN is asked for
        if infinite or same or not any(fact.chosen for fact in known):
            return None
        dtype = jnp.result_type(*operands)
        return jnp.where(operands[0] == operands[1], 1.0, -1.0).astype(dtype) * EQUALITIES[name]
    if name in COMPARISONS and floating(eqn.invars[0]):
        if not any(fact.depends for fact in known) or settled("max", known):
            return None
        return COMPARISONS[name] * (jnp.asarray(operands[0]) - operands[1])
    if not any(z is not None for z in compared):
        return None
    if name in ("convert_element_type", "stop_gradient"):
        return compared[0]
    if name in REARRANGE:
        return evaluate(eqn, compared)[0]
    if name == "not":
        assert compared[0] is not None
        return -compared[0]
    if name in ("and", "or"):
        # A mask is as a difference that never changes its sign.
        a, b = (
            jnp.where(x, 1.0, -1.0) if z is None else z
            for x, z in zip(operands, compared, strict=True)
        )
        return jnp.minimum(a, b) if name == "and" else jnp.maximum(a, b)
    return None


def settled(name: str, known: list[Fact]) -> bool:
    """Whether the signs of its operands tell that a choice always goes the same way."""
    first, last = known[0], known[-1]
    if name in ("abs", "sign"):
        return first.nonnegative or first.nonpositive
    ordered = (first.nonnegative and last.nonpositive) or (first.nonpositive and last.nonnegative)
    return name in ("max", "min") and ordered


def call_of(eqn: Any) -> core.ClosedJaxpr | None:
    """The program that an equation does nothing but call; None if it is another equation."""
    inner = eqn.params.get("call_jaxpr", eqn.params.get("jaxpr"))
    is_call = eqn.primitive.name in CALLS and isinstance(inner, core.Jaxpr | core.ClosedJaxpr)
    return closed(inner) if is_call else None


def closed(program: core.Jaxpr | core.ClosedJaxpr) -> core.ClosedJaxpr:
    """A program with its constants, of which one that is not closed has none."""
    return program if isinstance(program, core.ClosedJaxpr) else core.ClosedJaxpr(program, ())


def loop_parts(eqn: Any) -> tuple[int, int]:
    """How many constants a scan has, and how many values it carries from round to round.

    All its other inputs and outputs have a leading axis that enumerates the rounds.
    """
    inner = closed(eqn.params["jaxpr"]).jaxpr

    def whole(outer: Sequence[Any], inside: Sequence[Any]) -> int:
        pairs = zip(outer, inside, strict=True)
        return sum(len(a.aval.shape) == len(b.aval.shape) for a, b in pairs)

    carries = whole(eqn.outvars, inner.outvars)
    return whole(eqn.invars, inner.invars) - carries, carries


def while_parts(eqn: Any) -> tuple[core.ClosedJaxpr, core.ClosedJaxpr, int, int]:
    """Condition and body of a while loop, and how many constants each of them has."""
    params = eqn.params
    programs = closed(params["cond_jaxpr"]), closed(params["body_jaxpr"])
    return *programs, params["cond_nconsts"], params["body_nconsts"]


def branches_of(eqn: Any) -> list[core.ClosedJaxpr]:
    """The branches of a choice between programs."""
    return [closed(branch) for branch in eqn.params["branches"]]


def equations_within(jaxpr: core.Jaxpr) -> Iterator[Any]:
    """All equations of a program, and of the programs within it."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in jax.tree.leaves(list(eqn.params.values())):  # branches are a tuple
            if isinstance(value, core.Jaxpr | core.ClosedJaxpr):
                yield from equations_within(closed(value).jaxpr)


def is_choice(eqn: Any) -> bool:
    """Whether this chooses between finite floating values.

    A literal infinity makes no kink, and 0 * inf would be NaN.
    """
    return (
        eqn.primitive.name in COMPARING
        and floating(eqn.outvars[0])
        and floating(eqn.invars[0])
        and all(not isinstance(a, core.Literal) or np.all(np.isfinite(a.val)) for a in eqn.invars)
    )


def floating(atom: Any) -> bool:
    """Whether its values are real floating-point numbers."""
    return bool(jnp.issubdtype(atom.aval.dtype, jnp.floating))
