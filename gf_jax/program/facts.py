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

# What these give never changes, but for jumps that are not followed.
STEPS = {"floor", "ceil", "round", "is_finite", "argmax", "argmin"}
NONNEGATIVE = {"exp", "exp2", "logistic", "square", "abs", "sqrt", "rsqrt"}
REARRANGE = {"broadcast_in_dim", "reshape", "squeeze", "transpose", "expand_dims", "copy"}
SAME_SIGN = REARRANGE | {"convert_element_type", "stop_gradient", "slice", "concatenate", "rev"}
# Not negative if no operand is.
SUMS = {"add", "reduce_sum", "cumsum", "reduce_window_sum", "mul", "div", "dot_general"}
EXTREMES = {"max", "min", "reduce_max", "reduce_min", "select_n", "log1p"}
# Named by how they are made: what means consist of, applied to values one by one or summed.
MEANS = {"reduce_sum", "div", "mul", "convert_element_type"} | REARRANGE


class Fact(NamedTuple):
    """What is known of a value.

    Attributes:
      name: the same for values that are made in the same way.
      depends: whether it changes with the parameters.
      nonnegative, nonpositive: whether it never is below, or above, zero.
      compared: of the truth value of a comparison, such as a > b, the difference of what is
        compared, with the sign at which the comparison is true: here a - b. None of all else.
      number: whether it is a single number that the program itself holds.
      chosen: whether it is made of what kinks choose, as a largest entry.
    """

    name: int
    depends: bool = False
    nonnegative: bool = False
    nonpositive: bool = False
    compared: Array | None = None
    number: bool = False
    chosen: bool = False


class Facts:
    """The facts of all values of one program, and how they are named."""

    def __init__(self) -> None:
        self._names: dict[Any, int] = {}
        self._made: dict[int, tuple[str, str, tuple[int, ...]]] = {}
        self._numbers: dict[int, float] = {}
        self._summed: dict[int, int] = {}

    def argument(self, *, depends: bool, chosen: bool = False) -> Fact:
        """Of a value that comes from outside."""
        return Fact(self.fresh(), depends, chosen=chosen)

    def literal(self, value: Any) -> Fact:
        """Of a constant; NaN, which no sum of it hides, has both signs."""
        array = np.asarray(value)
        name = self._names.setdefault((array.dtype.str, array.shape, array.tobytes()), self._next())
        number = array.size == 1
        if array.dtype.kind != "f":
            return Fact(name, number=number)
        if number:
            self._numbers[name] = float(array.item())
        return Fact(name, False, not (array < 0).any(), not (array > 0).any(), number=number)

    def result(self, eqn: Any, operands: list[Fact]) -> Fact:
        """Of each output of an equation, whose operands have these facts."""
        kind = eqn.primitive.name
        name = self._name(eqn, [fact.name for fact in operands])
        depends = kind not in STEPS and any(fact.depends for fact in operands)
        return Fact(
            name,
            depends and bool(jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.inexact)),
            self._nonnegative(eqn, operands),
            kind in SAME_SIGN and all(fact.nonpositive for fact in operands),
            chosen=any(fact.chosen for fact in operands),
        )

    def _nonnegative(self, eqn: Any, operands: list[Fact]) -> bool:
        kind, params = eqn.primitive.name, eqn.params
        cases = operands[1:] if kind == "select_n" else operands
        if kind in NONNEGATIVE or (kind == "integer_pow" and params["y"] % 2 == 0):
            return True
        if kind == "mul" and operands[0].name == operands[1].name:
            return True
        if kind == "sub":
            return self._is_variance(operands[0].name, operands[1].name)
        if kind == "max" and any(fact.nonnegative for fact in operands):
            return True
        keeps = kind in SAME_SIGN | SUMS | EXTREMES
        return keeps and all(fact.nonnegative for fact in cases)

    def _is_variance(self, squares: int, square: int) -> bool:
        """Whether these are c Σ x² and (c Σ x)² with c at most one over the number of summands."""
        kind, _, operands = self._made.get(square, ("", "", ()))
        if kind != "square":
            return False
        name, weight = self._of_squares(operands[0])
        return name == squares and 0 < weight < 1 + 1e-6  # 1 but for rounding

    def _of_squares(self, mean: int) -> tuple[int | None, float]:
        """For c Σ x the name of c Σ x², and c times the number of summands."""
        kind, params, operands = self._made.get(mean, ("", "", ()))
        if kind == "reduce_sum":
            inner: int | None = self._names.get(("square", "", operands))
            weight = float(self._summed[mean])
        elif kind in MEANS:
            inner, weight = self._of_squares(operands[0])
            factor = self._numbers.get(operands[-1], 0.0) if kind in ("div", "mul") else 1.0
            weight = weight / factor if kind == "div" and factor else weight * factor
        else:
            return None, 0.0
        return self._names.get((kind, params, (inner, *operands[1:]))), weight

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
        if kind == "reduce_sum":
            self._summed[name] = eqn.invars[0].aval.size // max(1, eqn.outvars[0].aval.size)
        return name

    def _next(self) -> int:
        return len(self._names)

    def fresh(self) -> int:
        """A name of its own."""
        return self._names.setdefault(object(), self._next())
