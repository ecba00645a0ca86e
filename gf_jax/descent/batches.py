"""Batches of examples: in turn, or drawn anew at every step.

Drawn batches make a run one of many. Each has a key of its own, which goes with its state, so
that a run that is cut short goes on with the very batches that it would have had.

Source of SVAG: Li, Malladi & Arora, On the Validity of Modeling SGD with Stochastic Differential
Equations, NeurIPS 2021. Of the shuffling: Knuth, The Art of Computer Programming 2, section
3.4.2, algorithm P, of which every step does its share.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int, UInt32

PyTree = Any
AnyArray = Any  # NumPy's before the first step, JAX's after; or None

CYCLIC, REPLACEMENT, SHUFFLED = "cyclic", "replacement", "shuffled"
ORDERS = {
    CYCLIC: "one after another, in the same order for all runs",
    REPLACEMENT: "drawn anew at every step, with replacement",
    SHUFFLED: "without replacement within an epoch, in an order drawn anew for each",
}
GENERATOR = "threefry2x32"  # whatever the user's default is: its state is kept


class Batches(NamedTuple):
    """Parts of a training set whose gradients descent follows, in turn or drawn at random.

    In cyclic order step j of every lane, from 0 on, follows the gradient of part j mod number. A
    lane with ratio r takes r steps to a step of the base run, so that it has seen r times as
    many batches at equal time. What is compared there is the full objective.

    In the other orders a batch is of ``size`` parts, mostly single examples, drawn uniformly,
    and the step follows the mean of their gradients. Lanes, starts and draws (see
    ``gradient_descent``) draw independently of each other.

    Attributes:
      loss: maps (params, index) to the loss of one part, a scalar; the index is a traced
        integer from 0 to number - 1. Their mean is to be the full objective.
      number: how many parts there are.
      order: "cyclic"; "replacement", drawn with replacement; or "shuffled", without it within an
        epoch, in an order that every epoch draws anew.
      size: parts in a batch; 1 in cyclic order, where a part is a batch; a divisor of number if
        shuffled.
      svag: of batches drawn with replacement, the number l of steps of size s/l that stand for
        a step, along ((1 + c)/2) g₁ + ((1 − c)/2) g₂, c = √(2l − 1), with g₁ and g₂ the gradients
        of two batches. As l grows, that is the stochastic differential equation.
      seed: of the draws, 0 to 2^32 - 1.

    Source: Li, Malladi & Arora, NeurIPS 2021, for svag.

    Example:
      >>> targets = jnp.array([0.0, 1.0, 2.0, 3.0])
      >>> def f(w):
      ...     return jnp.mean((w - targets) ** 2)
      >>> def loss(w, index):
      ...     return (w - targets[index]) ** 2
      >>> run = gf_jax.gradient_descent(
      ...     f, jnp.array(0.0), step_size=0.01, ratios=(2,), iterations=8,
      ...     batches=gf_jax.Batches(loss, 4))
      >>> run.metrics.loss.shape
      (9, 2)
      >>> drawn = gf_jax.Batches(loss, 4, order="replacement", size=2)
      >>> runs = gf_jax.gradient_descent(
      ...     f, jnp.array(0.0), step_size=0.01, ratios=(2,), iterations=8, batches=drawn, draws=5)
      >>> runs.metrics.loss.shape
      (9, 5, 2)
    """

    loss: Callable[[PyTree, Int[Array, ""]], Array]
    number: int
    order: str = CYCLIC
    size: int = 1
    svag: int = 1
    seed: int = 0


class Sampling(NamedTuple):
    """How batches are taken: what compiled programs know of ``Batches``."""

    number: int
    order: str
    size: int
    svag: int

    @property
    def drawn(self) -> bool:
        """Whether batches are drawn at random."""
        return self.order != CYCLIC

    @property
    def gradients(self) -> int:
        """Gradients of batches that a step takes."""
        return 1 if self.svag == 1 else 2 * self.svag


class Turn(NamedTuple):
    """Where a run stands among its batches; what its order does not need is None.

    Attributes:
      index: of the part that comes next; shuffled, of its place in the order.
      key: of what is drawn next.
      order: the parts; those before ``index`` were taken in this epoch.
    """

    index: Int[AnyArray, "*stack"]
    key: UInt32[AnyArray, "*stack 2"] = None
    order: Int[AnyArray, "*stack number"] = None


def sampling_of(batches: Batches) -> Sampling:
    """How these batches are taken.

    Raises:
      ValueError: if they cannot be.
    """
    _, number, order, size, svag, seed = batches
    if order not in ORDERS:
        raise ValueError(f"batches: order is {order!r}; accepted are {', '.join(ORDERS)}")
    for name, value in (("size", size), ("svag", svag)):
        if not (_is_integer(value) and 1 <= value < 2**31):
            raise ValueError(f"batches: {name} is {value!r}; accepted is a positive integer")
    if not (_is_integer(seed) and 0 <= seed < 2**32):
        raise ValueError(f"batches: seed is {seed!r}; accepted is an integer from 0 to 2^32 - 1")
    if order == CYCLIC and size != 1:
        raise ValueError(
            f"batches: size is {size}; in cyclic order a part is a batch, and accepted is 1, or an "
            "order in which batches are drawn"
        )
    if order == SHUFFLED and number % size:
        raise ValueError(
            f"batches: size is {size}; shuffled, accepted are divisors of their number, {number}"
        )
    if svag != 1 and order != REPLACEMENT:
        raise ValueError(
            f"batches: svag is {svag}, which takes independent batches; accepted is 1, or the "
            "order 'replacement'"
        )
    return Sampling(number, order, size, svag)


def check_draws(draws: Any, batches: Batches | None, starts: bool) -> None:
    """Raises ValueError unless so many independent runs can be drawn."""
    if not (_is_integer(draws) and draws >= 1):
        raise ValueError(f"draws: got {draws!r}; accepted is a positive integer")
    if starts:
        raise ValueError(
            f"draws: got {draws} beside starts; accepted is one of the two: repeat every start "
            "for its draws"
        )
    if batches is None or batches.order == CYCLIC:
        raise ValueError(
            f"draws: got {draws}, and nothing is drawn, so that all runs would be the same; "
            "accepted with batches whose order is 'replacement' or 'shuffled'"
        )


def first_turn(batches: Batches, lanes: tuple[int, ...], stack: tuple[int, ...]) -> Turn:
    """Every run before its first step, leaves of the shape of the stack, the lanes last.

    A run's key is made of the seed, its number on the other axis, and its ratio, so that it
    draws the same whatever runs beside it.
    """
    index, sampling = np.zeros(stack, np.int32), sampling_of(batches)
    if not sampling.drawn:
        return Turn(index)
    key = jax.random.key(np.uint32(batches.seed), impl=GENERATOR)

    def of_run(run: AnyArray, lane: AnyArray) -> Array:
        return jax.random.key_data(jax.random.fold_in(jax.random.fold_in(key, run), lane))

    of_lanes = jax.vmap(of_run, in_axes=(None, 0))
    runs = np.arange(math.prod(stack[:-1]), dtype=np.uint32)
    drawn = jax.vmap(of_lanes, in_axes=(0, None))(runs, np.array(lanes, np.uint32))
    keys = np.asarray(drawn).reshape(*stack, -1)
    if sampling.order == REPLACEMENT:
        return Turn(None, keys)
    order = np.broadcast_to(np.arange(sampling.number, dtype=np.int32), (*stack, sampling.number))
    return Turn(index, keys, order)


def take(sampling: Sampling, turn: Turn) -> tuple[Int[Array, "..."], Turn]:
    """The batch of a run's next step, an index or a vector of them, and its turn after that."""
    if not sampling.drawn:
        return turn.index, Turn((turn.index + 1) % sampling.number)
    after, key = jax.random.split(jax.random.wrap_key_data(turn.key, impl=GENERATOR))
    kept = jax.random.key_data(after)
    if sampling.order == REPLACEMENT:
        indices = jax.random.randint(key, (sampling.size,), 0, sampling.number, jnp.int32)
        return indices, Turn(None, kept)
    places = turn.index + jnp.arange(sampling.size, dtype=jnp.int32)
    others = jax.random.randint(key, places.shape, places, sampling.number, jnp.int32)

    def swap(order: Array, pair: tuple[Array, Array]) -> tuple[Array, Array]:
        here, there = pair
        found, replaced = order[there], order[here]
        return order.at[there].set(replaced).at[here].set(found), found

    order, indices = lax.scan(swap, turn.order, (places, others))
    return indices, Turn((turn.index + sampling.size) % sampling.number, kept, order)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
