"""Derivatives of a loss as the central flow takes them: of vectors, compiled once, and counted.

A state is params as a vector, and behind them the memory of the optimiser, if it has one.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from gf_jax.flow.central import chebyshev
from gf_jax.flow.central.scaling import Local, Scaling, plain
from gf_jax.flow.flow import PRODUCT
from gf_jax.flow.problem import FlowProblem
from gf_jax.program.compiling import jit

PyTree = Any

THIRD = 5  # cost of a derivative of the gradient along two vectors, in gradients

Vector = Float[np.ndarray, " parameters"]
State = Float[np.ndarray, " state"]
Block = Float[np.ndarray, "vectors parameters"]


class Derivatives:
    """Of one loss, and of an optimiser on average.

    Attributes:
      start: the initial state.
      unravel: makes a point of a vector of params.
      size: number of params.
      pushed: numbers of a push, see ``advance``.
      evaluations: what was taken so far, in gradients.
    """

    def __init__(self, problem: FlowProblem, scaling: Scaling, step_size: float) -> None:
        flat, self.unravel = ravel_pytree(problem.params)
        self.size = len(flat)
        self.pushed = self.size * (2 if scaling.remembers else 1)
        self.start = np.concatenate([flat, scaling.memory(step_size, flat)])
        self.evaluations = 0
        self._problem, self._scaling, self._step_size = problem, scaling, step_size

    def gradient(self, state: State) -> Vector:
        """∇f."""
        return self._call("gradient", 1, state)

    def local(self, state: State, push: np.ndarray, time: float) -> Local:
        """What the optimiser does near a state, with a push as in ``advance``."""
        if self._scaling.optimizer is None:
            return plain(np.ones(self.size))
        return self._call("local", 1, state, push, time)

    def products(self, state: State, root: Vector, vectors: Block) -> Block:
        """Every vector times the Hessian in the metric whose square root is given."""
        return self._call("products", PRODUCT * len(vectors), state, root, vectors)

    def thirds(self, state: State, left: Block, right: Block) -> Block:
        """∇(uᵀ ∇²f v) of every pair (u, v), which are held fixed."""
        return self._call("thirds", THIRD * len(left), state, left, right)

    def after(self, count: int) -> State:
        """The state after some steps of the optimiser.

        It is a mean of three in a row, of weights ¼, ½ and ¼, so that what alternates is not in it.
        """
        found = self._call("steps", count + 1, self.start, np.arange(count + 1.0))
        found = np.concatenate([self.start[None], found[-3:]])[-3:]
        return (found[0] + 2 * found[1] + found[2]) / 4

    def advance(
        self,
        state: State,
        time: float,
        length: float,
        stiffness: float,
        pushes: tuple[np.ndarray, np.ndarray],
        *,
        corrected: bool,
    ) -> tuple[State, State]:
        """One step of the averaged optimiser.

        Args:
          state: where it begins.
          time: when.
          length: of the step.
          stiffness: largest curvature that the flow meets.
          pushes: at its beginning and its end, in between which they are linear in time: force
            on the gradient, and, behind it, where the optimiser remembers squares, that of what
            alternates in every entry.
          corrected: whether the first order of what steps deviate counts, see ``velocity``.

        Returns:
          The state at its end, and an estimate of its error.
        """
        method = chebyshev.tableau(length, stiffness)
        cost = 1 + PRODUCT if corrected else 1
        name = "corrected" if corrected else "plain"
        taken = cost * (method.stages + 1)
        return self._call(name, taken, state, time, length, method, *pushes)

    def _call(self, name: str, cost: int, *arguments: Any) -> Any:
        self.evaluations += cost
        pure, problem = self._problem.pure, self._problem
        made = pure.once(("central", name, self._scaling), lambda: self._compiled(name))
        return jax.device_get(made(problem.data, self._step_size, *arguments))

    def _compiled(self, name: str) -> Any:
        traced = _Traced(self._problem.pure.field, self._scaling, self.unravel, self.size)
        functions: dict[str, Callable] = {
            "gradient": traced.gradient,
            "local": traced.local,
            "products": traced.products,
            "thirds": traced.thirds,
            "steps": traced.steps,
            "plain": functools.partial(traced.advance, False),
            "corrected": functools.partial(traced.advance, True),
        }
        return jit(functions[name], speed=self._problem.pure.flow_speed)


class _Traced:
    """The same as traced functions of (data, step size, state, ...)."""

    def __init__(self, field: Any, scaling: Scaling, unravel: Callable, size: int) -> None:
        self._field, self._scaling, self._unravel, self._size = field, scaling, unravel, size

    def _slope(self, data: list[Array], state: Array) -> Callable[[Array], Array]:
        """∇f as a function of params as a vector."""
        of_tree = self._field(data, self._unravel(state[: self._size]))
        return lambda where: ravel_pytree(of_tree(self._unravel(where)))[0]

    def _parts(self, state: Array) -> tuple[Array, Array]:
        return state[: self._size], state[self._size :]

    def gradient(self, data: list[Array], step_size: Array, state: Array) -> Array:
        del step_size
        return self._slope(data, state)(state[: self._size])

    def local(self, data: list[Array], step_size: Array, state: Array, *rest: Array) -> Local:
        push, time = rest
        (_, memory), (force, spread) = self._parts(state), self._parts(push)
        gradient = self.gradient(data, step_size, state) + force
        return self._scaling.local(step_size, gradient, jnp.maximum(spread, 0), memory, time)

    def products(self, data: list[Array], step_size: Array, state: Array, *rest: Array) -> Array:
        del step_size
        root, vectors = rest
        _, along = jax.linearize(self._slope(data, state), state[: self._size])
        return root * jax.vmap(along)(root * vectors)

    def thirds(self, data: list[Array], step_size: Array, state: Array, *rest: Array) -> Array:
        del step_size
        slope, point = self._slope(data, state), state[: self._size]

        def of_pair(u: Array, v: Array) -> Array:
            along = lambda where: jax.jvp(slope, (where,), (u,))[1]  # noqa: E731
            return jax.jvp(along, (point,), (v,))[1]

        return jax.vmap(of_pair)(*rest)

    def steps(self, data: list[Array], step_size: Array, state: Array, counts: Array) -> Array:
        slope = self._slope(data, state)

        def step(state: Array, count: Array) -> tuple[Array, Array]:
            params, memory = self._parts(state)
            time = count * step_size
            velocity, memory = self._scaling.step(step_size, slope(params), memory, time)
            after = jnp.concatenate([params + step_size * velocity, memory])
            return after, after

        return jax.lax.scan(step, state, counts)[1]

    def advance(
        self, corrected: bool, data: list[Array], step_size: Array, state: Array, *rest: Any
    ) -> Any:
        time, length, method, begin, end = rest
        slope, change = self._slope(data, state), (end - begin) / length

        def averaged(where: Array, push: Array, now: Array) -> Array:
            params, memory = self._parts(where)
            force, spread = self._parts(push)
            means = self._scaling.averaged(
                step_size, slope(params) + force, jnp.maximum(spread, 0), memory, now
            )
            return jnp.concatenate(means)

        def velocity(where: Array, share: Array) -> Array:
            """V, or V − (s/2) dV/dt: what steps of size s follow."""
            push, now = begin + share * (end - begin), time + share * length
            if not corrected:
                return averaged(where, push, now)
            whole = averaged(where, push, now)
            along = (whole, change, jnp.ones_like(now))
            bend = jax.jvp(averaged, (where, push, now), along)[1]
            return whole - step_size / 2 * jnp.where(jnp.isfinite(bend), bend, 0.0)

        after, error = chebyshev.step(velocity, state, length, method)
        return after, self._in_params(data, step_size, after, error, end, time + length, length)

    def _in_params(self, data: list[Array], step_size: Array, state: Array, *rest: Any) -> Array:
        """An error of the state, with what that of the memory does to params in the step."""
        error, push, time, length = rest
        if not self._scaling.remembers:
            return error
        (params, memory), (own, missed) = self._parts(state), self._parts(error)
        gradient = self._slope(data, state)(params) + push[: self._size]

        def moved(memory: Array) -> Array:
            return self._scaling.step(step_size, gradient, memory, time)[0]

        drift = jax.jvp(moved, (jnp.maximum(memory, 0),), (missed,))[1]
        return jnp.concatenate([own + length * jnp.where(jnp.isfinite(drift), drift, 0.0), missed])


def pairs(vectors: Block) -> tuple[Block, Block]:
    """The pairs of vectors in the order of a symmetric matrix as a vector."""
    rows, columns = np.triu_indices(len(vectors))
    return vectors[rows], vectors[columns]


def weights(size: int) -> Float[np.ndarray, " entries"]:
    """What entries of a symmetric matrix are multiplied by in a vector of the same norm."""
    rows, columns = np.triu_indices(size)
    return np.where(rows == columns, 1.0, np.sqrt(2.0))
