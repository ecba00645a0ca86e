"""The devices and processes that a run is spread over.

On several hosts the same command runs on each of them. They find each other where the
environment says so: ``JAX_COORDINATOR_ADDRESS``, ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``,
or what Slurm's ``srun``, Open MPI's ``mpirun`` and TPU clusters set. Process 0 alone writes
and prints.
"""

import os
import sys
import traceback
import types
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import gf_jax
from experiments.cli.experiment import Experiment
from experiments.problems.options import Network
from experiments.problems.problem import Problem
from experiments.process.mistakes import UsageError
from gf_jax.program.program import Loss

EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# How many processes a launcher has started, as it tells each of them.
COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
WAIT = 24 * 3600  # seconds: at the end the others wait for process 0, which solves the flows

Made = TypeVar("Made")


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


def start_processes(experiment: Experiment, options: Any) -> None:
    """Connects the processes of a run on several hosts, if the environment tells of any.

    Raises:
      UsageError: if it does not tell enough, or the experiment is not run on several.
    """
    given = [name for name in EXPLICIT if name in os.environ]
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    launched = max(len(hosts), *map(_count, COUNTS))
    if not given and launched == 1:
        return
    if not experiment.on_hosts:
        raise UsageError(
            f"--experiment={experiment.name}: runs in a single process, and the environment "
            "tells of several; run it on one host"
        )
    usual = type(options).checkpoint_every
    if options.resume or options.checkpoint_dir or options.checkpoint_every != usual:
        raise UsageError(
            "--resume, --checkpoint_dir, --checkpoint_every: runs on several hosts keep no "
            "checkpoints; drop these flags"
        )
    sys.excepthook = _leave
    if not given:
        try:
            jax.distributed.initialize(shutdown_timeout_seconds=WAIT)
        except (RuntimeError, ValueError) as error:
            raise UsageError(
                f"environment: it tells of {launched} processes, which do not find each other "
                f"({_line(error)}); accepted are {', '.join(EXPLICIT)} on each, or a launcher "
                "that JAX knows"
            ) from None
        return
    try:
        address, count, number = (os.environ[name] for name in EXPLICIT)
        if not 0 < int(address.rpartition(":")[2]) < 2**16:
            raise ValueError("the port of the address is not between 1 and 65535")
        jax.distributed.initialize(address, int(count), int(number), shutdown_timeout_seconds=WAIT)
    except (KeyError, RuntimeError, ValueError) as error:
        listed = ", ".join(f"{name}={os.environ[name]}" for name in given)
        raise UsageError(
            f"environment: {', '.join(EXPLICIT)} belong together; accepted are an address such as "
            f"10.0.0.1:1234 and two numbers; got {listed} ({_line(error)})"
        ) from None


def _count(name: str) -> int:
    """How many processes a launcher's variable tells of."""
    text = os.environ.get(name) or "1"
    if not text.isdecimal():
        raise UsageError(f"environment: {name}={text}: accepted is a number of processes")
    return int(text)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _leave(
    kind: type[BaseException], error: BaseException, trace: types.TracebackType | None
) -> None:
    """Ends a process that fails without the farewell for which it would wait for the others."""
    traceback.print_exception(kind, error, trace)
    os._exit(1)  # they miss its heartbeats then, and end too


def leads() -> bool:
    """Whether this process writes and prints."""
    return jax.process_index() == 0


def agreed(make: Callable[[], Made]) -> Made:
    """What is made on every process; a mistake on any ends them all, so that none waits."""
    if jax.process_count() == 1:
        return make()
    made, mistake = None, None
    try:
        made = make()
    except UsageError as error:
        mistake = error
    refused = multihost_utils.process_allgather(np.array(mistake is not None))
    if refused.any():
        raise mistake or UsageError("another process of this run reports a mistake")
    return made  # type: ignore[return-value]


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
    if examples % count == 0 and not options.method.batch_size:  # a batch lies on every device
        everywhere = NamedSharding(mesh, PartitionSpec())
        return Spread(everywhere, split, f"{examples:,} examples spread over {count} devices")
    neither = (
        f"{count} devices divide neither {starts or 1} starting points nor {examples} examples"
        + (" in batches" if options.method.batch_size else "")
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
