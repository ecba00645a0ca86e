"""Derivatives of a loss as the central flow takes them: of vectors, compiled once, and counted."""

import functools
from typing import Any

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from gf_jax.flow.central import chebyshev
from gf_jax.flow.flow import PRODUCT
from gf_jax.flow.problem import FlowProblem
from gf_jax.program.compiling import jit

PyTree = Any

THIRD = 5  # cost of a derivative of the gradient along two vectors, in gradients

Vector = Float[np.ndarray, " parameters"]
Block = Float[np.ndarray, "vectors parameters"]


class Derivatives:
    """Of one loss.

    Attributes:
      start: the initial point, as a vector.
      unravel: makes a point of a vector.
      evaluations: what was taken so far, in gradients.
    """

    def __init__(self, problem: FlowProblem) -> None:
        flat, self.unravel = ravel_pytree(problem.params)
        self.start = np.asarray(flat)
        self.evaluations = 0
        self._problem = problem

    def gradient(self, point: Vector) -> Vector:
        """∇f."""
        return self._call("gradient", 1, point)

    def products(self, point: Vector, vectors: Block) -> Block:
        """Every vector times the Hessian."""
        return self._call("products", PRODUCT * len(vectors), point, vectors)

    def thirds(self, point: Vector, left: Block, right: Block) -> Block:
        """∇(uᵀ ∇²f v) of every pair (u, v), which are held fixed."""
        return self._call("thirds", THIRD * len(left), point, left, right)

    def advance(
        self,
        point: Vector,
        length: float,
        stiffness: float,
        forces: tuple[Vector, Vector],
        correction: float | None,
    ) -> tuple[Vector, Vector]:
        """One step of the flow of f and of a force, which is linear in time.

        Args:
          point: where it begins.
          length: of the step.
          stiffness: largest curvature that the flow meets.
          forces: at the beginning and at the end of the step.
          correction: step size s of descent whose modified flow is followed, see ``velocity``;
            None is the flow alone.

        Returns:
          The point at its end, and an estimate of its error.
        """
        method = chebyshev.tableau(length, stiffness)
        cost = 1 if correction is None else 1 + PRODUCT
        name = "plain" if correction is None else "corrected"
        taken = cost * (method.stages + 1)
        return self._call(name, taken, point, length, method, *forces, correction or 0.0)

    def _call(self, name: str, cost: int, *arguments: Any) -> Any:
        self.evaluations += cost
        pure, problem = self._problem.pure, self._problem
        made = pure.once(("central", name), lambda: self._compiled(name))
        return jax.device_get(made(problem.data, *arguments))

    def _compiled(self, name: str) -> Any:
        pure, unravel = self._problem.pure, self.unravel

        def field(data: list[Array], point: Array) -> Any:
            of_tree = pure.field(data, unravel(point))
            return lambda where: ravel_pytree(of_tree(unravel(where)))[0]

        def gradient(data: list[Array], point: Array) -> Array:
            return field(data, point)(point)

        def products(data: list[Array], point: Array, vectors: Array) -> Array:
            _, along = jax.linearize(field(data, point), point)
            return jax.vmap(along)(vectors)

        def thirds(data: list[Array], point: Array, left: Array, right: Array) -> Array:
            slope = field(data, point)

            def of_pair(u: Array, v: Array) -> Array:
                along = lambda where: jax.jvp(slope, (where,), (u,))[1]  # noqa: E731
                return jax.jvp(along, (point,), (v,))[1]

            return jax.vmap(of_pair)(left, right)

        def advance(corrected: bool, data: list[Array], point: Array, *rest: Any) -> Any:
            length, method, begin, end, step_size = rest
            slope = field(data, point)

            def velocity(where: Array, share: Array) -> Array:
                """−F, or −F + (s/2) dF/dt, of F = ∇f + force: what steps of size s follow."""
                force = begin + share * (end - begin)
                if not corrected:
                    return -(slope(where) + force)
                whole = slope(where) + force
                change = (end - begin) / length - jax.jvp(slope, (where,), (whole,))[1]
                return -whole + step_size / 2 * change

            return chebyshev.step(velocity, point, length, method)

        functions: dict[str, Any] = {
            "gradient": gradient,
            "products": products,
            "thirds": thirds,
            "plain": functools.partial(advance, False),
            "corrected": functools.partial(advance, True),
        }
        return jit(functions[name], speed=pure.flow_speed)


def pairs(vectors: Block) -> tuple[Block, Block]:
    """The pairs of vectors in the order of a symmetric matrix as a vector."""
    rows, columns = np.triu_indices(len(vectors))
    return vectors[rows], vectors[columns]


def weights(size: int) -> Float[np.ndarray, " entries"]:
    """What entries of a symmetric matrix are multiplied by in a vector of the same norm."""
    rows, columns = np.triu_indices(size)
    return np.where(rows == columns, 1.0, np.sqrt(2.0))
