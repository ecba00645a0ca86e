"""Arrays on the devices of a mesh, and how much memory a run takes there."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from gf_jax import stacks
from gf_jax.descent.schedule import Schedule

PyTree = Any


class Memory(NamedTuple):
    """What is needed, in bytes.

    Attributes:
      device: on every device that is used; of descent data, state, snapshots and metrics of
        a segment, and all that the compiled program holds meanwhile.
      devices: how many of them this process has.
      host: in the memory of the host; of descent metrics and, unless they are large, snapshots.
      disk: in temporary files, for stacks that are large, see ``gf_jax.stacks``.

    Example:
      >>> def f(w):
      ...     return jnp.sum((w**2 - 1) ** 2)
      >>> w = jnp.array([0.1, 1.5])
      >>> schedule = gf_jax.Schedule(0.01, (2,), iterations=10)
      >>> needed = []
      >>> run = gf_jax.descent_segments(f, w, schedule, check_memory=needed.append)
      >>> first = next(run)
      >>> needed[0].devices, needed[0].host > 0
      (1, True)
    """

    device: int
    devices: int
    host: int
    disk: int = 0


def place(
    constants: list[jax.Array], params: PyTree, sharding: NamedSharding
) -> tuple[list[jax.Array], PyTree]:
    """Puts params where they are to lie; constants stay, or are replicated if elsewhere.

    Of several processes each gives the whole of params.

    Raises:
      ValueError: if params do not divide among the devices.
    """
    everywhere = NamedSharding(sharding.mesh, PartitionSpec())
    devices = everywhere.device_set

    def present(constant: jax.Array) -> jax.Array:
        if isinstance(constant, jax.Array) and constant.sharding.device_set == devices:
            return constant
        return jax.device_put(np.asarray(constant), everywhere)

    for leaf in jax.tree.leaves(params):
        try:
            sharding.shard_shape(leaf.shape)
        except ValueError:
            raise ValueError(
                f"sharding: {sharding.spec} does not divide a parameter of shape {leaf.shape} "
                f"among {len(devices)} devices; accepted is a number of starts that they divide"
            ) from None
    # From the host: what is on a device of one process cannot go to those of another.
    placed = jax.tree.map(lambda leaf: jax.device_put(np.asarray(leaf), sharding), params)
    return [present(constant) for constant in constants], placed


def copy_to(leaf: jax.Array | np.ndarray, sharding: NamedSharding | None) -> jax.Array:
    """A copy where it is to lie, which a program may write into; each process has all of it."""
    if sharding is None or sharding.is_fully_addressable:
        return jax.device_put(jnp.array(leaf), sharding)
    return jax.make_array_from_callback(leaf.shape, sharding, lambda part: np.array(leaf[part]))


def fetch(tree: PyTree) -> PyTree:
    """Arrays as NumPy arrays, whole on every process."""

    def whole(leaf: jax.Array) -> Any:
        if leaf.is_fully_addressable:
            return leaf
        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.device_get(jax.tree.map(whole, tree))


def memory_needed(
    compiled: Any,
    schedule: Schedule,
    stack: tuple[int, ...],
    point: PyTree,
    sharding: NamedSharding | None,
) -> Memory:
    """What a compiled segment takes on each device, and all segments on the host.

    Args:
      compiled: the segment.
      schedule: the schedule.
      stack: length of every axis that precedes those of the parameters.
      point: one point of weight space, or its shapes.
      sharding: of the run.
    """
    analysis = compiled.memory_analysis()
    device = 0
    if analysis is not None:  # where a backend does not tell, nothing is known
        device = (
            analysis.argument_size_in_bytes
            + analysis.output_size_in_bytes
            + analysis.temp_size_in_bytes
            - analysis.alias_size_in_bytes
        )
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(point))
    devices = 1 if sharding is None else len(sharding.addressable_devices)
    least = descent_memory(schedule, math.prod(stack), weights)
    return Memory(device, devices, least.host, least.disk)


def descent_memory(schedule: Schedule, runs: int, weights: int) -> Memory:
    """What descent takes at least, known before it is compiled: its iterates and gradients.

    Args:
      schedule: the schedule.
      runs: number of lanes, of all starts.
      weights: bytes of one point of weight space.
    """
    metrics = 4 * 4 * schedule.iterations  # four numbers an iteration, of four bytes or so
    snapshots, capacity = len(schedule.snapshot_iterations), schedule.snapshot_capacity
    whole, part = runs * weights * snapshots, runs * weights * capacity
    if capacity == snapshots:  # of one segment, which is not copied
        return Memory(2 * runs * weights, 1, whole + 2 * runs * metrics)
    on_disk = whole > stacks.LARGE
    host = part + (0 if on_disk else whole) + 2 * runs * metrics
    return Memory(2 * runs * weights, 1, host, whole if on_disk else 0)


def flow_memory(weights: int, times: int, lanes: int = 1, *, in_blocks: bool = False) -> Memory:
    """What solving a flow takes at least: its parameters at all times, in float64.

    Those of two solves are on the host, as they tell the error, and of one on the device.

    Args:
      weights: number of parameters.
      times: number of sampling times.
      lanes: number of flows, deviations or runs that are followed together.
      in_blocks: whether it is solved for a block of times after another where it is large, as
        smooth flows are.
    """
    point = 8 * weights * lanes
    stack, block = point * times, point * min(times, max(1, stacks.BLOCK // point))
    if not in_blocks or block == stack:
        return Memory(device=stack, devices=1, host=2 * stack)
    on_disk = stack > stacks.LARGE
    host = 5 * block + (0 if on_disk else stack)  # three of the coarser solve at most
    return Memory(3 * block, 1, host, stack if on_disk else 0)
