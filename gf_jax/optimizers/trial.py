"""An optimiser at the point where it is tried: its steps, and states to try them from."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from gf_jax.optimizers.steps import Optimizer, Powers, Stepper, compiled_steps, rounds

PyTree = Any

NODE = 1 / 200  # smallest step size tried, over the smallest of those asked about
TINY = 1e-5  # step size of transients, over that
DIRECTIONS = 3  # along which velocities are watched


class LimitError(ValueError):
    """An optimiser has no continuous limit that could be found; says which property it lacks."""


class Trial:
    """An optimiser at one point.

    All states are over the powers of the step size, once these are known. Random numbers are drawn
    from one generator, so that trials are repeatable.

    Attributes:
      params: the point.
      gradients: there, of all batches in turn, leaves (batches, ...).
      derivative: maps a direction to the derivatives of these along it.
      time: the whole time.
      batches: how many there are.
      node: the smallest step size of the limit's polynomials.
      tiny: the step size of transients.
      names: of the leaves of the state.
      sized: which of them depend on the step size from the beginning.
      stepper: how it steps.
      rests: leaves that are known to rest.
      watched: directions along which velocities are watched.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        params: PyTree,
        gradients: PyTree,
        derivative: Callable[[PyTree], PyTree],
        step_size: float,
        time: float,
    ) -> None:
        self.params, self.time = params, time
        self.gradients, self.derivative = gradients, derivative
        self.batches = jax.tree.leaves(gradients)[0].shape[0]
        self.node = NODE * step_size
        self.tiny = TINY * self.node
        state = optimizer(self.node).init(params)
        named, structure = jax.tree_util.tree_flatten_with_path(state)
        self.names = tuple(_name(path) for path, _ in named)
        lifts = rounds(optimizer, self.node, jax.tree.map(lambda x: x[0], gradients), params)
        self.stepper = Stepper(optimizer, structure, (0,) * len(named), lifts)
        first, other = self.initial(self.node), self.initial(2 * self.node)
        self.sized = [not np.array_equal(*pair) for pair in zip(first, other, strict=True)]
        self.rests: set[int] = set()
        self.draws = np.random.default_rng(0)
        self.watched = [like(params, self.draws.normal) for _ in range(DIRECTIONS)]

    @property
    def powers(self) -> Powers:
        """What is known of the powers of the step size that leaves are of the size of."""
        return self.stepper.powers

    @powers.setter
    def powers(self, powers: Powers) -> None:
        self.stepper = self.stepper._replace(powers=powers)

    def initial(self, size: float) -> list[Array]:
        """The state before the first step, over the powers of the step size."""
        return self.stepper.initial(size, self.params)

    def steps(
        self, size: float, leaves: list[Array], period: int, gradients: PyTree = None
    ) -> tuple[PyTree, PyTree, list[Array]]:
        """Velocities, params and state of a period from its beginning."""
        gradients = self.phase(period) if gradients is None else gradients
        return compiled_steps(self.stepper, size, gradients, self.params, leaves)

    def phase(self, period: int) -> PyTree:
        """Gradients of the steps of a period, of batches in turn."""
        index = np.arange(period) % self.batches
        return jax.tree.map(lambda leaf: leaf[index], self.gradients)

    def perturbed(self, leaves: list[Array]) -> list[Array]:
        """The state with all floating-point numbers moved, but for those that are known to rest."""
        return [leaf if at in self.rests else self.moved(leaf) for at, leaf in enumerate(leaves)]

    def moved(self, leaf: Array) -> Array:
        """A leaf of floating-point numbers, moved a little upwards; any other as it is."""
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        squares = [float(jnp.mean(leaf**2)) for leaf in jax.tree.leaves(self.gradients)]
        share, some = (self.draws.uniform(0.5, 1.5, leaf.shape) for _ in range(2))
        return leaf * (1 + 0.1 * share) + 1e-3 * np.sqrt(np.mean(squares)) * some

    def any_gradients(self, period: int) -> PyTree:
        """Gradients like those at the start, of which no leaf is zero."""
        some = jax.tree.map(
            jnp.add, self.phase(period), like(self.phase(period), self.draws.normal, 0.3)
        )
        return jax.tree.map(
            lambda leaf: leaf * (1 + 0.3 * self.draws.normal(size=leaf.shape)), some
        )


def like(tree: PyTree, draw: Callable, scale: float = 1.0) -> PyTree:
    """A random tree of that shape, with entries about as large as the whole's are."""
    leaves = jax.tree.leaves(tree)
    size = np.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in leaves) / sum(x.size for x in leaves))
    return jax.tree.map(lambda leaf: scale * max(size, 1e-30) * draw(size=leaf.shape), tree)


def _name(path: Any) -> str:
    """The name of a leaf in an optimiser's state: that of the field it is in."""
    fields = [key.name for key in path if isinstance(key, jax.tree_util.GetAttrKey)]
    known = [name for name in fields if name not in ("inner_state", "inner_states")]
    return known[-1] if known else "what it keeps"


def norm(tree: PyTree) -> float:
    """Euclidean norm of all leaves together."""
    return float(optax.tree.norm(tree))


def relative(one: PyTree, other: PyTree) -> float:
    """Distance over the norm; 0 if both are the same."""
    apart = norm(jax.tree.map(jnp.subtract, one, other))
    return apart / max(norm(one), np.finfo(float).tiny) if apart else 0.0
