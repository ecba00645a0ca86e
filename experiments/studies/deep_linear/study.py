"""Deep linear networks from random balanced starts: all of them reach the global minimum.

    python -m experiments.main --experiment=deep_linear --dataset=mnist

Scalar regression with squared loss on whitened inputs, of the data set and of synthetic
data, see ``regression``. Networks of 2, 3 and 4 layers start near zero from 1,000 random
balanced points, the same end-to-end vectors on both, and from the one exactly opposite to
the target. All starts and step sizes of a depth are one stack that a single compiled call
follows, in float64; gradient flow follows the same stack.

Balanced starts of a network with a scalar output use one unit of every hidden layer: all
others are zero and stay so. The width says how many there are, and changes nothing.

A minute on one CPU core, and 1.5 GB of memory. On MNIST all 1,000 starts come within
0.001 of the minimum, at median times 5.8, 10.8 and 16.1 for 2, 3 and 4 layers, the last at
6.6, 15.3 and 27.3; descent with step size 0.1 is later by at most 0.2. Distances to the
flow and unbalancedness halve with the step size. The opposite start falls to zero. In exact
arithmetic it stays; rounding turns it away, at a rate that is exponential with 2 layers,
where it is at the minimum by time 60 (``--iterations=1000``), and a power of time with more.

Source: Elkabetz & Cohen, NeurIPS 2021, procedure 1 and section 4.
"""

import dataclasses
import functools
import operator
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

import gf_jax
from experiments.cli.experiment import Experiment
from experiments.cli.options import option, positive_number
from experiments.problems import problem, regression
from experiments.process import memory
from experiments.process.mistakes import EXIT_DIVERGED
from experiments.runs import harness, progress, store, structures
from experiments.runs.harness import Workplace
from experiments.studies import groups
from experiments.studies.deep_linear import figure, table
from experiments.studies.deep_linear.records import Starts
from gf_jax.descent.placement import flow_memory
from gf_jax.descent.schedule import Schedule
from gf_jax.problems.networks import Params
from gf_jax.program.program import Loss
from gf_jax.study.record import percentiles


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(
    groups.Depths,
    groups.RandomStart,
    groups.Data,
    groups.Snapshots,
    groups.Ratios,
    groups.Storage,
):
    """What the experiment can be told."""

    step_size: float = 0.1
    ratios: tuple[int, ...] = (2, 4)
    iterations: int = 400
    widths: tuple[int, ...] = (2,)
    init_scale: float = option(
        "The norm of the initial end-to-end matrix.",
        0.01,
        "Network and starting point",
        accepted=positive_number,
    )
    seeds: int = groups.seeds("Number of starts.", 1_000)
    epsilon: float = groups.accuracy("Accuracy: the loss above its minimum.", 1e-3)


class Study(NamedTuple):
    """The regressions, and their cross-covariances, shape (data sets, inputs)."""

    regressions: tuple[regression.Regression, ...]
    targets: np.ndarray


def run(options: Options) -> int:
    """Runs the experiment and writes its run directory.

    Returns:
      The exit status: 0, or 3 if a start diverged, or 130 if it was interrupted; depths
      that are complete by then are written.

    Raises:
      UsageError: on data or an output directory that are not accepted, and if the flow of all
        starts cannot fit into memory.
    """
    problem.device()
    dataset = problem.load_data(options)
    study = make_study(options, regression.parity(dataset))
    needed = flow_memory(_weights(options, study), len(_times(options.schedule)))
    memory.check(needed, several="--seeds" if options.seeds > 1 else "")
    label = f"deep linear networks {study.targets.shape[1]}-{options.widths[0]}-...-1"
    size = f"{options.seeds:,} starts each of depth {', '.join(map(str, options.depths))}"
    workplace = harness.open_folder(
        EXPERIMENT, options, study, dataset, label, size, harness.of_data(dataset)
    )
    for data in study.regressions:
        workplace.say(f"{data.label}: correlation {data.correlation:.3f}")
    done, interrupted = _measured(workplace)
    told = f"{len(done)} of {len(options.depths)} depths are complete"
    if not done:
        return harness.interrupt(workplace, told)
    labels = [data.label for data in study.regressions]
    summary = table.summarise(done, labels, options.seeds, options.epsilon)
    if interrupted:
        summary["interrupted"] = True
    drawn = harness.draw(workplace, lambda: figure.draw(done, labels, options.epsilon))
    table.show(summary, workplace.console)
    for line in summary["verdict"]:
        workplace.say(line)
    harness.end(workplace, summary, drawn, interrupted=interrupted)
    if interrupted:
        return harness.interrupt(workplace, told)
    return 0 if all(np.isfinite(starts.excess).all() for starts in done) else EXIT_DIVERGED


def _measured(workplace: Workplace[Options, Study]) -> tuple[list[Starts], bool]:
    """What became of the starts of every depth, which is written; whether it was interrupted."""
    done: list[Starts] = []
    try:
        for depth in workplace.options.depths:
            starts = workplace.journal.once(
                f"depth {depth}",
                functools.partial(measure, workplace, depth),
                structures.of(Starts),
            )
            with harness.results(workplace):
                store.write_record(workplace.directory, f"depth_{depth}", starts)
            done.append(starts)
    except KeyboardInterrupt:
        return done, True
    return done, False


def make_study(options: Options, data: regression.Regression) -> Study:
    """The data set's regression, and a synthetic one of the same size."""
    both = (data, regression.synthetic(options.seed, *data.inputs.shape))
    return Study(both, np.stack([each.cross_covariance for each in both]))


def _weights(options: Options, study: Study) -> int:
    """Number of weights of all starts of the largest depth, on all data sets."""
    sizes = (study.targets.shape[1], *options.widths * (max(options.depths) - 1), 1)
    return len(study.targets) * (options.seeds + 1) * sum(a * b for a, b in pairwise(sizes))


def _times(schedule: Schedule) -> np.ndarray:
    """Those of the start and of the snapshots."""
    return schedule.clock().times([0, *schedule.snapshot_iterations])


def starting_points(options: Options, targets: np.ndarray, depth: int) -> Params:
    """Random balanced starts, and as the last the one opposite to the target.

    Returns:
      Leaves of shape (data sets, starts + 1, ...), float64.
    """
    sizes = (targets.shape[1], *options.widths * (depth - 1), 1)
    draw = functools.partial(gf_jax.problems.random_balanced, sizes=sizes, scale=options.init_scale)
    opposite = -options.init_scale * targets / np.linalg.norm(targets, axis=1, keepdims=True)
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(options.seed), options.seeds)
        drawn = jax.jit(jax.vmap(draw))(keys)
        turned = jax.vmap(lambda w: gf_jax.problems.balanced(w[None], sizes))(opposite)
        return jax.tree.map(
            lambda many, last: np.stack([np.concatenate([many, one[None]]) for one in last]),
            drawn,
            turned,
        )


def measure(workplace: Workplace[Options, Study], depth: int) -> Starts:
    """Follows all starts of one depth by flow and by descent at every step size."""
    options, targets = workplace.options, workplace.study.targets
    schedule = options.schedule
    start = starting_points(options, targets, depth)
    times = _times(schedule)
    flow = progress.solve(
        f"depth {depth}, flow",
        lambda tell: gf_jax.gradient_flow(_loss(targets), start, times, progress=tell),
    )
    observed = _observe_runs(targets, start, flow.params, schedule, depth)
    excess, unbalancedness, gap = (values[..., :-1] for values in observed)
    vectors = _vectors(flow.params)[..., :-1, :]
    reduced = progress.solve(
        f"depth {depth}, reduced equation",
        lambda tell: gf_jax.theory.end_to_end_flow(
            vectors[0], targets[:, None], times, depth=depth, progress=tell
        ),
    )
    norms = np.linalg.norm(vectors[0], axis=-1) * np.linalg.norm(targets, axis=-1)[:, None]
    return Starts(
        depth=depth,
        step_sizes=np.array(schedule.step_sizes),
        times=times,
        cosine=(vectors[0] * targets[:, None]).sum(axis=-1) / norms,
        arrival=arrival(times, excess, options.epsilon),
        excess=excess[-1],
        gap=gap.max(axis=0),
        unbalancedness=unbalancedness.max(axis=0),
        reduced_difference=np.linalg.norm(vectors - reduced.params, axis=-1).max(axis=0),
        flow_error=float(flow.error.max()),
        excess_over_time=percentiles(excess),
        gap_over_time=percentiles(gap),
        unbalancedness_over_time=percentiles(unbalancedness),
        opposite=observed[0][..., -1],
    )


def _observe_runs(
    targets: np.ndarray, start: Params, flow: Params, schedule: Schedule, depth: int
) -> tuple[np.ndarray, ...]:
    """What is seen of flow and descent, segment by segment, so that no run is kept whole.

    Returns:
      Loss above its minimum, unbalancedness and distance to the flow, each of shape
      (times, runs, data sets, starts + 1), the flow as the first run.
    """

    @jax.jit
    def observe(runs: Params, flow: Params) -> tuple[Array, Array, Array]:
        difference = gf_jax.theory.end_to_end(runs)[..., 0, :] - targets[:, None]
        excess = 0.5 * jnp.square(difference).sum(axis=-1)
        gap = gf_jax.distance(runs, flow, stack_axes=4)
        return excess, gf_jax.theory.unbalancedness(runs).max(axis=-1), gap

    flow = jax.tree.map(lambda leaf: leaf[:, None], flow)
    with jax.enable_x64(True):
        flowing = jax.device_get(observe(flow, flow))
    lanes = len(schedule.lanes)
    rows = [[np.repeat(values[:1], lanes, axis=1) for values in flowing]]  # all start there
    recorded = 1
    for part, _ in progress.segments(
        _loss(targets), start, schedule, "float64", f"depth {depth}, descent"
    ):
        kept = slice(recorded, recorded + len(part.snapshot_iterations))
        beside = jax.tree.map(operator.itemgetter(kept), flow)
        with jax.enable_x64(True):
            rows.append(jax.device_get(observe(part.snapshots, beside)))
        recorded = kept.stop
    descending = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    return tuple(np.concatenate(both, axis=1) for both in zip(flowing, descending, strict=True))


def arrival(times: np.ndarray, excess: np.ndarray, epsilon: float) -> np.ndarray:
    """The time at which a loss above its minimum first falls to epsilon; inf if it does not.

    Between the times given, the logarithm of the loss is interpolated.

    Args:
      times: shape (times,).
      excess: shape (times, ...).
      epsilon: the accuracy.
    """
    below = excess <= epsilon
    at = below.argmax(axis=0)
    before = np.maximum(at - 1, 0)
    upper = np.take_along_axis(excess, before[None], axis=0)[0]
    lower = np.take_along_axis(excess, at[None], axis=0)[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.log(upper / epsilon) / np.log(upper / lower)
    crossing = times[before] + np.where(at > 0, share, 0.0) * (times[at] - times[before])
    return np.where(below.any(axis=0), crossing, np.inf)


def _loss(targets: np.ndarray) -> Loss:
    """The loss of all starts on all data sets."""
    return gf_jax.theory.end_to_end_loss(targets[:, None, None])


def _vectors(params: Params) -> np.ndarray:
    """End-to-end vectors, shape (..., inputs)."""
    with jax.enable_x64(True):
        return np.asarray(gf_jax.theory.end_to_end(params))[..., 0, :]


EXPERIMENT = Experiment(
    name="deep_linear",
    studies="deep linear networks from random balanced starts",
    question=(
        "Theory says that deep linear networks reach the global minimum from almost every "
        "balanced start near zero. Many random starts are followed, by gradient flow and by "
        "plain descent. Curves are medians over the starts, and bands hold nine of ten of them."
    ),
    options=Options,
    run=run,
)
