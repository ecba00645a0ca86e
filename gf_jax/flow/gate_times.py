"""For how long gates stand open in a step, from kink variables at its ends.

Of a step and the two before it the kink variables z are known where they end. Functions here take
those of one kink, arrays of any shape, and ``Span``, lengths and ends of steps.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from gf_jax.program.kinks import Kink, step

TELLING_GATES = 0.2  # how much two gates differ that tell what they do to z


class Span(NamedTuple):
    """A step: its length, and of one kink z where it began, and gate and time open in it.

    Attributes:
      length: of the step.
      begin: the kink variable at its beginning.
      foreseen: for how long the gate was foretold to be open.
      gate: that was taken.
    """

    length: Array
    begin: Array
    foreseen: Array
    gate: Array


def secant(z: Array, speed: Array, length: Array) -> Array:
    """When z reaches zero at that speed; the length if it does not before."""
    crosses = z * (z + length * speed) < 0
    return jnp.where(crosses, -z / jnp.where(crosses, speed, 1.0), length)


def time_open(begin: Kink, end: Array, crossing: Array, length: Array) -> Array:
    """For how long a gate is open in a step, from z at both ends and the time of the crossing."""
    before = jnp.where(begin.z == 0, jnp.sign(end), jnp.sign(begin.z))
    after = jnp.where(end == 0, before, jnp.sign(end))
    crossing = jnp.where(before * after < 0, crossing, length)
    open_before, open_after = (step(begin._replace(z=sign)) for sign in (before, after))
    whole = open_before * crossing + open_after * (length - crossing)
    return whole.astype(begin.z.dtype)


def shortfall(end: Kink, last: Span, before: Span, later: Array, length: Array) -> Array:
    """For how much longer a gate should have been open in the last step than was foretold.

    Args:
      end: the kink at the end of the last step.
      last: that step.
      before: the one before it.
      later: z at the end of the step after it.
      length: of the step after it.
    """
    up = jnp.sign(end.z - last.begin)
    speed_before = up * (last.begin - before.begin) / before.length
    speed_after = up * (later - end.z) / length

    def reach(distance: Array, speed: Array) -> Array:
        """The time to get as far, if that is within the step; else all of it."""
        reached = speed * last.length > distance
        return jnp.where(reached, distance / jnp.where(reached, speed, 1.0), last.length)

    from_begin = reach(jnp.abs(last.begin), speed_before)
    to_end = reach(jnp.abs(end.z), speed_after)
    # Of the two, the one that is nearer to what it is drawn from knows better.
    weights = from_begin**2 + to_end**2
    weighed = from_begin * to_end**2 + (last.length - to_end) * from_begin**2
    crossing = jnp.where(weights > 0, weighed / jnp.where(weights > 0, weights, 1.0), 0.0)
    return time_open(end._replace(z=last.begin), end.z, crossing, last.length) - last.foreseen


def bend(known: Array, z: Array, last: Span, before: Span) -> Array:
    """How the speed of z changes with its own gate, where two steps tell; else what is known.

    It is negative where both sides of the kink lead to it, and else of no interest.
    """
    change = last.gate - before.gate
    speed, speed_before = (
        (z - last.begin) / last.length,
        (last.begin - before.begin) / before.length,
    )
    differs = jnp.abs(change) > TELLING_GATES
    found = (speed - speed_before) / jnp.where(differs, change, 1.0)
    return jnp.where(differs & (found < 0), found, known).astype(known.dtype)


def slides(z: Array, bend: Array, last: Span, length: Array) -> Array:
    """Whether both sides lead to the kink, and some gate makes z zero after the step."""
    speed = (z - last.begin) / last.length
    open_speed, closed_speed = speed + bend * (1 - last.gate), speed - bend * last.gate
    reaching = -z / length
    return (
        (open_speed < 0)
        & (closed_speed > 0)
        & (open_speed <= reaching)
        & (reaching <= closed_speed)
    )


def holding(z: Array, bend: Array, last: Span, length: Array) -> Array:
    """The gate with which z is zero after the step: between 0 and 1 where it slides."""
    speed = (z - last.begin) / last.length
    wanted = last.gate - (z / length + speed) / jnp.where(bend < 0, bend, -1.0)
    held = jnp.where(bend < 0, jnp.clip(wanted, 0.0, 1.0), jnp.where(z > 0, 1.0, 0.0))
    return held.astype(z.dtype)
