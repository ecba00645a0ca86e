"""Descent as experiments run it: announced, kept in the journal, and stored."""

import functools
import operator
import time
from typing import NamedTuple

import jax
import numpy as np
from jax import lax

from experiments.problems.problem import Problem
from experiments.process import interruption, peers
from experiments.runs import devices, effort, engine, harness, progress, structures
from experiments.runs.harness import NetworkWorkplace
from gf_jax.comparison import precise_distance
from gf_jax.descent.gathering import Gathering
from gf_jax.descent.placement import Memory
from gf_jax.descent.schedule import Schedule
from gf_jax.descent.segments import Trajectory
from gf_jax.problems.networks import Params
from gf_jax.program.arithmetic import arithmetic as get_arithmetic
from gf_jax.study.record import Run


class Outcome(NamedTuple):
    """A trajectory, perhaps cut short, and how it came about."""

    trajectory: Trajectory
    seconds: float
    interrupted: bool


def descend(
    workplace: NetworkWorkplace, schedule: Schedule, arithmetic: str, part: str = ""
) -> Outcome | None:
    """Runs descent segment by segment; stops early if every lane has diverged.

    What an earlier process has kept of it is not run again.

    Args:
      workplace: the workplace.
      schedule: the steps, which may differ from those of the options.
      arithmetic: name of the arithmetic.
      part: of the experiment, which is in front of the label of what is kept.

    Returns:
      The run so far if it is interrupted; None if nothing of it is complete.

    Raises:
      UsageError: if it does not fit into memory; a run directory without results is then
        removed.
    """
    told, study, journal = workplace.options, workplace.study, workplace.journal
    starts, label = len(told.starts_of_seeds), f"{part}descent, {arithmetic}"
    chosen = devices.spread(told, len(study.dataset.labels))
    try:
        _announce(workplace, schedule, arithmetic, chosen)
    except KeyboardInterrupt:
        return None
    kept = journal.records(label)
    leaves = [each.leaves for each in kept]
    f = interruption.call(lambda: devices.objective(study, chosen))
    start = study.initial_params
    like = jax.tree.map(lambda leaf: leaf[None], start) if told.draws else start
    before = structures.trajectories(label, leaves, like, schedule, starts or told.draws)
    gathering = Gathering(schedule, before)
    started, interrupted = time.perf_counter(), False
    options = engine.options(told, study, chosen)
    if before:
        recorded = int(before[-1].iterations[-1])
        workplace.say(f"resumed at iteration {recorded:,} of {schedule.iterations:,}")
        options["resume_from"] = (recorded, journal.state(label) or ())
    options["check_memory"] = functools.partial(_check_memory, workplace)
    try:
        if not kept or not kept[-1].done:
            for segment, state in progress.segments(f, start, schedule, arithmetic, **options):
                gathering.add(segment)
                diverged = not bool(np.isfinite(segment.metrics.loss[-1]).any())
                done = diverged or int(segment.iterations[-1]) == schedule.iterations
                journal.add(label, segment, state, done=done)
                if diverged:
                    break
    except KeyboardInterrupt:
        interrupted = True
        journal.flush(wait=True)
    except ValueError as error:
        if not kept:
            raise
        raise structures.other(label, error) from None
    if not gathering.parts:
        return None
    seconds = time.perf_counter() - started + sum(each.seconds for each in kept)
    return Outcome(gathering.trajectory(), seconds, interrupted)


def _announce(
    workplace: NetworkWorkplace, schedule: Schedule, arithmetic: str, chosen: devices.Spread
) -> None:
    """Says what descent will take; refuses what cannot fit, before it is compiled."""
    told, study = workplace.options, workplace.study
    least = effort.least_memory(told, study, schedule, chosen)
    _check_memory(workplace, least)
    for line in effort.announcement(told, study, schedule, arithmetic, least):
        workplace.say(line)
    if chosen.text:
        workplace.say(chosen.text)


def _check_memory(workplace: NetworkWorkplace, needed: Memory) -> None:
    """Refuses a run that does not fit."""
    with harness.removed_if_refused(workplace):
        peers.agreed(lambda: effort.check(workplace.options, needed))


def saved_form(
    workplace: NetworkWorkplace, schedule: Schedule, arithmetic: str, trajectory: Trajectory
) -> Run:
    """The run as it is stored, with the accuracy of every snapshot."""
    study, seeds = workplace.study, workplace.options.starts_of_seeds
    with get_arithmetic(arithmetic).context():
        of_lanes = jax.vmap(study.objective.accuracy)
        accuracies = jax.jit((lambda stack: lax.map(of_lanes, stack)) if seeds else of_lanes)
        # One snapshot and start at a time: a forward pass of all lanes is little memory.
        rows = [
            np.asarray(accuracies(jax.tree.map(operator.itemgetter(at), trajectory.snapshots)))
            for at in range(len(trajectory.snapshot_iterations))
        ]
    return Run(
        network_label=study.network_label,
        data_label=study.dataset.label,
        step_size=schedule.step_size,
        ratios=schedule.lanes,
        iterations=trajectory.iterations,
        metrics=trajectory.metrics,
        snapshot_iterations=trajectory.snapshot_iterations,
        accuracy=np.array(rows).reshape(-1, *trajectory.metrics.loss.shape[1:]),
        seeds=seeds,
        loss_unit=study.objective.of_outputs.unit,
        method=workplace.options.method,
    )


def distance_from_init(study: Problem, flow_params: Params) -> np.ndarray:
    """Distance of a flow, leaves (times, ...), from the initial point, in the flow's float64."""
    return precise_distance(flow_params, study.initial_params, 1)
