"""From a configuration to the thing studied: data, network, objective, starting point."""

import math
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

import gf_jax
from experiments.cli.configuration import Configuration, UsageError
from experiments.problems import data
from experiments.problems.networks import FULLY_CONNECTED, NETWORKS
from experiments.runs import memory, store
from gf_jax.descent.placement import descent_memory
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
        return self.row_space.restore(stack, start)


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


def build(config: Configuration, dataset: data.Dataset | None = None) -> Problem:
    """Makes everything that a run needs; loads the data if they are not given.

    Raises:
      UsageError: if data or initial parameters are not what is accepted.
    """
    dataset = _in_order(config, load_data(config) if dataset is None else dataset)
    network, label = _network(config, dataset.images.shape[1:], dataset.classes)
    _check_size(config, network)
    inputs, rows, whole = _inputs(dataset, network), None, network
    if config.coordinates == "row_space":
        rows = gf_jax.problems.row_space(inputs)
        inputs = rows.inputs
        network, _ = _network(config, inputs.shape[1:], dataset.classes)
    _check_runs(config, network)
    start = _initial_params(config, whole)
    params = start if rows is None else rows.reduce(start)
    assert config.loss is not None
    objective = gf_jax.problems.classification(network, inputs, dataset.labels, loss=config.loss)
    _check_loss(config, objective, params)
    return Problem(
        network=network,
        dataset=dataset,
        inputs=inputs,
        loss=config.loss,
        objective=objective,
        initial_params=params,
        network_label=label + config.method.words,
        start=start,
        row_space=rows,
    )


def _inputs(dataset: data.Dataset, network: Network) -> np.ndarray:
    """Images as the network takes them: vectors, or channels of rows."""
    images = dataset.images
    if images.ndim == 4 and len(network.input_shape) == 3:
        images = np.moveaxis(images, -1, 1)
    return images.reshape(-1, *network.input_shape)


def _in_order(config: Configuration, dataset: data.Dataset) -> data.Dataset:
    """The examples in the order in which they are cut into batches, if they are."""
    if not config.batch_size:
        return dataset
    order = np.random.default_rng(config.batch_seed).permutation(len(dataset.labels))
    return dataset._replace(images=dataset.images[order], labels=dataset.labels[order])


def _check_size(config: Configuration, network: Network) -> None:
    """Refuses starting points that no memory of this machine holds, before they are made."""
    count = len(config.starts_of_seeds) or 1
    amount = 4 * count * sum(_sizes(network))
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if amount > machine:
        flag = "--seeds" if count > 1 else "--widths"
        raise UsageError(
            f"{flag}: the start alone would take {amount / 2**30:.3g} GiB, and this machine has "
            f"{machine / 2**30:.3g}; accepted is less"
        )


def _check_runs(config: Configuration, network: Network) -> None:
    """Refuses runs from several starting points whose results no memory holds, likewise."""
    count = len(config.starts_of_seeds)
    if count:
        schedule, weights = config.schedule, 4 * sum(_sizes(network))
        needed = descent_memory(schedule, len(schedule.lanes) * count, weights)
        memory.check(config, needed._replace(device=0))  # there may be several of them


def _sizes(network: Network) -> Iterator[int]:
    """Numbers of entries of all parameters."""
    return (math.prod(shape) for kinds in network.shapes.values() for shape in kinds.values())


def _check_loss(config: Configuration, objective: Classification, params: Params) -> None:
    """Refuses a start of the user's own making at which the loss is not finite."""
    if config.initial_params is not None:
        flag = f"--initial_params={config.initial_params}"
    elif config.init_scale not in (None, 1.0):
        flag = f"--init_scale={config.init_scale}"
    else:
        return
    with get_arithmetic(config.arithmetic or "compensated").context():
        losses = jax.vmap(objective.loss) if config.starts_of_seeds else objective.loss
        finite = np.isfinite(np.asarray(jax.jit(losses)(params))).all()
    if not finite:
        raise UsageError(
            f"{flag}: the training loss is not finite at this start; accepted is one at which it is"
        )


def load_data(config: Configuration) -> data.Dataset:
    """The training set in the form that the network takes.

    Raises:
      UsageError: if it cannot be had.
    """
    assert config.dataset is not None
    assert config.examples is not None
    enlarge = NETWORKS[config.network or FULLY_CONNECTED].enlarges
    return data.load(config.dataset, config.data_dir, config.examples, enlarge=enlarge)


def _network(config: Configuration, shape: tuple[int, ...], classes: int) -> tuple[Network, str]:
    """The network for inputs of that shape, and what outputs call it and its loss.

    Raises:
      UsageError: if it does not take such inputs.
    """
    name = config.network or FULLY_CONNECTED
    kind = NETWORKS[name]
    options = {each: getattr(config, each) for each in kind.options if each != "coordinates"}
    try:
        network, label = kind.build(shape, classes, **options)
    except ValueError as error:
        raise UsageError(f"--network={name}: {error}; take another network or data set") from None
    return network, named_loss(config, label)


def named_loss(config: Configuration, label: str) -> str:
    """What outputs call a network, with its loss if that is not the paper's."""
    assert config.loss is not None
    return label if config.loss == USUAL_LOSS else f"{label}, {LOSSES[config.loss].label}"


def _initial_params(config: Configuration, network: Network) -> Params:
    if config.initial_params is not None:
        return store.read_params(config.initial_params, network.shapes)
    assert config.seed is not None
    assert config.init_scale is not None

    def draw(seed: Any) -> Params:
        assert config.init_scale is not None
        return gf_jax.problems.xavier_uniform(
            jax.random.key(seed), network.shapes, scale=config.init_scale
        )

    if not config.starts_of_seeds:
        return draw(config.seed)
    # All at once, and not compiled as a whole: so each is, to the last bit, what its seed draws.
    return jax.vmap(draw)(np.array(config.starts_of_seeds, np.uint32))
