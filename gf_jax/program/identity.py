"""When two traced programs are the same, but for the data that they close over.

Programs are told apart by their equations: operations with all their parameters, single numbers,
shapes. Functions with a derivative of their own are told apart by the program of that rule, since
JAX makes a new object of the rule at every trace; of what is not comparable at all, such as the
Python function of a callback, it must be the same object.
"""

from collections.abc import Hashable
from typing import Any

import jax
import numpy as np
from jax.extend import core

from gf_jax.program.equations import closed
from gf_jax.program.rules import Rule, Settings, as_declared, is_literal

DEPTH = 3  # of rules within rules, beyond which the names of functions tell
OWN_RULES = ("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")
OF_RULES = {"jvp_jaxpr_fun", "jvp_jaxpr_thunk", "fwd_jaxpr_thunk", "bwd", "out_trees"}


class Same:
    """Equal to what holds the very same object, which it keeps from being replaced."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def identity(program: core.ClosedJaxpr, settings: Settings) -> Hashable:
    """What two programs have in common if they differ in the data they close over at most."""
    jaxpr = program.jaxpr
    constants = tuple(_data(variable.aval) for variable in jaxpr.constvars)
    return constants, _of_program(jaxpr, settings, DEPTH, outermost=True)


def _of_program(
    jaxpr: core.Jaxpr, settings: Settings, depth: int, *, outermost: bool = False
) -> Hashable:
    """The equations, their values numbered in the order in which they are made."""
    numbers = {v: n for n, v in enumerate([*jaxpr.constvars, *jaxpr.invars])}

    def name(atom: Any) -> Hashable:
        if not is_literal(atom):
            return numbers[atom]
        value = as_declared(atom.val, atom.aval)
        is_data = outermost and np.size(value) != 1
        return ("data", _data(atom.aval)) if is_data else ("number", _frozen(value))

    equations = []
    for eqn in jaxpr.eqns:
        operands = tuple(name(atom) for atom in eqn.invars)
        for variable in eqn.outvars:
            numbers[variable] = len(numbers)
        equations.append((eqn.primitive.name, operands, _of_parameters(eqn, settings, depth)))
    shapes = tuple(_data(variable.aval) for variable in jaxpr.invars)
    return shapes, tuple(equations), tuple(name(atom) for atom in jaxpr.outvars)


def _of_parameters(eqn: Any, settings: Settings, depth: int) -> Hashable:
    own_rule = eqn.primitive.name in OWN_RULES
    kept = {k: v for k, v in eqn.params.items() if not (own_rule and k in OF_RULES)}
    parameters = [(k, _frozen(v, settings, depth)) for k, v in sorted(kept.items())]
    if own_rule and depth:
        parameters.append(("rule", _of_rule(eqn, settings, depth)))
    return tuple(parameters)


def _of_rule(eqn: Any, settings: Settings, depth: int) -> Hashable:
    rule = Rule(eqn, settings)
    try:
        traced = rule.forward() if eqn.primitive.name == "custom_jvp_call" else rule.both()
    except Exception:  # some refuse, with errors of any kind, derivatives in some operands
        return Same(eqn)
    return _frozen(traced, settings, depth - 1)


def _frozen(value: Any, settings: Settings | None = None, depth: int = 0) -> Hashable:
    """A parameter of an equation, as something that is compared by its value where it can be."""
    if isinstance(value, core.Jaxpr | core.ClosedJaxpr):
        assert settings is not None
        program = closed(value)
        constants = tuple(_frozen(constant) for constant in program.consts)
        return constants, _of_program(program.jaxpr, settings, depth)
    if isinstance(value, tuple | list):
        return tuple(_frozen(part, settings, depth) for part in value)
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        if jax.numpy.issubdtype(value.dtype, jax.dtypes.extended):
            return Same(value)
        array = np.asarray(value)
        return array.dtype.str, array.shape, array.tobytes()
    try:
        hash(value)
    except TypeError:
        return Same(value)
    return type(value).__name__, value


def _data(aval: Any) -> Hashable:
    return aval.shape, str(aval.dtype)
