"""A traced program in two parts: what does not depend on its arguments, and what does.

The first part, such as random draws, masks and casts of data, is evaluated once; its results and
the arrays that the program closed over are the data of the second part.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jaxtyping import Array

from gf_jax.program.equations import call_of, evaluate
from gf_jax.program.rules import as_declared, is_literal

# Results that only repeat what they are made of are not kept as data from this size on.
LARGE = 2**20
REPEAT = {"broadcast_in_dim", "iota"}


class Step(NamedTuple):
    """An equation between numbered values."""

    eqn: Any
    operands: list[int]
    results: list[int]

    def take(self, values: dict[int, Any]) -> None:
        """Adds its results to the values."""
        results = evaluate(self.eqn, [values[number] for number in self.operands])
        values.update(zip(self.results, results, strict=True))


class Flat:
    """A program without calls, whose values are numbered.

    Attributes:
      steps: its equations, in order.
      numbers: values of single numbers that stand in it.
      arrays: values of the arrays that it closes over.
      arguments, results: numbers of these.
    """

    def __init__(self, program: core.ClosedJaxpr) -> None:
        self.steps: list[Step] = []
        self.numbers: dict[int, Any] = {}
        self.arrays: dict[int, Any] = {}
        self._count = 0
        self.arguments = [self._new() for _ in program.jaxpr.invars]
        self.results = self._inline(program, self.arguments)

    def _new(self) -> int:
        self._count += 1
        return self._count - 1

    def _constant(self, value: Any, aval: Any, *, literal: bool) -> int:
        number = self._new()
        if literal and np.size(value) == 1:
            self.numbers[number] = as_declared(value, aval)
        else:
            self.arrays[number] = as_declared(value, aval)
        return number

    def _inline(self, program: core.ClosedJaxpr, arguments: Sequence[int]) -> list[int]:
        jaxpr = program.jaxpr
        known = dict(zip(jaxpr.invars, arguments, strict=True))
        for variable, value in zip(jaxpr.constvars, program.consts, strict=True):
            known[variable] = self._constant(value, variable.aval, literal=False)

        def number(atom: Any) -> int:
            if is_literal(atom):
                return self._constant(atom.val, atom.aval, literal=True)
            return known[atom]

        for eqn in jaxpr.eqns:
            operands, inner = [number(atom) for atom in eqn.invars], call_of(eqn)
            if inner is not None and eqn.primitive.name not in ("checkpoint", "remat2"):
                results = self._inline(inner, operands)
            else:
                results = [self._new() for _ in eqn.outvars]
                self.steps.append(Step(eqn, operands, results))
            known.update(zip(eqn.outvars, results, strict=True))
        return [number(atom) for atom in jaxpr.outvars]


class Parts(NamedTuple):
    """A program in two parts.

    Attributes:
      moving: maps data and the arguments, in this order, to the results.
      fixed: maps the arrays that a program closes over to the data.
    """

    moving: core.ClosedJaxpr
    fixed: Any

    def evaluate(self, program: core.ClosedJaxpr) -> list[Array]:
        """The data of a program, which must be one of the same equations."""
        return list(self.fixed([_on_device(value) for value in Flat(program).arrays.values()]))


def split(program: core.ClosedJaxpr) -> Parts:
    """Splits a program."""
    flat = Flat(program)
    steps = _needed(flat)
    moves = _moving(flat, steps)
    moving = [step for step in steps if moves.intersection(step.results) or step.eqn.effects]
    fixed = [step for step in steps if not (moves.intersection(step.results) or step.eqn.effects)]
    used = {number for step in moving for number in step.operands} | set(flat.results)
    first = [*flat.arrays, *(number for step in fixed for number in step.results)]
    data = [number for number in first if number in used]
    made = [number for number in data if number not in flat.arrays]

    @jax.jit
    def evaluate_fixed(arrays: list[Array]) -> list[Array]:
        values = flat.numbers | dict(zip(list(flat.arrays), arrays, strict=True))
        for step in fixed:
            step.take(values)
        return [values[number] for number in made]

    def all_data(arrays: list[Array]) -> list[Array]:
        results = iter(evaluate_fixed(arrays) if made else ())
        closed_over = dict(zip(list(flat.arrays), arrays, strict=True))
        return [closed_over[n] if n in closed_over else next(results) for n in data]

    def rest(given: list[Array], arguments: list[Array]) -> list[Array]:
        values = flat.numbers | dict(zip(data, given, strict=True))
        values |= dict(zip(flat.arguments, arguments, strict=True))
        for step in moving:
            step.take(values)
        return [values[number] for number in flat.results]

    arrays = [_struct(value) for value in flat.arrays.values()]
    shapes = jax.eval_shape(all_data, arrays)
    whole = jax.make_jaxpr(rest)(shapes, [_struct(v.aval) for v in program.jaxpr.invars])
    # What is numbered must not outlive the shapes: the arrays belong to one program only.
    flat.arrays = dict.fromkeys(flat.arrays)
    return Parts(whole, all_data)


def _needed(flat: Flat) -> list[Step]:
    """The steps that results depend on, or that have effects of their own."""
    wanted, needed = set(flat.results), []
    for step in reversed(flat.steps):
        if step.eqn.effects or wanted.intersection(step.results):
            wanted.update(step.operands)
            needed.append(step)
    return needed[::-1]


def _moving(flat: Flat, steps: Iterable[Step]) -> set[int]:
    """Numbers of the values that belong to the second part."""
    moves = set(flat.arguments)
    for step in steps:
        if moves.intersection(step.operands) or _repeats(step.eqn):
            moves.update(step.results)
    return moves


def _repeats(eqn: Any) -> bool:
    """Whether an equation makes much of little."""
    made = sum(variable.aval.size for variable in eqn.outvars)
    return eqn.primitive.name in REPEAT and made > LARGE


def _on_device(value: Any) -> Array:
    return value if isinstance(value, jax.Array) else jnp.asarray(value)


def _struct(value: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(value.shape, value.dtype)
