"""Optimisers by name, for command lines; a new one is a function and a line.

Each is optax's with its usual numbers at the base step size. At a smaller step its averages last as
long in time, not as many steps: a decay β becomes 1 − (1 − β) h/h₀. So all runs follow one limit,
and the base run is what users know by that name.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from gf_jax.optimizers.steps import Optimizer

Step = Callable[[Any, float], optax.GradientTransformation]


class Named(NamedTuple):
    """An optimiser that can be chosen.

    Attributes:
      meaning: what it is, for help.
      title: what outputs call it.
      of_step: maps a step size and that of the base run to the transformation.
    """

    meaning: str
    title: str
    of_step: Step


@dataclasses.dataclass(frozen=True)
class OfBase:
    """An optimiser whose numbers are those of a base step size."""

    of_step: Step
    base: float

    def __call__(self, step_size: Any) -> optax.GradientTransformation:
        """The transformation of a step size."""
        return self.of_step(step_size, self.base)


def _kept(decay: float, step_size: Any, base: float) -> Any:
    """The decay whose memory lasts as long in time as that of the base step size."""
    return 1 - (1 - decay) * step_size / base


def _adam(step_size: Any, base: float) -> optax.GradientTransformation:
    return optax.adam(step_size, _kept(0.9, step_size, base), _kept(0.999, step_size, base))


def _adamw(step_size: Any, base: float) -> optax.GradientTransformation:
    decays = _kept(0.9, step_size, base), _kept(0.999, step_size, base)
    return optax.adamw(step_size, *decays, weight_decay=0.01)


def _rmsprop(step_size: Any, base: float) -> optax.GradientTransformation:
    return optax.rmsprop(step_size, _kept(0.9, step_size, base), eps=1e-3, eps_in_sqrt=False)


def _adagrad(step_size: Any, base: float) -> optax.GradientTransformation:
    part = jnp.sqrt(step_size / base)  # so that the sum of squares grows with time
    return optax.chain(optax.scale(part), optax.scale_by_rss(0.1), optax.scale(-step_size / part))


NAMED = {
    "adam": Named("Adam, decays 0.9 and 0.999", "Adam", _adam),
    "adamw": Named("AdamW, the same with weight decay 0.01", "AdamW", _adamw),
    "rmsprop": Named("RMSProp, decay 0.9, eps 0.001", "RMSProp", _rmsprop),
    "adagrad": Named("AdaGrad", "AdaGrad", _adagrad),
}


def named(name: str, base: float) -> Optimizer:
    """The optimiser of that name, with its usual numbers at a base step size."""
    return OfBase(NAMED[name].of_step, base)
