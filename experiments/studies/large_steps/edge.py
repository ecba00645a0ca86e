"""The edge of stability that the step sizes of a sweep are measured by.

Of plain descent it is that at the start, 2 / lambda_max. Of an optimiser it is the smallest along
its continuous limit, after the start, where its averages are of little: a run with a smaller
step size is below the edge all along. Numbers of a named optimiser are those of the largest step
size, so that the sweep and the edge are found together.
"""

import math
from typing import NamedTuple

import jax
import numpy as np

import gf_jax
from experiments.process.mistakes import UsageError
from experiments.runs import harness, structures
from experiments.runs.harness import NetworkWorkplace
from experiments.studies.large_steps.options import BEYOND, MOST_DOUBLINGS, Options
from gf_jax.optimizers.trial import LimitError

TIMES = 8  # evenly spaced along the limit
PRODUCTS = 12  # per start of an eigenvalue, since each begins at what was found before
MOST_SWEEPS = 6  # tried until one ends past its edge
ENOUGH = 4.0  # by which factor a sweep may end further beyond the edge than it has to
FEWEST = 8  # iterations of the largest step size, of a named optimiser
STEEPEST = 0.75  # power of the largest step size that the edge is taken to grow with at most


class Found(NamedTuple):
    """The options with all step sizes, the edge, and every step size over it.

    Attributes:
      options: with all step sizes.
      edge: of stability.
      of_edge: of the step sizes, above 1 where oscillations grow, shape (lanes,).
    """

    options: Options
    edge: float
    of_edge: np.ndarray


def find(workplace: NetworkWorkplace[Options]) -> Found:
    """The edge, and the step sizes doubled until well past it unless they were given.

    Raises:
      UsageError: if there is none, or if an optimiser has no limit.
    """
    options = workplace.options
    if options.chosen_optimizer is None:
        edge = _at_start(workplace)
        if options.step_sizes is None:
            options = options.doubled(options.doublings_past(edge))
        return Found(options, edge, np.array(options.all_step_sizes) / edge)
    if options.step_sizes is not None:
        return _checked(_along_limit(workplace, options))
    return _checked(_doubled(workplace))


def _at_start(workplace: NetworkWorkplace[Options]) -> float:
    """The edge of plain descent at the start."""
    f, start = workplace.study.objective.loss, workplace.study.initial_params
    here = jax.tree.map(lambda leaf: leaf[None], start)
    ends = harness.solve_once(
        workplace,
        "edge of stability",
        lambda tell: gf_jax.curvature(f, here, progress=tell),
        structures.of(gf_jax.Curvature, points=1),
    )
    curvature = float(ends.lambda_max.value[0])
    if not 0 < curvature < np.inf:
        raise UsageError(
            f"--experiment=large_steps: the largest curvature at the start is {curvature:g}, so "
            "there is no edge of stability; take another starting point"
        )
    return 2 / curvature


def _doubled(workplace: NetworkWorkplace[Options]) -> Found:
    """A sweep that ends well past the edge that its optimiser then has.

    The edge is taken to be a power of the largest step size, at first none, then that of the last
    two sweeps.
    """
    options, power, doublings = workplace.options, 0.0, 1
    most = MOST_DOUBLINGS
    if options.optimizer_name:
        most = max(1, int(math.log2(max(1, options.iterations / FEWEST))))
    known: list[tuple[float, float]] = []
    for _ in range(MOST_SWEEPS):
        found = _along_limit(workplace, options.doubled(doublings))
        if not np.isfinite(_about(found)):
            break
        largest = math.log2(found.options.step_size)
        missing = math.log2(BEYOND * _about(found)) - largest
        if -math.log2(ENOUGH) <= missing <= 0:
            break
        if doublings == (1 if missing < 0 else most):
            break
        known.append((largest, missing + largest))
        if len(known) > 1:
            (x, y), (at, edge) = known[-2:]
            power = min(max((edge - y) / (at - x), 0.0), STEEPEST) if at != x else power
        aim = 2 ** (largest + missing / (1 - power)) / BEYOND
        doublings = min(most, options.doublings_past(aim))
    return found


def _about(found: Found) -> float:
    """The edge; far below it, where none is found, as if M(h) were in proportion to h."""
    if np.isfinite(found.edge):
        return found.edge
    share = float(found.of_edge[0])
    return found.options.step_size / math.sqrt(share) if share > 0 else np.nan


def _along_limit(workplace: NetworkWorkplace[Options], options: Options) -> Found:
    """The smallest edge of an optimiser along its limit, and its step sizes over it."""
    study, optimizer = workplace.study, options.chosen_optimizer
    assert optimizer is not None
    last = float(options.schedule.clock().times([options.iterations])[0])
    last *= options.method.time_scale
    times, step_sizes = last * np.arange(1, TIMES + 1) / TIMES, np.array(options.all_step_sizes)
    try:
        found = harness.solve_once(
            workplace,
            f"edge of stability, step sizes up to {step_sizes[0]:g}",
            lambda tell: gf_jax.edge_of_stability(
                study.objective.loss,
                study.initial_params,
                times,
                optimizer,
                step_sizes,
                products=PRODUCTS,
                progress=tell,
            ),
            structures.of(gf_jax.Edge, times=TIMES, lanes=len(step_sizes)),
        )
    except LimitError as error:
        raise UsageError(f"{options.method_given}: {error}") from None
    edges = found.step_size[np.isfinite(found.step_size)]
    edge = float(edges.min()) if edges.size else np.nan
    return Found(options, edge, np.fmax.reduce(found.of_edge, axis=0))


def _checked(found: Found) -> Found:
    """What was found; UsageError if there is no edge."""
    if not np.isfinite(found.edge):
        raise UsageError(
            f"{found.options.method_given}: no step size that is near those of the runs, "
            f"{found.options.step_size:g} the largest, is at the edge of stability; give larger "
            "ones, more iterations, or another start"
        )
    return found
