"""Gradient flow of a piecewise smooth loss, at one gradient a step, by times kinks stand open.

The gates of f enter the flow by the time for which each of them is open: with F the gated form
of the loss, see ``kinks``, a step of length h takes

    params <- params - h dF(mean of the path, gates),   gates_i = time kink i is open / h.

When a kink variable crosses zero within the step is foretold from its speed in the step before,
in which the kink itself has no part. One step later its speed behind the crossing is known as
well, and both sides tell better when it was; what the gate was open too long or too short is then
owed, and made good by the next gates, which may lie outside [0, 1]. The jump of the gradient
changes little between the two, so that no error of that order stays.

Two crossings in one step bend each other's paths, which no single gradient shows: of a ReLU
network on a thousand images that is what limits the accuracy. So a step ends before it holds more
than a certain number of crossings, besides being no longer than a certain time.

Along a kink that both sides lead to, crossings follow one another without end. How the speed of
the kink variable changes with its own gate is then known, and the gate is the one that holds the
variable at zero (Filippov's), until that would lie outside [0, 1] and the flow leaves the kink.

Source: own work; sliding: Filippov, Differential Equations with Discontinuous Righthand Sides,
1988.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gf_jax.flow.gate_times import Span, bend, holding, secant, shortfall, slides, time_open
from gf_jax.program.kinks import Gated, Kink

PyTree = Any

FIRST, GROWTH = 1e-6, 3.0  # first step as a share of the time, and over the one before at most
GRADING = 20  # no step is longer than time over this, down to the longest over SHORTEST
SHORTEST = 5
BISECTIONS = 16  # to a length with the wanted number of crossings
MEMORY, CHATTERS = 0.95, 1.5  # crossings of one kink in about twenty steps: it may slide


class Resolution(NamedTuple):
    """What a step may hold: an expected number of crossings, and time."""

    crossings: Any
    longest: Any


class _State(NamedTuple):
    """Between two steps.

    Attributes:
      steps: taken so far.
      time: that was reached.
      slot: index of the next sampling time.
      params: at that time.
      kinks: there.
      gradients: the mean ones of the last two steps, the last first.
      last, before: these steps, for every array of kinks.
      owed: for how long each gate has yet to be open, for steps before the last.
      bends: change of the speed of each z with its own gate, where it slid; else 0.
      often: how often each kink was crossed lately.
      slid: whether the flow was found to slide along each kink in the last step.
      kept: params at the sampling times, and a row for what is not asked for.
    """

    steps: Array
    time: Array
    slot: Array
    params: PyTree
    kinks: list[Kink]
    gradients: tuple[PyTree, PyTree]
    last: list[Span]
    before: list[Span]
    owed: list[Array]
    bends: list[Array]
    often: list[Array]
    slid: list[Array]
    kept: PyTree


class Followed(NamedTuple):
    """A flow at the sampling times, leaves (times, ...); steps taken; whether it got to the end."""

    params: PyTree
    steps: Array
    complete: Array


def follow(
    gated: Gated,
    params: PyTree,
    times: Float[Array, " times"],
    resolution: Resolution,
    most: Array,
    tell: Callable[[Array], None] | None = None,
) -> Followed:
    """Follows the flow from params.

    Args:
      gated: the loss in gated form.
      params: the initial point.
      times: ascending sampling times.
      resolution: of the steps.
      most: steps beyond which the solve is given up.
      tell: is called at sampling times with the share of the time that is done.
    """
    gradient = jax.grad(gated.both, has_aux=True)

    def one(state: _State) -> _State:
        length, ends = _length(state, times, resolution)
        gates, foreseen, owed, bends, slid, held = _gates(state, length)
        mean, _ = gradient(_middle(state, length), gates)
        params = jax.tree.map(lambda p, g: p - length * g, state.params, mean)
        kinks = gated.kinks(params)
        steps = zip(owed, state.kinks, state.last, state.before, kinks, strict=True)
        found = [
            due + shortfall(kink, last, before, later.z, length)
            for due, kink, last, before, later in steps
        ]
        slot = jnp.where(ends, state.slot, len(times))
        return _State(
            steps=state.steps + 1,
            time=jnp.where(ends, times[state.slot], state.time + length),
            slot=state.slot + ends,
            params=params,
            kinks=kinks,
            gradients=(mean, state.gradients[0]),
            last=[
                Span(length, kink.z, time, gate)
                for kink, time, gate in zip(state.kinks, foreseen, gates, strict=True)
            ],
            before=state.last,
            owed=[
                jnp.where(now | before | (state.steps == 0), 0.0, due).astype(due.dtype)
                for now, before, due in zip(held, state.slid, found, strict=True)
            ],
            bends=bends,
            slid=slid,
            often=[
                MEMORY * often + (a.z * b.z < 0).astype(often.dtype)
                for often, a, b in zip(state.often, state.kinks, kinks, strict=True)
            ],
            kept=jax.tree.map(lambda store, leaf: store.at[slot].set(leaf), state.kept, params),
        )

    def goes_on(state: _State) -> Array:
        return (state.slot < len(times)) & (state.steps < most)

    def told(state: _State) -> _State:
        state = one(state)
        if tell is not None:
            often = state.steps % 64 == 0
            share = state.time / times[-1]
            jax.lax.cond(often, lambda: jax.debug.callback(tell, share), lambda: None)
        return state

    end = jax.lax.while_loop(goes_on, told, _begin(gated, params, times))
    kept = jax.tree.map(lambda leaf: leaf[:-1], end.kept)
    return Followed(kept, end.steps, end.slot == len(times))


def _begin(gated: Gated, params: PyTree, times: Array) -> _State:
    """The state at time 0, with a tiny step before it, straight along the gradient."""
    gradient, kinks = jax.grad(gated.both, has_aux=True)(params, None)
    length = jnp.asarray(FIRST * times[-1])
    behind = gated.kinks(jax.tree.map(lambda p, g: p + length * g, params, gradient))
    nothing = [jnp.zeros_like(kink.z) for kink in kinks]
    past = [Span(length, kink.z, zero, zero) for kink, zero in zip(behind, nothing, strict=True)]
    rows = len(times) + 1
    return _State(
        steps=jnp.zeros((), int),
        time=jnp.zeros_like(length),
        slot=jnp.asarray(times[0] == 0, int),
        params=params,
        kinks=kinks,
        gradients=(gradient, gradient),
        last=past,
        before=past,
        owed=nothing,
        bends=nothing,
        often=nothing,
        slid=[zero != 0 for zero in nothing],
        kept=jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (rows, *leaf.shape)), params),
    )


def _speeds(state: _State) -> list[Array]:
    """Of every kink variable, in the last step."""
    pairs = zip(state.kinks, state.last, strict=True)
    return [(kink.z - last.begin) / last.length for kink, last in pairs]


def _length(state: _State, times: Array, resolution: Resolution) -> tuple[Array, Array]:
    """Length of the next step, and whether it ends at a sampling time."""
    graded = jnp.maximum(resolution.longest / SHORTEST, state.time / GRADING)
    longest = jnp.minimum(resolution.longest, graded)
    longest = jnp.minimum(longest, GROWTH * state.last[0].length)
    parts = list(zip(state.kinks, _speeds(state), state.often, state.slid, strict=True))

    def count(length: Array) -> Array:
        """How many kinks are foretold to be crossed within that length, but for what slides."""
        crossed = [
            jnp.sum((kink.z * (kink.z + length * speed) < 0) & (often < CHATTERS) & ~slid)
            for kink, speed, often, slid in parts
        ]
        return jnp.sum(jnp.stack(crossed))

    most = jnp.maximum(resolution.crossings, 1.0)

    def bisect(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        few = count(middle) <= most
        return jnp.where(few, middle, low), jnp.where(few, high, middle)

    _, high = jax.lax.fori_loop(0, BISECTIONS, bisect, (jnp.zeros_like(longest), longest))
    within = high * jnp.minimum(resolution.crossings, 1.0)
    left = times[state.slot] - state.time
    ends = within >= left * (1 - 1e-9)
    # Two halves in place of a step and a tiny rest.
    return jnp.where(ends, left, jnp.where(2 * within > left, left / 2, within)), ends


def _middle(state: _State, length: Array) -> PyTree:
    """The mean of the path ahead, on the parabola of the last two mean gradients."""
    last, before = state.last[0].length, state.before[0].length

    def mean(p: Array, g: Array, earlier: Array) -> Array:
        slope = (g - earlier) / ((last + before) / 2)
        return p - length / 2 * (g + (last / 2 + length / 3) * slope)

    return jax.tree.map(mean, state.params, *state.gradients)


def _gates(state: _State, length: Array) -> tuple[list[Array], ...]:
    """Gates of the step ahead, the times they stand for, what is still owed, and the bends.

    And whether the flow slides along each kink, and whether its gate is the one that holds it.
    """
    found = []
    for kink, speed, last, before, owed, known, often, slid in zip(
        *(state.kinks, _speeds(state), state.last, state.before),
        *(state.owed, state.bends, state.often, state.slid),
        strict=True,
    ):
        end, crossing = kink.z + length * speed, secant(kink.z, speed, length)
        foreseen = time_open(kink, end, crossing, length)
        made_good = jnp.clip(owed, -length, length).astype(owed.dtype)
        bends = bend(known, kink.z, last, before)
        gate = ((foreseen + made_good) / length).astype(owed.dtype)
        now = slides(kink.z, bends, last, length)
        held = now | slid | (often >= CHATTERS)
        gate = jnp.where(held, holding(kink.z, bends, last, length), gate)
        found.append((gate, foreseen, owed - made_good, bends, now, held))
    return tuple(list(each) for each in zip(*found, strict=True))
