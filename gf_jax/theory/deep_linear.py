"""Deep linear networks: what is known of their gradient flow in closed form.

The network with weights W_1, ..., W_n computes the matrix W = W_n ... W_1. Its flow
conserves W_{j+1}ᵀ W_{j+1} − W_j W_jᵀ for every j, while descent drifts from it at first
order in the step size. Where these vanish, the weights are *balanced*, and the matrix
obeys an equation of its own.

Parameters are ``{dense_j: {weight: (..., d_j, d_{j-1})}}``. Axes in front of a matrix are
those of a stack; starts that are stacked do not meet, as the loss of a stack is the sum of
the losses of its starts, so that one flow or descent follows all of them.

Source: Arora, Cohen & Hazan, ICML 2018; Elkabetz & Cohen, NeurIPS 2021.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from gf_jax.flow import smooth
from gf_jax.flow.flow import LOOSER, Flow, make_flow
from gf_jax.flow.problem import Progress, flow_problem
from gf_jax.problems.networks import Params
from gf_jax.program.program import Loss


def end_to_end(params: Params) -> Float[Array, "... outputs inputs"]:
    """The matrix W_n ... W_1.

    Example:
      >>> start = gf_jax.problems.balanced(jnp.array([[3.0, 4.0]]), (2, 2, 1))
      >>> np.asarray(gf_jax.theory.end_to_end(start)).round(3)
      array([[3., 4.]], dtype=float32)
    """
    weights = _weights(params)
    # From the narrower end: with a scalar output a tenth of the time of the other order.
    if weights[-1].shape[-2] <= weights[0].shape[-1]:
        return functools.reduce(jnp.matmul, reversed(weights))
    return functools.reduce(lambda product, weight: weight @ product, weights)


def end_to_end_loss(target: Float[ArrayLike, "... outputs inputs"]) -> Loss:
    """f(params) = ½ ‖W_n ... W_1 − target‖², Frobenius, summed over a stack.

    Up to a constant it is the squared loss of regression on whitened inputs, if target is
    the cross-covariance of outputs and inputs.

    Args:
      target: one matrix, or a stack that broadcasts to that of the parameters.

    Example:
      >>> f = gf_jax.theory.end_to_end_loss(jnp.array([[3.0, 5.0]]))
      >>> round(float(f(gf_jax.problems.balanced(jnp.array([[3.0, 4.0]]), (2, 2, 1)))), 3)
      0.5
    """

    def f(params: Params) -> Array:
        return 0.5 * jnp.sum(jnp.square(end_to_end(params) - target))

    return f


def unbalancedness(params: Params) -> Float[Array, "... pairs"]:
    """‖W_{j+1}ᵀ W_{j+1} − W_j W_jᵀ‖, Frobenius, for j = 1, ..., n − 1 along the last axis.

    Example:
      >>> start = gf_jax.problems.balanced(jnp.array([[3.0, 4.0]]), (2, 2, 1))
      >>> bool(gf_jax.theory.unbalancedness(start).max() < 1e-5)
      True
    """
    weights = _weights(params)
    pairs = [
        jnp.linalg.norm(upper.mT @ upper - lower @ lower.mT, axis=(-2, -1))
        for lower, upper in itertools.pairwise(weights)
    ]
    return jnp.stack(pairs, axis=-1) if pairs else jnp.zeros((*weights[0].shape[:-2], 0))


def end_to_end_flow(
    start: Float[ArrayLike, "... inputs"],
    target: Float[ArrayLike, "... inputs"],
    times: Float[ArrayLike, " times"],
    *,
    depth: int,
    tolerance: float | None = None,
    progress: Progress | None = None,
) -> Flow:
    """The vector w = W_n ... W_1 under the flow of a balanced network with a scalar output.

    It obeys an equation of its own, whatever the widths of the hidden layers:

        w' = −‖w‖^(2 − 2/n) (g + (n − 1) (wᵀg / ‖w‖²) w),   g = w − target.

    Args:
      start: w at time 0, or a stack of them.
      target: of regression; one, or a stack that broadcasts to that of the starts.
      times: ascending times from 0, the last above 0.
      depth: number of layers n.
      tolerance: largest error per step; None is 1e-8, as in ``gf_jax.gradient_flow``.
      progress: is called now and then with the share of the work done.

    Returns:
      The flow; its params are w, shape (times, ..., inputs), its loss ½ ‖w − target‖²,
      summed over the stack.

    Raises:
      ValueError: on a depth below 1, on times or tolerance that are not accepted.

    Source: Arora, Cohen & Hazan, ICML 2018, theorem 1 and claim 2.

    Example:
      >>> flow = gf_jax.theory.end_to_end_flow([0.1, 0.0], [1.0, 0.0], [1.0, 9.0], depth=2)
      >>> flow.params.round(3)
      array([[0.451, 0.   ],
             [1.   , 0.   ]])
    """
    if depth < 1:
        raise ValueError(f"depth: got {depth}; accepted are integers from 1")

    start, target = np.asarray(start, np.float64), np.asarray(target, np.float64)

    def f(w: Array) -> Array:
        return 0.5 * jnp.sum(jnp.square(w - target))

    def velocity(target: Array, w: Array) -> Array:
        norm = jnp.linalg.norm(w, axis=-1, keepdims=True)
        direction = w / jnp.where(norm > 0, norm, 1.0)
        gradient = w - target
        along = jnp.sum(direction * gradient, axis=-1, keepdims=True)
        return -(norm ** (2 - 2 / depth)) * (gradient + (depth - 1) * along * direction)

    with jax.enable_x64(True):  # f is of NumPy's float64
        problem = flow_problem(f, start, times, tolerance)
    name = ("end to end", depth)
    method = smooth.Method(name, velocity, smooth.HIGH_ORDER, smooth.whole, 1, LOOSER)
    (solution,) = smooth.solve_twice(problem, method, problem.params, [target], progress)
    return make_flow(problem, solution.state, solution.error[0], solution.statistics)


def _weights(params: Params) -> list[Array]:
    """W_1, ..., W_n, by their numbers: names sort dense_10 in front of dense_2."""
    return [params[f"dense_{j}"]["weight"] for j in range(1, len(params) + 1)]
