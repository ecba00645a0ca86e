"""How many examples are taken at a time where all at once do not fit into memory.

Of descent it is what its compiled program needs that counts, of flows what their derivatives need,
compiled alone. What a network computes of examples is in proportion to how many are taken at once,
and nothing else is. So sizes are tried by a line through two that are known, until of two
neighbours among the divisors of the number of examples one fits and the other does not.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from experiments.problems.problem import Problem
from experiments.process import interruption, memory, peers
from experiments.process.memory import Demand
from experiments.process.mistakes import UsageError
from experiments.runs import devices, effort, engine, progress
from experiments.runs.options.descent import NetworkRun
from gf_jax.descent.placement import Memory, descent_memory
from gf_jax.flow.problem import Progress
from gf_jax.program.arithmetic import arithmetic as get_arithmetic
from gf_jax.program.arithmetic import flow_arithmetic
from gf_jax.program.equations import equations_within
from gf_jax.program.program import one_of

TRIALS = 4  # by lines, before the interval is halved
ROOM = 0.9  # of what is free: what else the process takes grows until it runs
STATES = 20  # of a run that are in memory at once, with gradients, at most
OF_FLOW, OF_DEVIATION = 25, 73  # numbers that their methods hold for each parameter
# Of what derivatives take in a solver, over what they take alone: on tanh networks 1.3 if all
# examples are taken at once, and less in chunks.
IN_LOOP = 1.3

PyTree = Any
RunTold = TypeVar("RunTold", bound=NetworkRun)


class Chosen(NamedTuple):
    """What a run takes at a time.

    Attributes:
      chunk: examples; None is all of them.
      line: what is to be said of it, empty if all fit.
    """

    chunk: int | None = None
    line: str = ""

    def applied(self, options: RunTold, study: Problem) -> tuple[RunTold, Problem]:
        """A run and what it studies, so taken."""
        if self.chunk is None:
            return options, study
        return dataclasses.replace(options, chunk=self.chunk), study.in_chunks(self.chunk)


def choose(options: NetworkRun, study: Problem) -> Chosen:
    """The largest chunk of examples with which a run fits into memory, if all at once do not.

    One that is asked for is taken as it is; so is that of a run that is resumed, which keeps its
    bits, and of several processes, whose examples are divided among them. Where step sizes are
    found first, what they need is not known before.

    Raises:
      UsageError: if it does not fit even one example at a time.
    """
    kept = options.chunk is not None or options.resume is not None
    if kept or not options.settled or peers.several():
        return Chosen()
    least, most = _most_of(_least(options, study)), _most_of(_most(options, study))
    if least is None or most is None or most.share <= 1 or least.share > ROOM:
        return Chosen()  # it fits, or what does not is something else
    whole, share = interruption.call(lambda: _most_of(_needed(options, study))), least.share
    if whole is None or whole.share <= 1:
        return Chosen()
    return progress.solve("memory", lambda tell: _search(options, study, share, whole, tell))


def _search(
    options: NetworkRun, study: Problem, least: float, whole: Demand, tell: Progress
) -> Chosen:
    """The choice, by what is compiled.

    Args:
      options: what is told of the run.
      study: what is studied, all examples at once.
      least: the share of what is free that is needed without them.
      whole: what all at once need.
      tell: is told the share of the work done.
    """
    examples = len(study.dataset.labels)
    sizes = [n for n in range(1, examples) if examples % n == 0]
    if not sizes:
        return Chosen()
    known: dict[int, Demand] = {}

    def share(size: int) -> float:
        known[size] = _most_of(_needed(*Chosen(size).applied(options, study))) or whole
        tell(1 - 0.5 ** len(known))
        return known[size].share

    try:
        chunk = _largest(sizes, share, least, (examples, whole.share))
    except UsageError:  # of devices that examples are divided among, which chunks are not
        return Chosen()
    if chunk is None and known[1].share <= 1:  # without room, but better than none
        chunk = 1
    if chunk is None:
        raise UsageError(
            f"memory: even one example at a time needs {known[1].words}; take smaller --examples "
            "or --widths"
        )
    need = memory.in_words(known[chunk].need)
    return Chosen(
        chunk,
        f"all {examples:,} examples at once need {whole.words}: {chunk:,} are taken at a time, as "
        f"with --chunk={chunk}, in {need}; activations are computed twice, and results differ by "
        "rounding only",
    )


def _largest(
    sizes: list[int], share: Callable[[int], float], none: float, whole: tuple[int, float]
) -> int | None:
    """The largest size of which the share leaves room; None if there is none.

    Args:
      sizes: in ascending order.
      share: of what is free that a size takes, the larger the size the larger.
      none: about that of size zero.
      whole: a size that is larger than all, and its share.
    """
    below, above = -1, len(sizes)  # the one fits, the other does not
    (a, of_a), (b, of_b) = (0, none), whole
    for trial in itertools.count():
        if above - below <= 1:
            break
        aim = b if of_b == of_a else b + (a - b) * (ROOM - of_b) / (of_a - of_b)
        guess = int(np.searchsorted(sizes, aim, side="right")) - 1
        if trial >= TRIALS:
            guess = (below + above) // 2
        at = min(max(guess, below + 1), above - 1)
        (a, of_a), (b, of_b) = (b, of_b), (sizes[at], share(sizes[at]))
        below, above = (at, above) if of_b <= ROOM else (below, at)
    return sizes[below] if below >= 0 else None


def _needed(options: NetworkRun, study: Problem) -> list[Memory]:
    """What descent in every arithmetic and the flow need, by compiled programs."""
    runs = [engine.needed(options, study, options.schedule, name) for name in options.arithmetics]
    return runs + _of_flow(options, study, _temporary)


def _least(options: NetworkRun, study: Problem) -> list[Memory]:
    """The same without what the network computes of examples."""
    chosen = devices.spread(options, len(study.dataset.labels))
    runs = effort.least_memory(options, study, options.schedule, chosen)
    return [runs] * len(options.arithmetics) + _of_flow(options, study, lambda *_: 0)


def _most(options: NetworkRun, study: Problem) -> list[Memory]:
    """More than they need, known before anything is compiled: as if no memory were used twice."""
    runs, schedule = [], options.schedule
    count = len(schedule.lanes) * options.copies
    for name in options.arithmetics:
        numbers = get_arithmetic(name)
        with numbers.context():
            point = jax.eval_shape(numbers.cast, _point(options, study))
            each = _results(jax.value_and_grad(study.objective.loss), point)
        weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(point))
        each += (STATES + 2 * schedule.snapshot_capacity) * weights
        runs.append(Memory(count * each, 1, descent_memory(schedule, count, weights).host))
    return runs + _of_flow(options, study, _results)


def _of_flow(options: NetworkRun, study: Problem, measure: Callable[..., int]) -> list[Memory]:
    """What the flow of one starting point needs; nothing if that is not known.

    With kinks it holds what every unit computes of every example, in chunks as well.

    Args:
      options: what is told of the run.
      study: what is studied.
      measure: maps a function and shapes of its arguments to the memory that it takes.
    """
    numbers = flow_arithmetic()
    if not options.flow_runs or not options.smooth or numbers.on_host:
        return []
    loss = study.objective.loss

    def bends(params: PyTree, vectors: PyTree) -> PyTree:
        """The gradient's first and second derivatives, as for the deviation."""

        def slope(point: PyTree, vector: PyTree) -> PyTree:
            return jax.jvp(jax.grad(loss), (point,), (vector,))[1]

        def along(vector: PyTree) -> PyTree:
            return jax.jvp(lambda point: slope(point, vector), (params,), (vector,))

        return jax.vmap(along)(vectors)

    needed, predicted = effort.flow_needed(options, study), options.flow_runs > 1
    with numbers.context():
        point = jax.eval_shape(numbers.cast, _point(options, study))
        pair = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((2, *leaf.shape), leaf.dtype), point)
        taken = measure(bends, point, pair) if predicted else measure(jax.grad(loss), point)
    weights = 8 * sum(leaf.size for leaf in jax.tree.leaves(point))
    states = OF_DEVIATION if predicted else OF_FLOW
    return [needed._replace(device=needed.device + states * weights + int(IN_LOOP * taken))]


def _point(options: NetworkRun, study: Problem) -> PyTree:
    """One starting point, or its shapes."""
    start = study.initial_params
    return one_of(start) if options.starts_of_seeds else start


def _results(function: Callable[..., Any], *shapes: PyTree) -> int:
    """Bytes of the data of a function, and of all that it computes."""
    program = jax.make_jaxpr(function)(*shapes)
    made = [each.aval for eqn in equations_within(program.jaxpr) for each in eqn.outvars]
    kept = sum(array.nbytes for array in jax.tree.leaves(program.consts))
    return kept + sum(math.prod(a.shape) * a.dtype.itemsize for a in made if hasattr(a, "shape"))


def _temporary(function: Callable[..., Any], *shapes: PyTree) -> int:
    """Bytes that a function takes meanwhile, as it is compiled; 0 where that is not told."""
    analysis = jax.jit(function).lower(*shapes).compile().memory_analysis()
    return 0 if analysis is None else analysis.temp_size_in_bytes


def _most_of(needs: list[Memory]) -> Demand | None:
    """The demand that takes the largest share of what is free; None if that is not known."""
    demands = [demand for each in needs if (demand := memory.largest(each)) is not None]
    return max(demands, key=lambda demand: demand.share, default=None)
