"""Where two trajectories of a piecewise smooth loss take different sides of one kink, and part.

Two that are near each other cross a kink at nearly the same time, or slide along it both, and stay
near. Where its two sides lead apart, one may be driven back that passes by a hair while the other
crosses: from there on they part at the speed of the jump of the gradient. So a kink parts two
trajectories if they are on different sides of it for long, and that jump times that long makes up
for what lies between them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from gf_jax.comparison import precise_distance
from gf_jax.flow.problem import FlowProblem
from gf_jax.program.compiling import jit
from gf_jax.program.kinks import step

PyTree = Any

LASTING = 3  # sampling times on different sides, one after another, that are no delay
LOOKED_AT = 8  # kinks whose jump is looked at, those first that are passed differently for longest
CLOSELY = 64  # points at which is looked how near a kink is passed
EXPLAINS = 0.5  # share of the distance between the two that the kink makes up for


class Parting(NamedTuple):
    """A kink that two trajectories pass on different sides.

    Attributes:
      slot: index of the first sampling time at which they do.
      time: that time.
      array: number of the kink's array, in the order of the program.
      flat: its place in that array, flattened.
      place: the same, an index for every axis.
      jump: of the gradient across the kink, its norm.
      effect: the jump times as long as they are on different sides, a distance.
    """

    slot: int
    time: float
    array: int
    flat: int
    place: tuple[int, ...]
    jump: float
    effect: float

    @property
    def name(self) -> str:
        """Which kink it is."""
        where = ", ".join(map(str, self.place))
        return f"entry ({where}) of array {self.array + 1} of the kinks"


class _Run(NamedTuple):
    """A kink, by its array and its flat index there, from one sampling time to another."""

    array: int
    flat: int
    first: int
    last: int


def partings(problem: FlowProblem, one: PyTree, other: PyTree) -> list[Parting]:
    """The kinks that part two trajectories, the first first.

    Args:
      problem: the loss and the sampling times.
      one: a trajectory at these times, leaves of shape (times, ...).
      other: another one, likewise.
    """
    distance = precise_distance(one, other, 1)
    lasting = _lasting(problem, one, other)
    found = []
    for run in sorted(lasting, key=lambda run: _length(problem, run))[-LOOKED_AT:]:
        size, own, shape = _jump(problem, at(one, run.first), run)
        grown = distance[run.last] - distance[max(run.first - 1, 0)]
        effect = size * _length(problem, run)
        if own < 0 and effect >= EXPLAINS * grown > 0:
            place = tuple(int(each) for each in np.unravel_index(run.flat, shape))
            time = float(problem.times[run.first])
            found.append(Parting(run.first, time, run.array, run.flat, place, size, effect))
    return sorted(found)


def kink_along(problem: FlowProblem, points: PyTree, which: Parting) -> Float[np.ndarray, " times"]:
    """The kink variable of one kink along a trajectory, leaves of shape (times, ...)."""
    gated_with = problem.gated_of

    def along(data: list[Array], points: PyTree, array: int, flat: Array) -> Array:
        def one(point: PyTree) -> Array:
            return gated_with(data, point).kinks(point)[array].z.ravel()[flat]

        return jax.lax.map(one, points)

    def make() -> Any:
        return jit(along, speed=problem.pure.flow_speed, static_argnums=2)

    with problem.numbers.context():
        solve = problem.pure.once(("a kink along", problem.numbers.dtype), make)
        points = problem.numbers.cast(points)
        return np.asarray(solve(problem.data, points, which.array, which.flat))


def surely(
    problem: FlowProblem,
    found: Parting,
    coarse: PyTree,
    middle: PyTree,
    fine: PyTree,
    follow_on: Callable[[PyTree, np.ndarray], PyTree],
) -> bool:
    """Whether the two finer of three solutions are sure to pass a kink on the right side.

    They are on the same, and the kink variable has at least twice to spare what lies between them.
    That is how near the finest comes to zero if it is driven back, or how much farther it would
    have gone than the coarse one, had that kink not been, if it crosses.

    Args:
      problem: the problem.
      found: the kink that parts the coarse solution from the finest.
      coarse: a solution, leaves of shape (times, ...).
      middle: a finer one.
      fine: the finest.
      follow_on: maps a point, and times after it, to the flow from there at these times.
    """
    along = [kink_along(problem, each, found) for each in (coarse, middle, fine)]
    of_coarse, of_middle, of_fine = along
    if of_middle[found.slot] * of_fine[found.slot] <= 0 or found.slot < 2:
        return False
    begin, end = found.slot - 2, min(found.slot + 2, len(problem.times) - 1)
    side = np.sign(of_fine[begin])
    off = 2 * np.abs(of_middle - of_fine)[begin : found.slot].max()
    returns = side * of_fine[found.slot] > 0
    length = problem.times[end] - problem.times[begin]
    times = np.linspace(0.0, length, CLOSELY + 1)[1:]
    looked_at = follow_on(at(fine if returns else coarse, begin), times)
    nearest = (side * kink_along(problem, looked_at, found)).min()
    ahead = side * (of_coarse[begin] - of_fine[begin])
    return bool((nearest if returns else ahead - nearest) > off)


def at(points: PyTree, slot: int) -> PyTree:
    """One point of a trajectory."""
    return jax.tree.map(lambda leaf: leaf[slot], points)


def _length(problem: FlowProblem, run: _Run) -> float:
    return float(problem.times[run.last] - problem.times[run.first])


def _lasting(problem: FlowProblem, one: PyTree, other: PyTree) -> list[_Run]:
    """Kinks on whose different sides both are at several sampling times one after another."""
    differ, found = _differing(problem), []
    begun: dict[tuple[int, int], int] = {}
    for slot in range(len(problem.times) + 1):
        now: set[tuple[int, int]] = set()
        if slot < len(problem.times):
            with problem.numbers.context():
                points = (problem.numbers.cast(at(each, slot)) for each in (one, other))
                masks = jax.device_get(differ(problem.data, *points))
            now = {
                (array, int(flat))
                for array, mask in enumerate(masks)
                for flat in np.flatnonzero(mask)
            }
        for kink in begun.keys() - now:
            first = begun.pop(kink)
            if slot - first >= LASTING:
                found.append(_Run(kink[0], kink[1], first, slot - 1))
        for kink in now - begun.keys():
            begun[kink] = slot
    return found


def _differing(problem: FlowProblem) -> Any:
    """Maps (data, params, others) to masks of the kinks on whose different sides both are."""
    gated_with = problem.gated_of

    def differ(data: list[Array], one: PyTree, other: PyTree) -> list[Array]:
        pairs = zip(*(gated_with(data, one).kinks(each) for each in (one, other)), strict=True)
        return [a.z * b.z < 0 for a, b in pairs]

    return problem.pure.once(
        ("differing kinks", problem.numbers.dtype),
        lambda: jit(differ, speed=problem.pure.flow_speed),
    )


def _jump(problem: FlowProblem, params: PyTree, run: _Run) -> tuple[float, float, tuple[int, ...]]:
    """The jump of the gradient across a kink: its norm, how it moves z, and the array's shape.

    How it moves z is its product with the gradient of z: negative if both sides lead apart.
    """
    gated_with = problem.gated_of

    def jump(data: list[Array], params: PyTree, array: int, flat: Array) -> tuple[Array, Array]:
        gated = gated_with(data, params)
        gates = [step(kink) for kink in gated.kinks(params)]
        tangents = [jnp.zeros_like(gate) for gate in gates]
        shape = tangents[array].shape
        tangents[array] = tangents[array].ravel().at[flat].set(1.0).reshape(shape)

        def gradient(gates: list[Array]) -> PyTree:
            return jax.grad(lambda point: gated.both(point, gates)[0])(params)

        def variable(point: PyTree) -> Array:
            return gated.kinks(point)[array].z.ravel()[flat]

        _, jumps = jax.jvp(gradient, (gates,), (tangents,))
        _, moved = jax.jvp(variable, (params,), (jumps,))
        return optax.tree.norm(jumps), moved

    def make() -> Any:
        return jit(jump, speed=problem.pure.flow_speed, static_argnums=2)

    with problem.numbers.context():
        find = problem.pure.once(("jump at a kink", problem.numbers.dtype), make)
        params = problem.numbers.cast(params)
        size, own = jax.device_get(find(problem.data, params, run.array, run.flat))
        shapes = jax.eval_shape(problem.gated.kinks, (problem.data, problem.params))
    return float(size), float(own), shapes[run.array].z.shape
