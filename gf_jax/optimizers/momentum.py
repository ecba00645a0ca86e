"""Momentum: descent along a sum of past gradients, in the time of gradient flow.

With step size η and decay β, and v_0 = 0,

    v_{k+1} = β v_k + ∇f(θ_k),    heavy ball:  θ_{k+1} = θ_k − η v_{k+1},
                                  Nesterov:    θ_{k+1} = θ_k − η (∇f(θ_k) + β v_{k+1}).

These are ``optax.trace``, so that Nesterov's params are the points at which the gradient is
taken. At fixed β and small η both follow gradient flow with time

    τ = η / (1 − β) per iteration

(Kovachki & Stuart, Continuous Time Analysis of Momentum Methods, JMLR 22, 2021): runs with
step sizes η and η/r at the same β stand at equal time after k and r k iterations.

This is not the limit in which β goes to 1 with η, 1 − β in proportion to √η: that is an
equation of second order, a ball with friction (Polyak 1964; Su, Boyd & Candès 2016), and
nothing here compares with it.

First order. To order τ² iterates follow θ' = −∇f − (τ/2) c ∇²f ∇f, which is found by putting
θ_{k±1} = θ ± τ θ' + τ² θ''/2 into θ_{k+1} − θ_k − β (θ_k − θ_{k−1}) = −η ∇f(θ_k), and for
Nesterov −η ((1 + β) ∇f(θ_k) − β ∇f(θ_{k−1})):

    heavy ball:  c = (1 + β)/(1 − β),    Nesterov:  c = (1 − β + 2 β²)/(1 − β);

for plain descent, β = 0, c is 1. But at rest momentum has to build up: step k moves by
τ (1 − β^{k+1}) of the velocity, Nesterov's by τ (1 − β^{k+2}), so that after k steps iterates
are behind by ℓ (1 − β^k) of them, with ℓ = β/(1 − β), and β²/(1 − β). Along a flow the
velocity itself solves the equation of small deviations, so that to be late stays to be
late, and with the deviation e of plain descent (see ``flow``)

    θ_k = θ(t) + τ (c e(t) + ℓ (1 − β^k) ∇f(θ(t))) + O(τ²),    t = k τ.

It asks for c τ times the curvature to be small. With τ λ > (1 − √β)²/(1 − β) heavy ball
oscillates along a direction of curvature λ, which no expansion in τ shows, until that has
died down by √β in each iteration.
"""

import functools
import numbers
from typing import NamedTuple

import numpy as np
import optax
from jaxtyping import ArrayLike, Float


class Momentum(NamedTuple):
    """Descent with momentum, and what is known of it to first order.

    Attributes:
      transformation: makes directions of gradients, see ``gradient_descent``.
      decay: β, of past gradients in each iteration.
      time_scale: time per iteration over the step size, 1/(1 − β).
      deviation: c, by which the deviation of plain descent is larger here, at the same
        time per iteration.
      lag: ℓ, by how many iterations a run that started at rest is behind at last.

    Example:
      >>> round(float(gf_jax.heavy_ball(0.5).lag_after(2)), 3)
      0.75
    """

    transformation: optax.GradientTransformation
    decay: float
    time_scale: float
    deviation: float
    lag: float

    def lag_after(self, steps: ArrayLike) -> Float[np.ndarray, "..."]:
        """By how many iterations a run is behind after some of them."""
        return self.lag * (1 - self.decay ** np.asarray(steps, np.float64))


def heavy_ball(beta: float) -> Momentum:
    """Polyak's heavy ball.

    Args:
      beta: decay of past gradients, from 0, which is plain descent, to below 1.

    Raises:
      ValueError: on any other.

    Source: Polyak 1964; Kovachki & Stuart, JMLR 22, 2021.

    Example:
      >>> momentum = gf_jax.heavy_ball(0.9)
      >>> round(momentum.time_scale, 6), round(momentum.deviation, 6)
      (10.0, 19.0)
      >>> def f(w):
      ...     return jnp.sum((w**2 - 1) ** 2)
      >>> w = jnp.array([0.1, 1.5])
      >>> run = gf_jax.gradient_descent(
      ...     f, w, step_size=0.001, ratios=(2,), iterations=10, transformation=momentum)
      >>> times, step_sizes = run.snapshot_times, run.step_sizes
      >>> gf_jax.predict(f, w, times, step_sizes, momentum=momentum).to_flow.shape
      (10, 2)
    """
    beta = _checked(beta)
    rest = 1 - beta
    return Momentum(_trace(beta, nesterov=False), beta, 1 / rest, (1 + beta) / rest, beta / rest)


def nesterov(beta: float) -> Momentum:
    """Nesterov's momentum with a constant decay; params are the points looked ahead to.

    Args:
      beta: decay of past gradients, from 0, which is plain descent, to below 1.

    Raises:
      ValueError: on any other.

    Source: Nesterov 1983; Kovachki & Stuart, JMLR 22, 2021.

    Example:
      >>> round(gf_jax.nesterov(0.9).deviation, 6)
      17.2
    """
    beta = _checked(beta)
    rest = 1 - beta
    deviation = (1 - beta + 2 * beta**2) / rest
    return Momentum(_trace(beta, nesterov=True), beta, 1 / rest, deviation, beta**2 / rest)


@functools.cache
def _trace(beta: float, *, nesterov: bool) -> optax.GradientTransformation:
    """One object for each decay, so that what is compiled with it serves again."""
    return optax.trace(beta, nesterov=nesterov)


def _checked(beta: float) -> float:
    if not (isinstance(beta, numbers.Real) and 0 <= beta < 1):
        raise ValueError(f"beta: got {beta!r}; accepted is a number from 0 to below 1")
    return float(beta)
