"""The devices that a run is spread over; of several hosts, see ``hosts``, those of all of them."""

from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import gf_jax
from experiments.problems.options import Network
from experiments.problems.problem import Problem
from experiments.process.mistakes import UsageError
from gf_jax.program.program import Loss


class Spread(NamedTuple):
    """How a run lies on the devices.

    Attributes:
      sharding: of params, None on a single device.
      data: of inputs and labels, None if they are on every device.
      text: what was chosen, empty if there was no choice.
    """

    sharding: NamedSharding | None = None
    data: NamedSharding | None = None
    text: str = ""


def spread(options: Network, examples: int) -> Spread:
    """Chooses the axis that is split over the devices: starts if they divide, else examples.

    Raises:
      UsageError: if as many devices as are asked for are not there, or divide neither.
    """
    devices, starts = jax.devices(), len(options.starts_of_seeds)
    wanted = options.mesh
    count = len(devices) if wanted == "auto" else 1 if wanted == "none" else int(wanted)
    if count > len(devices):
        raise UsageError(
            f"--mesh={wanted}: accepted is a number of devices that are there, up to {len(devices)}"
        )
    if jax.process_count() > 1 and 1 < count < len(devices):
        raise UsageError(f"--mesh={wanted}: several processes take all of {len(devices)} devices")
    if count == 1:
        return Spread()
    mesh = Mesh(np.array(devices[:count]), ("devices",))
    split = NamedSharding(mesh, PartitionSpec("devices"))
    if starts and starts % count == 0:
        return Spread(split, text=f"{starts} starting points spread over {count} devices")
    in_parts = options.method.batch_size or options.chunk  # which lie on every device
    if examples % count == 0 and not in_parts:
        everywhere = NamedSharding(mesh, PartitionSpec())
        return Spread(everywhere, split, f"{examples:,} examples spread over {count} devices")
    neither = (
        f"{count} devices divide neither {starts or 1} starting points nor {examples} examples"
        + (f" in {'batches' if options.method.batch_size else 'chunks'}" if in_parts else "")
    )
    if wanted != "auto":
        raise UsageError(f"--mesh={wanted}: {neither}; change --seeds, --examples or --mesh")
    return Spread(text=f"{neither}: one device computes")


def objective(study: Problem, chosen: Spread) -> Loss:
    """The training loss, of data that lie where they were chosen to."""
    if chosen.data is None:
        return study.objective.loss
    inputs, labels = (
        jax.device_put(np.asarray(array), chosen.data)
        for array in (study.inputs, study.dataset.labels)
    )
    return gf_jax.problems.classification(study.network, inputs, labels, loss=study.loss).loss
