"""Training objectives: network, loss and data as functions of the parameters.

A loss is one of ``losses.LOSSES``, and nothing here asks which.

Row space. The gradient of a first layer that is linear in its inputs, W_1 x, lies in the
space that the inputs span, whatever the loss and the layers behind, and so does every step of
descent, and the flow.
In an orthonormal basis of that space losses, iterates and distances are the same, with
fewer columns of W_1: 1,000 images of MNIST span 582 of 784 dimensions.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gf_jax.descent.batches import CYCLIC, SHUFFLED, Batches
from gf_jax.problems.losses import LOSSES, OutputLoss
from gf_jax.problems.networks import Network, Params
from gf_jax.program.program import FixedLoss


class Classification(NamedTuple):
    """A classification problem on a fixed training set.

    Attributes:
      loss: f(params), the mean loss over all examples, without regularisation.
      accuracy: share of examples whose largest output is that of their class; NaN
        where an output is not finite, as those of a diverged run are not.
      output_gradients: gradient of every example's loss by its outputs, shape (classes,
        examples).
      of_outputs: the loss of an example, and what theorems ask of it.
      batches: maps a number of examples B, a divisor of all N of them, to the N/B batches
        of B consecutive examples each, for ``gradient_descent``; ValueError on any other
        number. Give ``classification`` the examples in a random order. With an order, svag
        and seed, as ``Batches`` has them, batches of B examples that are drawn.

    Example:
      >>> network = gf_jax.problems.fully_connected((2, 3, 10))
      >>> problem = gf_jax.problems.classification(network, np.ones((4, 2)), np.arange(4))
      >>> params = gf_jax.problems.xavier_uniform(jax.random.key(0), network.shapes, scale=0.0)
      >>> float(problem.accuracy(params))
      0.25
    """

    loss: Callable[[Params], Array]
    accuracy: Callable[[Params], Array]
    output_gradients: Callable[[Params], Array]
    of_outputs: OutputLoss
    batches: Callable[..., Batches]


def classification(
    network: Network,
    inputs: Float[Array | np.ndarray, "examples ..."],
    labels: Int[Array | np.ndarray, " examples"],
    *,
    loss: str = "cross_entropy",
    chunk: int | None = None,
) -> Classification:
    """Network and data as loss and accuracy; the data are prepared once for both.

    Args:
      network: the network.
      inputs: array of shape (examples, *network.input_shape).
      labels: class of every example, from 0.
      loss: a name in ``losses.LOSSES``: "cross_entropy" of outputs that are logits, in nats,
        or "squared", half the squared distance of the outputs from the one-hot label.
      chunk: how many examples the loss, its gradient and Hessian-vector products take at a time, a
        divisor of their number: what a network computes of the others is not in memory, and is
        computed once more where derivatives need it. None is all of them.

    Raises:
      ValueError: if inputs and labels do not fit the network or each other, an input is not
        finite, the loss is unknown, or examples cannot be divided so.

    Example:
      >>> network = gf_jax.problems.fully_connected((2, 3, 10))
      >>> problem = gf_jax.problems.classification(network, np.ones((4, 2)), np.arange(4))
      >>> params = gf_jax.problems.xavier_uniform(jax.random.key(0), network.shapes, scale=0.0)
      >>> round(float(problem.loss(params)), 4)  # log 10
      2.3026
    """
    _check_data(network, inputs, labels)
    if loss not in LOSSES:
        raise ValueError(f"loss: got {loss!r}; accepted {sorted(LOSSES)}")
    of_outputs = LOSSES[loss]
    losses = of_outputs.of_outputs
    prepared, classes = network.prepare(jnp.asarray(inputs)), jnp.asarray(labels)

    if chunk is not None:
        _check_chunk(chunk, len(classes))

    def mean(params: Params) -> Array:
        if chunk in (None, len(classes)):
            return losses(network.forward(params, prepared), classes).mean()
        part = batches(chunk)
        of_chunk = jax.checkpoint(lambda index: part.loss(params, index))
        return jax.lax.map(of_chunk, jnp.arange(part.number)).mean()

    def output_gradients(params: Params) -> Array:
        outputs = network.forward(params, prepared)
        return jax.grad(lambda outputs: losses(outputs, classes).sum())(outputs)

    def accuracy(params: Params) -> Array:
        outputs = network.forward(params, prepared)
        right = jnp.mean(outputs.argmax(axis=0) == classes)
        return jnp.where(jnp.isfinite(outputs).all(), right, jnp.nan)

    def batches(size: int, order: str = CYCLIC, *, svag: int = 1, seed: int = 0) -> Batches:
        check_batch_size(size, len(classes), order)
        together, drawn = (size, 1) if order == CYCLIC else (1, size)

        def loss_of_part(params: Params, index: Array) -> Array:
            data, chosen = jax.tree.map(
                # Prepared inputs have their examples on the last axis.
                lambda leaf: jax.lax.dynamic_slice_in_dim(
                    leaf, index * together, together, axis=-1
                ),
                (prepared, classes),
            )
            return losses(network.forward(params, data), chosen).mean()

        return Batches(loss_of_part, len(classes) // together, order, drawn, svag, seed)

    return Classification(FixedLoss(mean), accuracy, output_gradients, of_outputs, batches)


def check_batch_size(size: int, examples: int, order: str = CYCLIC) -> None:
    """Raises ValueError unless batches of this size can be made of the examples in that order."""
    if order not in (CYCLIC, SHUFFLED):
        if size < 1:
            raise ValueError(f"batch_size: got {size}; accepted is a positive integer")
        return
    divisors = [n for n in range(1, examples + 1) if examples % n == 0]
    if size not in divisors:
        raise ValueError(
            f"batch_size: got {size}; accepted are divisors of the number of examples, {examples}: "
            + ", ".join(map(str, divisors))
        )


def _check_chunk(size: int, examples: int) -> None:
    """Raises ValueError unless examples can be divided into chunks of this size."""
    if size < 1 or examples % size:
        divisors = [n for n in range(1, examples + 1) if examples % n == 0]
        raise ValueError(
            f"chunk: got {size}; accepted are divisors of the number of examples, {examples}: "
            + ", ".join(map(str, divisors))
        )


def _check_data(network: Network, inputs: Array | np.ndarray, labels: Array | np.ndarray) -> None:
    if inputs.shape[1:] != network.input_shape or labels.shape != inputs.shape[:1]:
        raise ValueError(
            f"inputs, labels: shapes {inputs.shape} and {labels.shape}; accepted are "
            f"(examples, {', '.join(map(str, network.input_shape))}) and (examples,)"
        )
    if not isinstance(inputs, jax.core.Tracer):  # whose entries are not known
        _check_finite(inputs)
    if not isinstance(labels, jax.core.Tracer):
        _check_labels(network, labels)


def _check_labels(network: Network, labels: Array | np.ndarray) -> None:
    """JAX would take a class that the network does not have for another one, or for none."""
    lowest, highest = int(labels.min()), int(labels.max())
    if not 0 <= lowest <= highest < network.classes:
        raise ValueError(
            f"labels: are {lowest} to {highest}; this network has {network.classes} outputs, and "
            f"accepted are 0 to {network.classes - 1}"
        )


def _check_finite(inputs: Array | np.ndarray) -> None:
    if not jnp.isfinite(inputs).all():
        raise ValueError("inputs: have entries that are not finite; accepted are finite numbers")


class RowSpace(NamedTuple):
    """Inputs in an orthonormal basis of the space that they span.

    Attributes:
      inputs: coordinates of the inputs in the basis, shape (examples, rank), float32.
      basis: orthonormal rows, shape (rank, features), float64.

    Example:
      >>> space = gf_jax.problems.row_space(np.array([[3.0, 4.0, 0.0], [6.0, 8.0, 0.0]]))
      >>> space.inputs.round(3)
      array([[ 5.],
             [10.]], dtype=float32)
    """

    inputs: Float[np.ndarray, "examples rank"]
    basis: Float[np.ndarray, "rank features"]

    def reduce(self, params: Params) -> Params:
        """Parameters for these inputs: the weight of dense_1 has shape (outputs, rank)."""
        weight = np.asarray(params["dense_1"]["weight"])
        reduced = (weight.astype(np.float64) @ self.basis.T).astype(weight.dtype)
        return {**params, "dense_1": {**params["dense_1"], "weight": jnp.asarray(reduced)}}

    def restore(self, stack: Params, start: Params) -> Params:
        """Parameters for the inputs as they were, as NumPy arrays.

        Args:
          stack: parameters for these inputs, leaves (..., *shape).
          start: the initial point for the inputs as they were, or a stack of points that
            broadcasts to that of the stack. What of its first layer lies outside the row
            space never changes.
        """
        weight = np.asarray(stack["dense_1"]["weight"])
        first = np.asarray(start["dense_1"]["weight"], np.float64)
        outside = first - first @ self.basis.T @ self.basis
        restored = (weight.astype(np.float64) @ self.basis + outside).astype(weight.dtype)
        return {**stack, "dense_1": {**stack["dense_1"], "weight": restored}}


def row_space(inputs: Float[Array | np.ndarray, "examples features"]) -> RowSpace:
    """The row space of the inputs, by a singular value decomposition in float64.

    Singular values up to max(examples, features) ulps of the largest count as zero, as in
    ``numpy.linalg.matrix_rank``.

    Raises:
      ValueError: if an input is not finite.

    Example:
      >>> space = gf_jax.problems.row_space(np.array([[3.0, 4.0, 0.0], [6.0, 8.0, 0.0]]))
      >>> abs(space.basis).round(3)
      array([[0.6, 0.8, 0. ]])
    """
    _check_finite(inputs)
    matrix = np.asarray(inputs, np.float64)
    _, values, vt = np.linalg.svd(matrix, full_matrices=False)
    floor = max(matrix.shape) * np.finfo(np.float64).eps * values[0]
    basis = vt[values > floor]
    # The sign of a direction is the library's, and may change with the number of threads.
    largest = np.take_along_axis(basis, np.abs(basis).argmax(axis=1)[:, None], axis=1)
    basis = basis * np.sign(largest)
    return RowSpace((matrix @ basis.T).astype(np.float32), basis)
