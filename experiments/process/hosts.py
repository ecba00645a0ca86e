"""Connects the processes of a run on several hosts.

On several hosts the same command runs on each of them. They find each other where the
environment says so: ``JAX_COORDINATOR_ADDRESS``, ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``,
or what Slurm's ``srun``, Open MPI's ``mpirun`` and TPU clusters set.
"""

import importlib
import os
from typing import Any

from experiments.process import aborts, peers
from experiments.process.mistakes import UsageError

EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# How many processes a launcher has started, as it tells each of them.
COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")


def told() -> bool:
    """Whether the environment tells of several processes.

    Raises:
      UsageError: if it tells of no number.
    """
    return bool(_given()) or _launched() > 1


def check(experiment: str, on_hosts: bool) -> None:
    """Refuses an experiment that runs in a single process where there are several.

    Raises:
      UsageError: if it is one.
    """
    if told() and not on_hosts:
        raise UsageError(
            f"--experiment={experiment}: runs in a single process, and the environment "
            "tells of several; run it on one host"
        )


def connect() -> None:
    """Connects the processes, if the environment tells of any and they are not connected.

    Raises:
      UsageError: if it does not tell enough, or they do not find each other.
    """
    if not told() or peers.several():
        return
    jax = importlib.import_module("jax")  # slow to load
    # Else JAX ends all others when one is lost, with pages and after minutes, see ``peers``; and
    # takes SIGTERM for itself.
    jax.config.update("jax_enable_recoverability", True)
    jax.config.update("jax_enable_preemption_service", False)
    given = _given()
    if given:
        with aborts.unheard():  # that recoverable processes are an experiment of JAX's
            _connect_explicit(jax, given)
    else:
        try:
            with aborts.unheard():
                jax.distributed.initialize()
        except (RuntimeError, ValueError) as error:
            raise UsageError(
                f"environment: it tells of {_launched()} processes, which do not find each other "
                f"({_line(error)}); accepted are {', '.join(EXPLICIT)} on each, or a launcher "
                "that JAX knows"
            ) from None
    state = importlib.import_module("jax._src.distributed").global_state  # as orbax does
    peers.meet(state.client, state.process_id, state.num_processes)


def _connect_explicit(jax: Any, given: list[str]) -> None:
    try:
        address, count, number = (os.environ[name] for name in EXPLICIT)
        if not 0 < int(address.rpartition(":")[2]) < 2**16:
            raise ValueError("the port of the address is not between 1 and 65535")
        jax.distributed.initialize(address, int(count), int(number))
    except (KeyError, RuntimeError, ValueError) as error:
        listed = ", ".join(f"{name}={os.environ[name]}" for name in given)
        raise UsageError(
            f"environment: {', '.join(EXPLICIT)} belong together; accepted are an address such as "
            f"10.0.0.1:1234 and two numbers; got {listed} ({_line(error)})"
        ) from None


def _given() -> list[str]:
    return [name for name in EXPLICIT if name in os.environ]


def _launched() -> int:
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    return max(len(hosts), *map(_count, COUNTS))


def _count(name: str) -> int:
    """How many processes a launcher's variable tells of."""
    text = os.environ.get(name) or "1"
    if not text.isdecimal():
        raise UsageError(f"environment: {name}={text}: accepted is a number of processes")
    return int(text)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
