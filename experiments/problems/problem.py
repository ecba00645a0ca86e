"""From options to the thing studied: data, network, objective, starting point."""

import math
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

import gf_jax
from experiments.problems import data, weights
from experiments.problems.networks import NETWORKS
from experiments.problems.options import Data
from experiments.problems.options import Network as NetworkOptions
from experiments.process.mistakes import UsageError
from gf_jax import stacks
from gf_jax.problems.losses import LOSSES
from gf_jax.problems.networks import Network, Params
from gf_jax.problems.objective import Classification, RowSpace
from gf_jax.program.arithmetic import arithmetic as get_arithmetic

USUAL_LOSS = "cross_entropy"  # the paper's, which labels do not name


class Problem(NamedTuple):
    """A training loss, its starting point, and what outputs call them.

    Attributes:
      network: the network.
      dataset: the training set.
      inputs: the network's, shape (examples, *network.input_shape).
      loss: name of the loss of an example.
      objective: training loss and accuracy as functions of params.
      initial_params: the starting point; if there are several, leaves of shape (seeds, ...).
      network_label: what every output calls the network, and how it is trained.
      start: the starting point in the coordinates that users know.
      row_space: the coordinates of inputs and first layer, None if they are the pixels.
    """

    network: Network
    dataset: data.Dataset
    inputs: np.ndarray
    loss: str
    objective: Classification
    initial_params: Params
    network_label: str
    start: Params
    row_space: RowSpace | None

    def in_chunks(self, chunk: int | None) -> "Problem":
        """The same, with so many examples taken at a time; None is all of them.

        Raises:
          ValueError: if examples cannot be divided so.
        """
        objective = gf_jax.problems.classification(
            self.network, self.inputs, self.dataset.labels, loss=self.loss, chunk=chunk
        )
        return self._replace(objective=objective)

    def restore(self, stack: Params, *, lanes: bool = False) -> Params:
        """Stacked parameters in the coordinates that users know.

        Args:
          stack: leaves of shape (times, ...), (times, lanes, ...) with lanes; where there
            are several starting points, behind the times is an axis of seeds.
          lanes: whether there are lanes.
        """
        if self.row_space is None:
            return stack
        start = self.start
        if lanes and start["dense_1"]["weight"].ndim > 2:  # several starting points
            start = jax.tree.map(lambda leaf: leaf[:, None], start)
        restore = self.row_space.restore
        return stacks.along(lambda block: restore(block, start), stack)


def device() -> jax.Device:
    """The device that JAX computes on.

    Raises:
      UsageError: if the environment asks for one that is not there.
    """
    try:
        return jax.devices()[0]
    except Exception as error:  # of whatever kind, it is of the machine: nothing is computed yet
        wanted = f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')} is not here"
        reason = next(iter(str(error).splitlines()), wanted)
        raise UsageError(
            f"environment: JAX finds no device to compute on ({reason}); give another by "
            "JAX_PLATFORMS, such as cpu, or unset it"
        ) from None


def build(
    options: NetworkOptions,
    dataset: data.Dataset | None = None,
    check: Callable[[int], None] = lambda size: None,
) -> Problem:
    """Makes everything that a run needs; loads the data if they are not given.

    Args:
      options: what is trained on what.
      dataset: the training set, if it is there already.
      check: is told the number of weights of a single start, before any is drawn, and may raise.

    Raises:
      UsageError: if data or initial parameters are not what is accepted.
    """
    dataset = _in_order(options, load_data(options) if dataset is None else dataset)
    network, label = _network(options, dataset.images.shape[1:], dataset.classes)
    _check_size(options, network)
    inputs, rows, whole = _inputs(dataset, network), None, network
    if options.in_row_space:
        rows = gf_jax.problems.row_space(inputs)
        inputs = rows.inputs
        network, _ = _network(options, inputs.shape[1:], dataset.classes)
    check(sum(_sizes(network)))
    start = _initial_params(options, whole)
    params = start if rows is None else rows.reduce(start)
    try:
        objective = gf_jax.problems.classification(
            network, inputs, dataset.labels, loss=options.loss, chunk=options.chunk
        )
    except ValueError as error:
        raise UsageError(f"--{error}") from None
    _check_loss(options, objective, params)
    return Problem(
        network=network,
        dataset=dataset,
        inputs=inputs,
        loss=options.loss,
        objective=objective,
        initial_params=params,
        network_label=label + options.method.words,
        start=start,
        row_space=rows,
    )


def _inputs(dataset: data.Dataset, network: Network) -> np.ndarray:
    """Images as the network takes them: vectors, or channels of rows."""
    images = dataset.images
    if images.ndim == 4 and len(network.input_shape) == 3:
        images = np.moveaxis(images, -1, 1)
    return images.reshape(-1, *network.input_shape)


def _in_order(options: NetworkOptions, dataset: data.Dataset) -> data.Dataset:
    """The examples in the order in which they are cut into batches, if they are."""
    if options.order_seed is None:
        return dataset
    order = np.random.default_rng(options.order_seed).permutation(len(dataset.labels))
    return dataset._replace(images=dataset.images[order], labels=dataset.labels[order])


def _check_size(options: NetworkOptions, network: Network) -> None:
    """Refuses starting points that no memory of this machine holds, before they are made."""
    count = len(options.starts_of_seeds) or 1
    amount = 4 * count * sum(_sizes(network))
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if amount > machine:
        flag = "--seeds" if count > 1 else "--widths"
        raise UsageError(
            f"{flag}: the start alone would take {amount / 2**30:.3g} GiB, and this machine has "
            f"{machine / 2**30:.3g}; accepted is less"
        )


def _sizes(network: Network) -> Iterator[int]:
    """Numbers of entries of all parameters."""
    return (math.prod(shape) for kinds in network.shapes.values() for shape in kinds.values())


def _check_loss(options: NetworkOptions, objective: Classification, params: Params) -> None:
    """Refuses a start of the user's own making at which the loss is not finite."""
    if options.initial_params is not None:
        flag = f"--initial_params={options.initial_params}"
    elif options.init_scale != 1.0:
        flag = f"--init_scale={options.init_scale}"
    else:
        return
    with get_arithmetic(options.arithmetic).context():
        losses = jax.vmap(objective.loss) if options.starts_of_seeds else objective.loss
        finite = np.isfinite(np.asarray(jax.jit(losses)(params))).all()
    if not finite:
        raise UsageError(
            f"{flag}: the training loss is not finite at this start; accepted is one at which it is"
        )


def load_data(options: Data) -> data.Dataset:
    """The training set in the form that the network takes.

    Raises:
      UsageError: if it cannot be had.
    """
    return data.load(options.dataset, options.data_dir, options.examples, enlarge=options.enlarged)


def _network(options: NetworkOptions, shape: tuple[int, ...], classes: int) -> tuple[Network, str]:
    """The network for inputs of that shape, and what outputs call it and its loss.

    Raises:
      UsageError: if it does not take such inputs.
    """
    kind = NETWORKS[options.network]
    chosen = {name: getattr(options, name) for name in kind.options if name != "coordinates"}
    try:
        network, label = kind.build(shape, classes, **chosen)
    except ValueError as error:
        raise UsageError(
            f"--network={options.network}: {error}; take another network or data set"
        ) from None
    return network, named_loss(options.loss, label)


def named_loss(loss: str, label: str) -> str:
    """What outputs call a network, with its loss if that is not the paper's."""
    return label if loss == USUAL_LOSS else f"{label}, {LOSSES[loss].label}"


def _initial_params(options: NetworkOptions, network: Network) -> Params:
    if options.initial_params is not None:
        return weights.read_params(options.initial_params, network.shapes)

    def draw(seed: Any) -> Params:
        key = jax.random.key(seed)
        return gf_jax.problems.xavier_uniform(key, network.shapes, scale=options.init_scale)

    if not options.starts_of_seeds:
        return draw(options.seed)
    # All at once, and not compiled as a whole: so each is, to the last bit, what its seed draws.
    return jax.vmap(draw)(np.array(options.starts_of_seeds, np.uint32))
