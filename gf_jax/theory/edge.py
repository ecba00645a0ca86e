"""The edge of stability of any optimiser along its limit, see ``gf_jax.optimizers.alternating``."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Float

from gf_jax.flow.flow import checked_step_sizes
from gf_jax.flow.limit_flow import limit_from, points_along
from gf_jax.flow.problem import FlowProblem, Progress, flow_problem, part
from gf_jax.optimizers.alternating import alternating, repeated
from gf_jax.optimizers.limit import Given, Limit, Point
from gf_jax.optimizers.momentum import OfTime, time_scale
from gf_jax.optimizers.search import Start
from gf_jax.optimizers.steps import Optimizer, check_optimizer
from gf_jax.program.compiling import jit
from gf_jax.program.program import Loss, Program
from gf_jax.program.pure import Pure
from gf_jax.records import record
from gf_jax.theory.spectrum import check_symmetric, krylov, rightmost

PyTree = Any

MOST_SECANTS = 20  # step sizes tried until the edge is found
FARTHEST = 5.0  # logarithm of the largest factor between two of them
SOLVING = 0.5  # share of the progress that the limit is


@record
class Edge:
    """The edge of stability along an optimiser's limit, as NumPy arrays.

    Attributes:
      step_size: step size at the edge, h with h λ_max(M(h)) = 2; infinite where no step size
        is, NaN where none was found.
      sharpness: λ_max(M(h)) of the step sizes that were asked about, the largest curvature in the
        optimiser's own metric.
      residual: norm of M v − λ v for its unit eigenvector v, likewise.
      of_edge: h λ_max(M(h)) / 2, likewise; above 1 oscillations grow.
      products: Hessian-vector products taken, over all points.

    Example:
      >>> def f(w):
      ...     return jnp.sum(w**2)
      >>> found = gf_jax.edge_of_stability(
      ...     f, jnp.ones(2), [0.1], gf_jax.heavy_ball(0.5), [0.3, 0.15])
      >>> found.of_edge.round(3)
      array([[0.2, 0.1]])
    """

    step_size: Float[np.ndarray, " times"]
    sharpness: Float[np.ndarray, "times lanes"]
    residual: Float[np.ndarray, "times lanes"]
    of_edge: Float[np.ndarray, "times lanes"]
    products: int


def edge_of_stability(
    f: Loss | Program,
    params: PyTree,
    times: Float[ArrayLike, " times"],
    optimizer: Optimizer,
    step_sizes: Float[ArrayLike, " lanes"],
    *,
    tolerance: float = 1e-4,
    products: int = 40,
    restarts: int = 10,
    budget: int | None = None,
    progress: Progress | None = None,
) -> Edge:
    """The step size at which an optimiser is at its edge of stability, along its limit.

    There an oscillation whose sign changes with every step neither grows nor decays. For plain
    descent that is 2 / λ_max of the Hessian, for heavy ball (2 + 2β) / λ_max, for Adam in the
    metric of its preconditioner; it is found from the program of the optimiser, whose state is
    that of the limit at each time. Arnoldi's iteration in float64, where the device has it, each
    from what was found before.

    Where f has kinks, curvature is that of the smooth piece that a point lies in.

    Args:
      f: maps parameters to a scalar loss; its gradient differentiable by JAX.
      params: initial point, as in ``limit_flow``.
      times: ascending times from 0, the last above 0, as in ``limit_flow``. At the very start
        averages are of little: what is told there is not what a run soon meets.
      optimizer: maps a step size to an optax transformation.
      step_sizes: of which the sharpness is told, in the optimiser's own units; the limit is found
        at the smallest of them.
      tolerance: largest residual, over the eigenvalue; and relative error of the edge.
      products: Hessian-vector products per start, at most the number of parameters.
      restarts: most starts per point and step size.
      budget: gradients beyond which the solve of the limit is given up.
      progress: is called with the share that is done.

    Returns:
      The edge at every time, and the sharpness of every step size at every time.

    Raises:
      ValueError: as ``limit_flow`` and ``curvature``, and on step sizes that are none.

    Source: Cohen et al., ICLR 2021, and Adaptive Gradient Methods at the Edge of Stability, 2022;
      found from the program here.

    Example:
      >>> def f(w):
      ...     return jnp.sum(w**2 - w[0] * w[1])
      >>> w = jnp.array([0.1, 1.5])
      >>> found = gf_jax.edge_of_stability(f, w, [0.1], gf_jax.nesterov(0.9), [0.01])
      >>> found.step_size.round(4), 2 * 1.9 / 2.8 / 4  # of curvatures 0 and 4
      (array([0.3393]), 0.3392857142857143)
    """
    lanes = checked_step_sizes(step_sizes)
    for name, value in {"products": products, "restarts": restarts}.items():
        if value < 1:
            raise ValueError(f"{name}: got {value}; accepted is a positive integer")
    check_optimizer(optimizer)
    problem = flow_problem(f, params, times, None)
    with problem.numbers.context():
        check_symmetric(problem.pure, problem.data, problem.params)
    scale = time_scale(optimizer)
    sizes = scale * lanes  # in time per iteration, as all that follows
    start = limit_from(problem, OfTime(optimizer), float(sizes.min()))
    points, rows = points_along(problem, start, budget, part(progress, 0.0, SOLVING)), []
    with problem.numbers.context():
        search = _Search(problem, start, tolerance, products, restarts)
        for at in range(len(problem.times)):
            rows.append(search.along(sizes, jax.tree.map(lambda leaf, at=at: leaf[at], points)))
            if progress is not None:
                progress(SOLVING + (1 - SOLVING) * (at + 1) / len(problem.times))
    edges, values, residuals = (np.array(column) for column in zip(*rows, strict=True))
    of_edge = sizes * values / 2
    return Edge(edges / scale, scale * values, scale * residuals, of_edge, search.taken)


class _Search:
    """Largest eigenvalues of M(h), each begun from the eigenvector of the one before.

    Attributes:
      taken: Hessian-vector products so far.
    """

    def __init__(
        self, problem: FlowProblem, start: Start, tolerance: float, products: int, restarts: int
    ) -> None:
        pure, limit = problem.pure, start.limit
        flat, self._unravel = ravel_pytree(problem.params)
        self._depth, self._restarts, self._tolerance = min(products, flat.size), restarts, tolerance
        of_one = functools.partial(_of_one, pure, limit, self._unravel, self._depth)
        self._find = pure.once(
            ("edge", limit, self._depth), lambda: jit(of_one, speed=pure.flow_speed)
        )
        self._arguments = problem.data, start.given
        self._vector: Array = ravel_pytree(pure.gradient(problem.data, problem.params))[0]
        self.taken = 0

    def along(self, sizes: np.ndarray, point: Point) -> tuple[float, list[float], list[float]]:
        """The edge at a point; and the eigenvalue of every step size, with its residual."""
        found = [self._largest(size, point) for size in sizes]
        values, residuals = map(list, zip(*found, strict=True))
        return self._edge(sizes, np.array(values), point), values, residuals

    def _edge(self, sizes: np.ndarray, values: np.ndarray, point: Point) -> float:
        """The step size at the edge, by the secant method in its logarithm, from the nearest."""
        if not np.isfinite(values).all():
            return np.nan
        if not (values > 0).any():
            return np.inf
        beyond = np.log(np.where(values > 0, sizes * values / 2, np.nan))
        nearest = np.nanargmin(np.abs(beyond))
        size, far = np.log(sizes[nearest]), beyond[nearest]
        step = np.clip(-far, -FARTHEST, FARTHEST)
        for _ in range(MOST_SECANTS):
            if abs(far) <= self._tolerance:
                return float(np.exp(size))
            value, _ = self._largest(np.exp(size + step), point)
            if not value > 0:  # a decay that depends on the step size is none there
                step = step / 2
                continue
            before, size = far, size + step
            far = size + np.log(value / 2)
            slope = (far - before) / step
            step = np.clip(-far / slope, -FARTHEST, FARTHEST) if slope > 0 else step / 2
        return np.nan

    def _largest(self, size: float, point: Point) -> tuple[float, float]:
        """The largest eigenvalue of M(h), and its residual."""
        value, residual = np.nan, np.nan
        for _ in range(self._restarts):
            key = jax.random.key(self.taken)
            small = self._find(*self._arguments, size, point, self._vector, key)
            value, residual, vector = rightmost(*small)
            self.taken += self._depth
            if not np.isfinite(value):
                break
            self._vector = vector
            if residual <= self._tolerance * abs(value):
                break
        return value, residual


def _of_one(
    pure: Pure,
    limit: Limit,
    unravel: Callable,
    depth: int,
    data: list[Array],
    given: Given,
    size: Array,
    point: Point,
    start: Array,
    key: Array,
) -> tuple[Array, Array, Array]:
    """What Arnoldi's iteration finds of M(h) at a point."""
    gradient, product = pure.linearize(data, point.params)
    fast = limit.settle(given, point, repeated(gradient, limit.period))
    answer = alternating(limit, given, size, point, gradient, fast)

    def along(vector: Array) -> Array:
        tree = unravel(vector)
        return ravel_pytree(answer(tree, product(tree)))[0]

    return krylov(along, depth, start, key)
