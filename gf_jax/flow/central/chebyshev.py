"""One step of a stabilised Runge–Kutta method for stiff flows without linear systems.

Of m stages the second-order Runge–Kutta–Chebyshev method is stable up to 0.65 m² over the
stiffness, where usual methods are stable up to about one over it per stage. So a flow that holds
curvature at 2 / s is followed in steps of many s.

Source: Sommeijer, Shampine & Verwer, RKC: an explicit solver for parabolic PDEs, J. Comput. Appl.
Math. 1997.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

DAMPING = 2 / 13
STABLE = 1.54  # squared stages less one, over step times stiffness
MOST_STAGES = 40


class Tableau(NamedTuple):
    """Coefficients of the stages, padded to one length so that one compiled step takes any.

    Attributes:
      stages: how many there are, including the first.
      mu, nu: weights of the last stage and the one before.
      ahead, back: of the velocities at the last stage and at the start.
      nodes: times of the stages as shares of the step.
    """

    stages: int
    mu: Float[np.ndarray, " rows"]
    nu: Float[np.ndarray, " rows"]
    ahead: Float[np.ndarray, " rows"]
    back: Float[np.ndarray, " rows"]
    nodes: Float[np.ndarray, " rows"]


def longest_step(stiffness: float) -> float:
    """The longest step that is stable with the most stages."""
    return ((MOST_STAGES - 1) ** 2 - 1) / (STABLE * stiffness)


def tableau(step: float, stiffness: float) -> Tableau:
    """The method with as many stages as a step needs."""
    stages = max(2, 1 + int(np.ceil(np.sqrt(1 + STABLE * step * stiffness))))
    w0 = 1 + DAMPING / stages**2
    t, dt, ddt = np.zeros((3, stages + 1))
    t[:2], dt[1] = (1, w0), 1
    for j in range(2, stages + 1):
        t[j] = 2 * w0 * t[j - 1] - t[j - 2]
        dt[j] = 2 * (t[j - 1] + w0 * dt[j - 1]) - dt[j - 2]
        ddt[j] = 2 * (2 * dt[j - 1] + w0 * ddt[j - 1]) - ddt[j - 2]
    w1 = dt[-1] / ddt[-1]
    b = np.full(stages + 1, ddt[2] / dt[2] ** 2)
    b[2:] = ddt[2:] / dt[2:] ** 2
    a = 1 - b * t
    rows = np.zeros((5, max(MOST_STAGES, stages) + 2))
    mu, nu, ahead, back, nodes = rows
    ahead[1] = nodes[1] = b[1] * w1
    for j in range(2, stages + 1):
        mu[j], nu[j] = 2 * b[j] * w0 / b[j - 1], -b[j] / b[j - 2]
        ahead[j] = 2 * b[j] * w1 / b[j - 1]
        back[j] = -a[j - 1] * ahead[j]
        nodes[j] = mu[j] * nodes[j - 1] + nu[j] * nodes[j - 2] + ahead[j] + back[j]
    return Tableau(stages, *rows)


def step(
    velocity: Callable[[Array, Array], Array], start: Array, length: Array, method: Tableau
) -> tuple[Array, Array]:
    """The state one step later, and an estimate of its error.

    Args:
      velocity: maps (state, share of the step) to the derivative in time.
      start: the state, a vector.
      length: of the step.
      method: its coefficients, which may be traced.
    """
    begin = velocity(start, jnp.zeros(()))

    def stage(j: Array, carried: tuple[Array, Array]) -> tuple[Array, Array]:
        before, last = carried
        here = velocity(last, method.nodes[j - 1])
        new = (
            (1 - method.mu[j] - method.nu[j]) * start
            + method.mu[j] * last
            + method.nu[j] * before
            + length * (method.ahead[j] * here + method.back[j] * begin)
        )
        return last, new

    first = start + length * method.ahead[1] * begin
    _, end = lax.fori_loop(2, method.stages + 1, stage, (start, first))
    error = 0.8 * (start - end) + 0.4 * length * (begin + velocity(end, jnp.ones(())))
    return end, error
