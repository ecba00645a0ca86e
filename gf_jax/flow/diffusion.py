"""The first order of descent in drawn batches: how runs spread, and how their mean moves.

Along the flow z, with g = ∇f, H its Jacobian and Σ the covariance of a batch's gradient,

    C' = −H C − C H + Σ,   m' = −H m − (1/2l) H g − ½ D²g[C],

of which s C is the covariance of runs with step size s, and s m the shift of their mean (l is
that of SVAG, else 1). C is not held: it is the mean of δ δᵀ over samples of

    δ' = −H δ + Σ^½ ξ,   m' = −H m − (1/2l) H g − ½ D²g[δ, δ],

ξ white noise. With N parts and batches of B drawn with replacement, Σ^½ ξ is the gradient of
Σₙ (εₙ − ε̄) fₙ / √(N B) with random signs εₙ.

Of shuffled batches the noise is the gradient of what a step's batches have more than their share
in an order drawn for the epoch, K, and their own Hessian, A beside H, counts:

    δ' = −H δ − K / √s,   m' = −H m − ½ H g − ½ D²g[δ, δ] − A δ / √s.

The last term has a mean, since δ remembers which parts are still to come. Where an epoch takes a
time T with λT small, δ is of order √s within epochs and s at their ends, where s of m's own
spread is as large: so squares are those of δ + √s (m − E m).

Source: Li, Tai & E, ICML 2017 (C); the equation of m, by expanding one step, likewise; what holds
for shuffled batches is derived here.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from gf_jax.program.pure import Pure

PyTree = Any
AnyArray = Any  # a JAX array while computed, a NumPy array once returned


class Sums(NamedTuple):
    """What is told of the samples at every time.

    Attributes:
      squares: ‖δ‖² of every sample.
      pairs: m of every sample times the mean m of all others; their mean is that of ‖E m‖².
      losses: g·m + ½ δ·Hδ of every sample.
      shifts: g·m, and half of δ·Hδ, by their size.
      bends: mean squares of H δ and of ½ D²g[δ, δ], and the square of H m of the mean.
      noise: mean squares of a batch's noise in the gradient, of its derivative along δ, and of
        what the batch's own Hessian makes of it.
    """

    squares: Float[AnyArray, "times samples"]
    pairs: Float[AnyArray, "times samples"]
    losses: Float[AnyArray, "times samples"]
    shifts: Float[AnyArray, "times 2"]
    bends: Float[AnyArray, "times 3"]
    noise: Float[AnyArray, "times 3"]


class Moving(NamedTuple):
    """The flow, and of every sample δ and m."""

    flow: PyTree
    deltas: PyTree
    shifts: PyTree


def losses_of_parts(of_part: Pure, data: list[Array], params: PyTree, number: int) -> Array:
    """The loss of every part."""
    indices = jnp.arange(number, dtype=jnp.int32)
    return jax.vmap(lambda index: of_part.loss(data, (params, index)))(indices)


def force_of(of_part: Pure, data: list[Array], weights: Array) -> Callable[[PyTree], PyTree]:
    """The gradient of the weighted losses of the parts, a function of params."""

    def weighted(params: PyTree) -> Array:
        return losses_of_parts(of_part, data, params, len(weights)) @ weights

    return jax.grad(weighted)


def kicked(state: Moving, bends: PyTree, length: Array) -> Moving:
    """Half a step's part of D²g[δ, δ]: within a step δ has less variance than it is to have."""
    shifts = optax.tree.add_scale(state.shifts, -length / 4, bends)
    return state._replace(shifts=shifts)


def velocity(
    pure: Pure,
    of_part: Pure,
    data: Any,
    state: Moving,
    noise: Array,
    of_step: Array,
    drift: PyTree | None,
) -> Moving:
    """Of the flow and every sample but for D²g, with the noise as weights of the parts.

    Args:
      pure: the loss.
      of_part: that of a part.
      data: of both.
      state: where they stand.
      noise: weights of the parts, (samples, number).
      of_step: factor of H g in the equation of m.
      drift: what m moves by besides, see ``remembered``; none where nothing is remembered.
    """
    whole, parts = data
    gradient, product = pure.linearize(whole, state.flow)

    number = noise.shape[1]
    _, pull = jax.vjp(lambda params: losses_of_parts(of_part, parts, params, number), state.flow)
    (kicks,) = jax.vmap(pull)(noise)
    ahead = jax.tree.map(lambda m, g: m + of_step * g, state.shifts, gradient)
    slopes, drifts = jax.vmap(product)(state.deltas), jax.vmap(product)(ahead)
    back, shifts = jax.tree.map(jnp.negative, (gradient, drifts))
    if drift is not None:
        shifts = optax.tree.add(shifts, drift)
    return Moving(back, jax.tree.map(jnp.subtract, kicks, slopes), shifts)


def remembered(
    pure: Pure,
    of_part: Pure,
    data: Any,
    state: Moving,
    slopes: PyTree,
    noise: Array,
    lag: Array,
    missed: Array,
) -> PyTree:
    """What the Hessian of a step's own batches does to every sample, −A δ / √s.

    White noise is independent of δ, so that this has no mean. Shuffled, parts are missing from a
    batch since they were taken before, which δ remembers.

    Args:
      pure: the loss.
      of_part: that of a part.
      data: of both.
      state: at the beginning of the step.
      slopes: H δ there.
      noise: weights of the parts, (samples, number), whose gradient is −K / √s and whose Hessian
        −A / √s.
      lag: after which δ is taken.
      missed: factor of this gradient that is taken from δ, see ``noise.Shuffled.memory``.
    """
    whole, parts = data
    point = optax.tree.add_scale(state.flow, -lag, pure.gradient(whole, state.flow))
    deltas = optax.tree.add_scale(state.deltas, -lag, slopes)

    def of_sample(weights: Array, delta: PyTree) -> PyTree:
        own, along = jax.linearize(force_of(of_part, parts, weights), point)
        return along(optax.tree.add_scale(delta, -missed, own))

    return jax.vmap(of_sample)(noise, deltas)


def along(pure: Pure, data: list[Array], state: Moving) -> tuple[PyTree, PyTree]:
    """H δ and D²g[δ, δ] of every sample."""
    field = pure.field(data, state.flow)

    def of_sample(delta: PyTree) -> tuple[PyTree, PyTree]:
        def slope(point: PyTree) -> PyTree:
            return jax.jvp(field, (point,), (delta,))[1]

        return jax.jvp(slope, (state.flow,), (delta,))

    return jax.vmap(of_sample)(state.deltas)


def sums_of(
    pure: Pure, of_part: Pure, data: Any, state: Moving, noise: Array, of_shift: Array
) -> Sums:
    """At one time, with other noise than that which has made the samples.

    Args:
      pure: the loss.
      of_part: that of a part.
      data: of both.
      state: where they stand.
      noise: weights of the parts, (samples, number).
      of_shift: factor of m, less its mean, beside δ in the squares.
    """
    whole, parts = data
    gradient, product = pure.linearize(whole, state.flow)
    slopes, bends = along(pure, whole, state)
    vectors = (state.deltas, state.shifts, slopes, bends)
    deltas, shifts, slopes, bends = (jax.vmap(lambda t: ravel_pytree(t)[0])(v) for v in vectors)
    mean = jax.tree.map(lambda leaf: leaf.mean(axis=0), state.shifts)

    def kick(weights: Array, delta: PyTree) -> tuple[PyTree, PyTree, PyTree]:
        own, along = jax.linearize(force_of(of_part, parts, weights), state.flow)
        return own, along(delta), optax.tree.add(product(own), along(own))

    kicks = jax.vmap(kick)(noise, state.deltas)
    flat = ravel_pytree(gradient)[0]
    few = jnp.sqrt(len(shifts) / (len(shifts) - 1))
    apart = deltas + of_shift * few * (shifts - shifts.mean(axis=0))
    moved, bent = shifts @ flat, (deltas * slopes).sum(axis=1) / 2
    others = (shifts.sum(axis=0) - shifts) / (len(shifts) - 1)
    return Sums(
        squares=jnp.square(apart).sum(axis=1),
        pairs=(shifts * others).sum(axis=1),
        losses=moved + bent,
        shifts=jnp.abs(jnp.stack([moved.mean(), bent.mean()])),
        bends=jnp.stack(
            [
                _mean_square(slopes),
                _mean_square(bends) / 4,
                jnp.square(ravel_pytree(product(mean))[0]).sum(),
            ]
        ),
        noise=jnp.stack([_mean_square(tree) for tree in kicks]),
    )


def _mean_square(stack: PyTree) -> Array:
    """Mean over samples of the square of the norm."""
    return jnp.square(jax.vmap(optax.tree.norm)(stack)).mean()
