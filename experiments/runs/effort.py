"""What a run takes, told before the work begins."""

import operator
import time

import jax

from experiments.problems import problem
from experiments.problems.options import Network
from experiments.problems.problem import Problem
from experiments.process import interruption, memory
from experiments.runs.devices import Spread
from experiments.runs.options.descent import NetworkRun
from gf_jax.descent.placement import Memory, descent_memory, flow_memory
from gf_jax.descent.schedule import Schedule
from gf_jax.program.arithmetic import arithmetic as get_arithmetic

MANY = 1_000_000  # evaluations; fewer are done before one has wondered how long they take
TRIALS = 3
MANY_LANES = 20  # of that many compiling takes half a minute on two cores, of 60 some minutes
UNITS = (("days", 86_400.0), ("hours", 3_600.0), ("minutes", 60.0), ("seconds", 1.0))


def duration(seconds: float) -> str:
    """A time in the unit that suits it."""
    name, unit = next((each for each in UNITS if seconds >= 2 * each[1]), UNITS[-1])
    return f"{seconds / unit:,.0f} {name}"


def least_memory(options: Network, study: Problem, schedule: Schedule, chosen: Spread) -> Memory:
    """What descent takes at least, known before anything is compiled.

    Args:
      options: what is told of its runs.
      study: what is studied.
      schedule: of its runs.
      chosen: how they lie on the devices.
    """
    starts = len(options.starts_of_seeds) or 1
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(study.initial_params)) // starts
    least = descent_memory(schedule, len(schedule.lanes) * options.copies, weights)
    if chosen.sharding is None or chosen.data is not None:
        return least
    count = chosen.sharding.num_devices
    return least._replace(device=least.device // count, devices=count)


def check_starts(options: NetworkRun, size: int) -> None:
    """Refuses many runs with every step size whose results no memory holds.

    Raises:
      UsageError: as ``memory.check``.
    """
    count, schedule = options.copies, options.schedule
    if count > 1:
        needed = descent_memory(schedule, len(schedule.lanes) * count, 4 * size)
        check(options, needed._replace(device=0))  # there may be several of them


def check_flow(options: NetworkRun, study: problem.Problem) -> None:
    """Refuses an experiment whose flow, or prediction, is known not to fit.

    Raises:
      UsageError: as ``memory.check``.
    """
    if options.flow_runs:
        check(options, flow_needed(options, study))


def flow_needed(options: NetworkRun, study: problem.Problem) -> Memory:
    """What the flow of one starting point, or prediction, takes at least."""
    seeds = len(options.starts_of_seeds) or 1
    size = sum(leaf.size for leaf in jax.tree.leaves(study.initial_params)) // seeds
    times = len(options.schedule.snapshot_iterations)
    return flow_memory(size, times, options.flow_runs, in_blocks=options.smooth)


def check(options: Network, needed: Memory) -> None:
    """Refuses a run that does not fit.

    Raises:
      UsageError: as ``memory.check``.
    """
    several = "--draws" if options.draws else "--seeds" if options.starts_of_seeds else ""
    memory.check(needed, several=several, of_examples="--chunk or --examples")


def announcement(
    options: Network, study: Problem, schedule: Schedule, arithmetic: str, least: Memory
) -> list[str]:
    """Lines that say how many runs are made, with how many gradients and in how much memory.

    Of very many gradients also how long they take, if each takes what one takes alone.
    """
    starts = options.copies
    runs, evaluations = len(schedule.lanes) * starts, schedule.gradient_evaluations * starts
    amount = memory.in_words(least.device * least.devices + least.host)
    lines = [
        f"{runs:,} runs in {arithmetic} arithmetic, {_work(options, schedule, starts)} on "
        f"{problem.device().device_kind}, at least {amount} of memory"
    ]
    if len(schedule.lanes) > MANY_LANES:
        lines.append(
            f"{len(schedule.lanes)} step sizes are compiled for minutes: twice as many take more "
            "than twice as long"
        )
    if evaluations >= MANY and not options.method.batch_size:
        each = interruption.call(lambda: _seconds(study, arithmetic, stacked=starts > 1))
        lines.append(
            f"at {1000 * each:.2g} ms for a gradient, up to {duration(evaluations * each)} in all"
        )
    return lines


def _work(options: Network, schedule: Schedule, starts: int) -> str:
    """How many gradients the runs take, in words."""
    evaluations = schedule.gradient_evaluations * starts
    if not options.method.batch_size:
        return f"{evaluations:,} gradient evaluations"
    recorded = (schedule.iterations * len(schedule.lanes) + 1) * starts
    parts = options.sampling.get("svag", 1)
    of_batches = (evaluations - starts) * (2 * parts if parts > 1 else 1)
    return f"{of_batches:,} gradient evaluations of batches and {recorded:,} of all examples"


def _seconds(study: Problem, arithmetic: str, *, stacked: bool) -> float:
    """That one gradient takes, compiled, by itself."""
    numbers, start = get_arithmetic(arithmetic), study.initial_params
    with numbers.context():
        point = numbers.cast(jax.tree.map(operator.itemgetter(0), start) if stacked else start)
        gradient = jax.jit(jax.grad(study.objective.loss))
        jax.block_until_ready(gradient(point))
        started = time.perf_counter()
        for _ in range(TRIALS):
            jax.block_until_ready(gradient(point))
    return (time.perf_counter() - started) / TRIALS
