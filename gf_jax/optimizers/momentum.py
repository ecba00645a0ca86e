"""Momentum: descent along a sum of past gradients, in the time of gradient flow.

With step size η and decay β, and v_0 = 0,

    v_{k+1} = β v_k + ∇f(θ_k),    heavy ball:  θ_{k+1} = θ_k − η v_{k+1},
                                  Nesterov:    θ_{k+1} = θ_k − η (∇f(θ_k) + β v_{k+1}).

These are ``optax.sgd`` with momentum, so that Nesterov's params are the points at which the
gradient is taken. At fixed β and small η both follow gradient flow with time

    τ = η / (1 − β) per iteration

(Kovachki & Stuart, Continuous Time Analysis of Momentum Methods, JMLR 22, 2021): runs with
step sizes η and η/r at the same β stand at equal time after k and r k iterations. With
τ λ > (1 − √β)²/(1 − β) heavy ball oscillates along a direction of curvature λ, which no expansion
in τ shows, until that has died down by √β in each iteration.

This is not the limit in which β goes to 1 with the step size, an equation of second order, a ball
with friction (Polyak 1964; Su, Boyd & Candès 2016): that is
``lambda h: optax.sgd(h**2, momentum=1 - c * h)``, an optimiser like any other, see
``gf_jax.optimizers.limit``.
"""

import dataclasses
import numbers
from typing import Any

import optax

from gf_jax.optimizers.steps import Optimizer


@dataclasses.dataclass(frozen=True)
class Momentum:
    """An optimiser, descent with momentum, that knows its time.

    Attributes:
      decay: β, of past gradients in each iteration.
      is_nesterov: whether it is Nesterov's; else heavy ball.

    Raises:
      ValueError: on a decay that is no number from 0 to below 1.

    Example:
      >>> gf_jax.heavy_ball(0.75).time_scale  # time per iteration over the step size
      4.0
    """

    decay: float
    is_nesterov: bool = False

    def __post_init__(self) -> None:
        if not (isinstance(self.decay, numbers.Real) and 0 <= self.decay < 1):
            raise ValueError(f"beta: got {self.decay!r}; accepted is a number from 0 to below 1")

    def __call__(self, step_size: Any) -> optax.GradientTransformation:
        """The transformation of a step size."""
        return optax.sgd(step_size, momentum=self.decay, nesterov=self.is_nesterov)

    @property
    def time_scale(self) -> float:
        """Time per iteration over the step size, 1/(1 − β)."""
        return 1 / (1 - self.decay)


@dataclasses.dataclass(frozen=True)
class OfTime:
    """An optimiser as a function of the time per iteration instead of its step size."""

    optimizer: Optimizer

    def __call__(self, time: Any) -> optax.GradientTransformation:
        """The transformation of a time per iteration."""
        return self.optimizer(time / time_scale(self.optimizer))


def time_scale(optimizer: Optimizer | None) -> float:
    """Time per iteration of an optimiser over its step size: 1 unless it says otherwise."""
    return float(getattr(optimizer, "time_scale", 1.0))


def heavy_ball(beta: float) -> Momentum:
    """Polyak's heavy ball, an optimiser that follows gradient flow.

    Args:
      beta: decay of past gradients, from 0, which is plain descent, to below 1.

    Raises:
      ValueError: on any other.

    Source: Polyak 1964; Kovachki & Stuart, JMLR 22, 2021.

    Example:
      >>> momentum = gf_jax.heavy_ball(0.9)
      >>> def f(w):
      ...     return jnp.sum((w**2 - 1) ** 2)
      >>> w = jnp.array([0.1, 1.5])
      >>> run = gf_jax.gradient_descent(
      ...     f, w, step_size=0.001, ratios=(2,), iterations=10, optimizer=momentum)
      >>> times, step_sizes = run.snapshot_times, run.step_sizes
      >>> gf_jax.predict(f, w, times, step_sizes, optimizer=momentum).to_flow.shape
      (10, 2)
    """
    return Momentum(beta)


def nesterov(beta: float) -> Momentum:
    """Nesterov's momentum with a constant decay; params are the points looked ahead to.

    Args:
      beta: decay of past gradients, from 0, which is plain descent, to below 1.

    Raises:
      ValueError: on any other.

    Source: Nesterov 1983; Kovachki & Stuart, JMLR 22, 2021.

    Example:
      >>> gf_jax.nesterov(0.5).time_scale
      2.0
    """
    return Momentum(beta, True)
