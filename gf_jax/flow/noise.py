"""The noise of drawn batches along the flow, on grids of steps over which it is constant.

A grid is taken twice, the second time with steps half as long and the same noise. White noise
stands for batches drawn with replacement, whatever the step size. Shuffled, an epoch has every
part once: what a step of the grid has is what its batches have in an order that is drawn for the
epoch, so that every step size has a grid of its own, whose steps are whole batches.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

SHUFFLED = "shuffled"  # order of ``gf_jax.Batches``
STEP = 0.5  # of the coarse grid, times the largest curvature
OF_EPOCH = 4  # steps of the coarse grid in an epoch, at least, if it has so many
WHOLE = 1e-6  # share of a step by which a time may be off from a whole number of them


class White(NamedTuple):
    """Independent random signs, of which a step of the coarse grid has those of two.

    Attributes:
      coarse: whether this is the coarse grid.
      factor: of the signs, for a batch.
    """

    coarse: Any
    factor: Any

    def weights(self, key: Array, at: Array, length: Array, like: Array) -> Array:
        """Weights of the parts, (samples, number), whose gradient is the noise of a step."""

        def of_step(at: Array) -> Array:
            return centred_signs(jax.random.fold_in(key, at), like)

        def of_two(at: Array) -> Array:
            return (of_step(2 * at) + of_step(2 * at + 1)) / np.sqrt(2)

        signs = jax.lax.cond(self.coarse, of_two, of_step, at)
        return self.factor * signs / jnp.sqrt(length)


class Shuffled(NamedTuple):
    """Batches of epochs, each in an order of its own.

    Attributes:
      epochs: which one, of every step of the grid.
      first: parts that were taken in it before.
      taken: parts that are taken in this step.
      lags: mean time from the beginning of the step to that of a batch in it.
      step_size: of descent.
    """

    epochs: Any
    first: Any
    taken: Any
    lags: Any
    step_size: Any

    def weights(self, key: Array, at: Array, length: Array, like: Array) -> Array:
        """Weights of the parts, (samples, number), whose gradient is the noise of a step."""
        samples, number = like.shape
        keys = jax.random.split(jax.random.fold_in(key, self.epochs[at]), samples)
        places = jax.vmap(lambda each: jax.random.permutation(each, number))(keys)
        first, taken = self.first[at], self.taken[at]
        inside = ((places >= first) & (places < first + taken)).astype(like.dtype)
        return (taken / number - inside) / (taken * jnp.sqrt(self.step_size))

    def memory(self, at: Array, number: int) -> tuple[Array, Array]:
        """The lag of a step's batches, and what they lack of each other's parts.

        A batch acts on what those before it in the step have moved, and has none of their parts:
        the mean of its Hessian's noise times theirs is minus that of the step's noise times
        itself, by this factor, a time.
        """
        taken = self.taken[at]
        return self.lags[at], self.lags[at] * taken / jnp.maximum(number - taken, 1)


class Grid(NamedTuple):
    """A grid with its noise.

    Attributes:
      counts: steps from each sampling time to the next.
      lengths: of every step, and zeros beyond.
      noise: of the steps.
    """

    counts: Any
    lengths: Any
    noise: White | Shuffled

    def padded(self, steps: int) -> "Grid":
        """The same with arrays of so many steps, so that grids share a compiled program."""
        more = steps - len(self.lengths)

        def pad(leaf: Any) -> Any:
            return np.pad(leaf, (0, more)) if np.ndim(leaf) else leaf

        noise = jax.tree.map(pad, self.noise)
        return self._replace(lengths=pad(self.lengths), noise=noise)


def centred_signs(key: Array, like: Array) -> Array:
    """Random signs less their mean over the parts."""
    drawn = jax.random.rademacher(key, like.shape, like.dtype)
    return drawn - drawn.mean(axis=1, keepdims=True)


def white_grids(times: np.ndarray, curvature: float, factor: float) -> tuple[Grid, Grid]:
    """Coarse and fine for batches drawn with replacement, of steps that are as long as they may."""
    spans = np.diff(times, prepend=0.0)
    counts = np.maximum(np.ceil(spans * curvature / STEP), spans > 0).astype(np.int64)

    def grid(halves: int) -> Grid:
        lengths = np.repeat(spans / np.maximum(halves * counts, 1), halves * counts)
        return Grid(halves * counts, lengths, White(np.bool(halves == 1), factor))

    return grid(1), grid(2)


def shuffled_grids(
    times: np.ndarray, curvature: float, step_size: float, number: int, size: int
) -> tuple[Grid, Grid]:
    """Coarse and fine for batches of so many parts, shuffled, and one step size.

    Raises:
      ValueError: if runs with this step size have no snapshot at one of the times.
    """
    exact = np.asarray(times) / step_size
    ends = np.rint(exact).astype(np.int64)
    for time, off in zip(times, np.abs(exact - ends), strict=True):
        if off > WHOLE:
            raise ValueError(
                f"times: got {time:g}, between two steps of step size {step_size:g}; accepted with "
                "shuffled batches are multiples of every step size"
            )
    epoch = number // size
    longest = max(1, min(int(STEP / (step_size * max(curvature, 1e-300))), epoch // OF_EPOCH))
    coarse, fine = [0], [0]
    for end in np.union1d(ends, np.arange(epoch, ends[-1], epoch)):
        begin = fine[-1]
        batches = int(end) - begin
        if batches == 0:
            continue
        steps = batches if longest == 1 else max(1, min(-(-batches // longest), batches // 2))
        halves = np.rint(np.linspace(begin, end, min(2 * steps, batches) + 1)).astype(int)
        fine += halves[1:].tolist()
        coarse += halves[2::2].tolist() if longest > 1 and batches > 1 else halves[1:].tolist()
    of_coarse, of_fine = (
        _of_bounds(np.array(bounds), ends, step_size, epoch, size) for bounds in (coarse, fine)
    )
    return of_coarse, of_fine


def _of_bounds(
    bounds: np.ndarray, ends: np.ndarray, step_size: float, epoch: int, size: int
) -> Grid:
    """The grid whose steps lie between these numbers of descent's."""
    begins, batches = bounds[:-1], np.diff(bounds)
    noise = Shuffled(
        begins // epoch,
        begins % epoch * size,
        batches * size,
        step_size * (batches - 1) / 2,
        step_size,
    )
    counts = np.diff(np.searchsorted(bounds, ends), prepend=0)
    return Grid(counts, step_size * batches, noise)


def longest_of(grids: Sequence[tuple[Grid, Grid]]) -> int:
    """Steps of the grid that has most."""
    return max(len(grid.lengths) for pair in grids for grid in pair)
