"""Descent as the library is asked for it: of what its steps are made, and what it then needs."""

from typing import Any, NoReturn

import gf_jax
from experiments.problems.options import Network
from experiments.problems.problem import Problem
from experiments.runs import devices
from gf_jax.descent.placement import Memory
from gf_jax.descent.schedule import Schedule


class _Known(Exception):  # noqa: N818 - what is raised is no mistake
    """What a run needs, which ends it before anything is computed."""

    def __init__(self, needed: Memory) -> None:
        super().__init__()
        self.needed = needed


def options(told: Network, study: Problem, chosen: devices.Spread) -> dict[str, Any]:
    """Options of descent: how it lies on the devices, and what its steps are made of."""
    starts = bool(told.starts_of_seeds)
    return {"starts": starts, "sharding": chosen.sharding} | steps(told, study)


def steps(told: Network, study: Problem) -> dict[str, Any]:
    """Options of descent that say what its steps are made of."""
    found = dict[str, Any]()
    if told.chosen_optimizer is not None:
        found["optimizer"] = told.chosen_optimizer
    if told.method.batch_size:
        found["batches"] = study.objective.batches(told.method.batch_size, **told.sampling)
    if told.draws:
        found["draws"] = told.draws
    return found


def needed(told: Network, study: Problem, schedule: Schedule, arithmetic: str) -> Memory:
    """What descent needs by its compiled program, of which nothing is computed.

    Raises:
      UsageError: if as many devices as are asked for are not there, or divide nothing.
    """

    def end(known: Memory) -> NoReturn:
        raise _Known(known)

    chosen = devices.spread(told, len(study.dataset.labels))
    f, start = devices.objective(study, chosen), study.initial_params
    more = options(told, study, chosen)
    run = gf_jax.resumable_segments(
        f, start, schedule, arithmetic=arithmetic, check_memory=end, **more
    )
    try:
        next(run)
    except _Known as known:
        return known.needed
    raise AssertionError("descent is compiled before it begins")
