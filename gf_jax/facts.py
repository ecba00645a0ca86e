"""What a program tells of its values before any of them is computed.

A kink is counted only where a value depends on the parameters and may change its sign. So
every value has facts beside it: whether derivatives reach it, and signs that it never changes,
such as those of squares, exponentials, their sums, and the variance E[x²] - E[x]² that fast
normalisation layers take. Two values have one name if they are made in the same way.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

# No derivative passes these; a value behind them counts as given.
STOPS = {"stop_gradient", "floor", "ceil", "round", "is_finite", "argmax", "argmin"}
NONNEGATIVE = {"exp", "exp2", "logistic", "square", "abs", "sqrt", "rsqrt"}
REARRANGE = {"broadcast_in_dim", "reshape", "squeeze", "transpose", "expand_dims", "copy"}
SAME_SIGN = REARRANGE | {"convert_element_type", "stop_gradient", "slice", "concatenate", "rev"}
# Not negative if no operand is.
SUMS = {"add", "reduce_sum", "cumsum", "reduce_window_sum", "mul", "div", "dot_general"}
CHOICES = {"max", "min", "reduce_max", "reduce_min", "select_n", "log1p"}
# Named by how they are made: what means consist of, applied to values one by one or summed.
MEANS = {"reduce_sum", "div", "mul", "convert_element_type"} | REARRANGE


class Fact(NamedTuple):
    """What is known of a value.

    Attributes:
      name: the same for values that are made in the same way.
      depends: whether derivatives in the parameters reach it.
      nonnegative, nonpositive: whether it never is below, or above, zero.
      compared: where it is a comparison of floating values, their difference with the sign
        of "true".
      number: whether it is a single number that the program itself holds.
    """

    name: int
    depends: bool = False
    nonnegative: bool = False
    nonpositive: bool = False
    compared: Array | None = None
    number: bool = False


class Facts:
    """The facts of all values of one program, and how they are named."""

    def __init__(self) -> None:
        self._names: dict[Any, int] = {}
        self._made: dict[int, tuple[str, str, tuple[int, ...]]] = {}

    def argument(self, *, depends: bool) -> Fact:
        """Of a value that comes from outside."""
        return Fact(self.fresh(), depends)

    def literal(self, value: Any) -> Fact:
        """Of a constant; NaN, which no sum of it hides, has both signs."""
        array = np.asarray(value)
        name = self._names.setdefault((array.dtype.str, array.shape, array.tobytes()), self._next())
        number = array.size == 1
        if array.dtype.kind != "f":
            return Fact(name, number=number)
        return Fact(name, False, not (array < 0).any(), not (array > 0).any(), number=number)

    def result(self, eqn: Any, operands: list[Fact]) -> Fact:
        """Of each output of an equation, whose operands have these facts."""
        kind = eqn.primitive.name
        name = self._name(eqn, [fact.name for fact in operands])
        depends = kind not in STOPS and any(fact.depends for fact in operands)
        return Fact(
            name,
            depends and bool(jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.inexact)),
            self._nonnegative(eqn, operands),
            kind in SAME_SIGN and all(fact.nonpositive for fact in operands),
        )

    def _nonnegative(self, eqn: Any, operands: list[Fact]) -> bool:
        kind, params = eqn.primitive.name, eqn.params
        cases = operands[1:] if kind == "select_n" else operands
        if kind in NONNEGATIVE or (kind == "integer_pow" and params["y"] % 2 == 0):
            return True
        if kind == "mul" and operands[0].name == operands[1].name:
            return True
        if kind == "sub":
            return self._squares(operands[1].name) == operands[0].name
        if kind == "max" and any(fact.nonnegative for fact in operands):
            return True
        keeps = kind in SAME_SIGN | SUMS | CHOICES
        return keeps and all(fact.nonnegative for fact in cases)

    def _squares(self, name: int) -> int | None:
        """For the square of a mean, the name of the mean of the squares."""
        kind, _, operands = self._made.get(name, ("", "", ()))
        return self._mean_of_squares(operands[0]) if kind == "square" else None

    def _mean_of_squares(self, mean: int) -> int | None:
        kind, params, operands = self._made.get(mean, ("", "", ()))
        if kind == "reduce_sum":
            inner: int | None = self._names.get(("square", "", operands))
        elif kind in MEANS:
            inner = self._mean_of_squares(operands[0])
        else:
            return None
        return None if inner is None else self._names.get((kind, params, (inner, *operands[1:])))

    def _name(self, eqn: Any, operands: list[int]) -> int:
        kind, params = eqn.primitive.name, ""
        if kind == "square" or (kind == "integer_pow" and eqn.params["y"] == 2):
            kind = "square"
        elif kind == "mul" and operands[0] == operands[1]:
            kind, operands = "square", operands[:1]
        elif kind in MEANS:
            params = str(sorted(eqn.params.items()))
        else:
            return self.fresh()
        made = (kind, params, tuple(operands))
        name = self._names.setdefault(made, self._next())
        self._made[name] = made
        return name

    def _next(self) -> int:
        return len(self._names)

    def fresh(self) -> int:
        """A name of its own."""
        return self._names.setdefault(object(), self._next())
