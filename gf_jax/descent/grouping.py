"""Which lanes share a compiled loop, so that a thousand of them compile as fast as a dozen.

Between two comparisons a lane of ratio r takes r steps, and goes on in ever smaller stacks as
others arrive. A loop for each lane wastes nothing, but every loop is compiled. Of many lanes some
share a loop: who has arrived in it is carried along, and its gradients are not used.
"""

import functools
from typing import NamedTuple

import numpy as np

MOST_ENDS = 1000  # of a group, among more lanes
MOST_LOOPS = 12  # none is wasted on that many lanes; of 1, 2, ... 1,000 steps a twelfth is


class Group(NamedTuple):
    """Lanes that arrive in one loop.

    Attributes:
      first: of all lanes, the first in it; those behind the last of them go on beside it.
      last: the last in it.
      steps: taken by the loop.
    """

    first: int
    last: int
    steps: int


@functools.lru_cache(maxsize=64)
def groups(lanes: tuple[int, ...], most: int = MOST_LOOPS) -> tuple[Group, ...]:
    """Groups of the lanes behind the first, as few gradients as possible for so many loops.

    Args:
      lanes: ratios, ascending from 1. The first step is taken by all of them before.
      most: loops, at least 1.

    Returns:
      The groups in order, at most so many. They take all steps but the first.

    Example:
      >>> groups((1, 2, 5), most=2)
      (Group(first=1, last=1, steps=1), Group(first=2, last=2, steps=3))
      >>> groups((1, 2, 5), most=1)
      (Group(first=1, last=2, steps=4),)
    """
    number = len(lanes) - 1
    ends = np.unique(np.linspace(0, number, min(number, MOST_ENDS) + 1).astype(int))
    steps, start = np.array(lanes, float)[ends], ends[:, None]
    cost = np.where(start < ends, (number - start) * (steps - steps[:, None]), np.inf)
    spent, choices = np.where(ends == 0, 0.0, np.inf), []
    for _ in range(min(most, len(ends) - 1)):
        choices.append((spent[:, None] + cost).argmin(0))
        spent = (spent[:, None] + cost).min(0)
    found, at = [], len(ends) - 1
    for choice in reversed(choices):
        before = int(choice[at])
        first, last = int(ends[before]), int(ends[at])
        found.append(Group(first + 1, last, lanes[last] - lanes[first]))
        at = before
    return tuple(reversed(found))


def evaluations(lanes: tuple[int, ...]) -> int:
    """Gradients of a base iteration of all lanes, those that are not used included."""
    number = len(lanes)
    return number + sum((number - group.first) * group.steps for group in groups(lanes))
