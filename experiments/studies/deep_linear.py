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

import functools
import operator
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

import gf_jax
from experiments.cli.configuration import EXIT_DIVERGED, EXIT_INTERRUPTED, Configuration
from experiments.output import figures, report
from experiments.problems import problem, regression
from experiments.runs import harness, memory, progress, store
from experiments.runs.harness import Workplace
from experiments.studies import records
from gf_jax.descent.placement import flow_memory
from gf_jax.descent.schedule import Schedule
from gf_jax.problems.networks import Params
from gf_jax.program.program import Loss

COLUMNS = ("depth", "run", "reached", "after time", "gap", "unbalanced")
LEGEND = """\
reached: share of the starts whose loss falls within the accuracy of its
minimum. after time: that it takes, median over the starts, and percentiles 5
and 95. gap: largest Euclidean distance between descent and flow over time,
median. unbalanced: largest ‖W_{j+1}ᵀ W_{j+1} − W_j W_jᵀ‖ over time and layers,
median."""


class Study(NamedTuple):
    """The regressions, and their cross-covariances, shape (data sets, inputs)."""

    regressions: tuple[regression.Regression, ...]
    targets: np.ndarray


def run(config: Configuration) -> int:
    """Runs the experiment and writes its run directory.

    Returns:
      The exit status: 0, or 3 if a start diverged, or 130 if it was interrupted; depths
      that are complete by then are written.

    Raises:
      UsageError: on data or an output directory that are not accepted, and if the flow of all
        starts cannot fit into memory.
    """
    problem.device()
    dataset = problem.load_data(config)
    study = make_study(config, regression.parity(dataset))
    assert config.depths is not None
    assert config.widths is not None
    inputs = study.targets.shape[1]
    memory.check(config, flow_memory(_weights(config, study), len(_times(config.schedule))))
    label = f"deep linear networks {inputs}-{config.widths[0]}-...-1"
    size = f"{config.seeds:,} starts each of depth {', '.join(map(str, config.depths))}"
    workplace = harness.open_folder(config, study, dataset, label, size)
    for data in study.regressions:
        workplace.say(f"{data.label}: correlation {data.correlation:.3f}")
    done: list[records.Starts] = []
    try:
        for depth in config.depths:
            done.append(measure(workplace, depth))
            with harness.results(workplace):
                store.write_record(workplace.directory, f"depth_{depth}", done[-1])
    except KeyboardInterrupt:
        workplace.say(f"interrupted: {len(done)} of {len(config.depths)} depths are complete")
        if not done:
            return EXIT_INTERRUPTED
    labels = [data.label for data in study.regressions]
    summary = summarise(done, labels, config)
    figure = harness.draw(
        workplace,
        lambda: figures.draw_starts(done, labels, summary["epsilon"], workplace.directory),
    )
    _print(summary, workplace)
    harness.end(workplace, summary, figure)
    if len(done) < len(config.depths):
        return EXIT_INTERRUPTED
    return 0 if all(np.isfinite(starts.excess).all() for starts in done) else EXIT_DIVERGED


def make_study(config: Configuration, data: regression.Regression) -> Study:
    """The data set's regression, and a synthetic one of the same size."""
    assert config.seed is not None
    both = (data, regression.synthetic(config.seed, *data.inputs.shape))
    return Study(both, np.stack([each.cross_covariance for each in both]))


def _weights(config: Configuration, study: Study) -> int:
    """Number of weights of all starts of the largest depth, on all data sets."""
    assert config.depths is not None
    assert config.widths is not None
    assert config.seeds is not None
    sizes = (study.targets.shape[1], *config.widths * (max(config.depths) - 1), 1)
    return len(study.targets) * (config.seeds + 1) * sum(a * b for a, b in pairwise(sizes))


def _times(schedule: Schedule) -> np.ndarray:
    """Those of the start and of the snapshots."""
    return np.concatenate([[0.0], schedule.snapshot_iterations * schedule.step_size])


def starting_points(config: Configuration, targets: np.ndarray, depth: int) -> Params:
    """Random balanced starts, and as the last the one opposite to the target.

    Returns:
      Leaves of shape (data sets, starts + 1, ...), float64.
    """
    assert config.seed is not None
    assert config.seeds is not None
    assert config.widths is not None
    assert config.init_scale is not None
    sizes = (targets.shape[1], *config.widths * (depth - 1), 1)
    draw = functools.partial(gf_jax.problems.random_balanced, sizes=sizes, scale=config.init_scale)
    opposite = -config.init_scale * targets / np.linalg.norm(targets, axis=1, keepdims=True)
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(config.seed), config.seeds)
        drawn = jax.jit(jax.vmap(draw))(keys)
        turned = jax.vmap(lambda w: gf_jax.problems.balanced(w[None], sizes))(opposite)
        return jax.tree.map(
            lambda many, last: np.stack([np.concatenate([many, one[None]]) for one in last]),
            drawn,
            turned,
        )


def measure(workplace: Workplace[Study], depth: int) -> records.Starts:
    """Follows all starts of one depth by flow and by descent at every step size."""
    config, targets = workplace.config, workplace.study.targets
    assert config.epsilon is not None
    schedule = config.schedule
    start = starting_points(config, targets, depth)
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
    return records.Starts(
        depth=depth,
        step_sizes=np.array(schedule.step_sizes),
        times=times,
        cosine=(vectors[0] * targets[:, None]).sum(axis=-1) / norms,
        arrival=arrival(times, excess, config.epsilon),
        excess=excess[-1],
        gap=gap.max(axis=0),
        unbalancedness=unbalancedness.max(axis=0),
        reduced_difference=np.linalg.norm(vectors - reduced.params, axis=-1).max(axis=0),
        flow_error=float(flow.error.max()),
        excess_over_time=records.percentiles(excess),
        gap_over_time=records.percentiles(gap),
        unbalancedness_over_time=records.percentiles(unbalancedness),
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


def summarise(
    done: list[records.Starts], labels: list[str], config: Configuration
) -> dict[str, Any]:
    """The numbers of the tables."""
    summary = {
        "data": labels,
        "starts": config.seeds,
        "epsilon": config.epsilon,
        "time": float(done[0].times[-1]),
        "depths": [
            {
                "depth": starts.depth,
                "flow_error": report.finite(float(starts.flow_error)),
                "data": [_of_data(starts, number) for number in range(len(labels))],
            }
            for starts in done
        ],
    }
    return summary | {"verdict": _verdict(summary)}


def _of_data(starts: records.Starts, number: int) -> dict[str, Any]:
    """One depth on one data set."""
    arrivals, gaps, unbalancedness = (
        records.percentiles(values[:, number])
        for values in (starts.arrival, starts.gap, starts.unbalancedness)
    )
    opposite = np.where(np.isnan(starts.opposite), np.inf, starts.opposite)[..., number]
    return {
        "runs": [
            {
                "step_size": float(step_size),  # 0 is the flow
                "reached": float(np.isfinite(starts.arrival[lane, number]).mean()),
                "arrival": [report.finite(value) for value in arrivals[:, lane]],
                "gap": [report.finite(value) for value in gaps[:, lane]],
                "unbalancedness": [report.finite(value) for value in unbalancedness[:, lane]],
                "opposite": report.finite(opposite[:, lane].min()),
            }
            for lane, step_size in enumerate((0.0, *starts.step_sizes))
        ],
        "gap_order": _order(starts.step_sizes, gaps[1, 1:]),
        "unbalancedness_order": _order(starts.step_sizes, unbalancedness[1, 1:]),
        "reduced_difference": report.finite(starts.reduced_difference[number].max()),
        "smallest_cosine": float(starts.cosine[number].min()),
    }


def _order(step_sizes: np.ndarray, values: np.ndarray) -> float | None:
    """Slope of log value against log step size; None with a single or a diverged run."""
    if len(values) < 2 or not (np.isfinite(values) & (values > 0)).all():
        return None
    return float(np.polyfit(np.log(step_sizes), np.log(values), 1)[0])


def _verdict(summary: dict[str, Any]) -> list[str]:
    """Who reaches the minimum and who does not, and how near descent and theory are."""
    found = [
        (depth["depth"], data, run)
        for depth in summary["depths"]
        for data in depth["data"]
        for run in data["runs"]
    ]
    share = min(run["reached"] for _, _, run in found)
    amount = "every one" if share == 1 else f"at least {share:.1%}"
    escaped = sorted({depth for depth, _, run in found if _escapes(run, summary["epsilon"])})
    lines = [
        f"Verdict: {amount} of {summary['starts']:,} random balanced starts near zero comes "
        f"within {summary['epsilon']:g} of the global minimum by time {summary['time']:g}: at "
        "every depth, on both data sets, under gradient flow and under descent at every step size."
    ]
    if escaped:
        lines.append(
            "The start exactly opposite to the target, which in exact arithmetic falls to zero and "
            f"stays, is carried away from it by rounding at depth {', '.join(map(str, escaped))}."
        )
    else:
        least = min(run["opposite"] for _, _, run in found if run["opposite"] is not None)
        lines.append(
            "The start exactly opposite to the target, which has probability zero, falls to zero "
            f"instead: its loss never comes nearer to the minimum than {least:.3g}."
        )
    orders = [data[name] for _, data, _ in found for name in ("gap_order", "unbalancedness_order")]
    known = [order for order in orders if order is not None]
    if known:
        lines.append(
            "Distance to the flow and unbalancedness of descent, in the median, fall with the step "
            f"size to powers from {min(known):.2f} to {max(known):.2f}."
        )
    worst = max(data["reduced_difference"] or np.inf for _, data, _ in found)
    lines.append(
        "The flow's end-to-end vectors obey the reduced equation of balanced networks within "
        f"{worst:.1g}, at every start and time."
    )
    return lines


def _escapes(run: dict[str, Any], epsilon: float) -> bool:
    """Whether the opposite start reaches the minimum after all, by rounding."""
    return run["opposite"] is not None and run["opposite"] <= epsilon


def _print(summary: dict[str, Any], workplace: Workplace[Study]) -> None:
    def cell(value: float | None, form: str) -> str:
        return "none" if value is None else format(value, form)

    for number, label in enumerate(summary["data"]):
        rows = []
        for depth in summary["depths"]:
            for lane, run in enumerate(depth["data"][number]["runs"]):
                low, median, high = (cell(value, ".2f") for value in run["arrival"])
                row = (
                    "" if lane else str(depth["depth"]),
                    f"η = {run['step_size']:g}" if lane else "flow",
                    f"{run['reached']:.1%}",
                    f"{median} ({low} to {high})",
                    cell(run["gap"][1], ".2e") if lane else "",
                    cell(run["unbalancedness"][1], ".1e"),
                )
                rows.append(row)
        title = f"{label}\n{summary['starts']:,} starts, accuracy {summary['epsilon']:g}"
        legend = LEGEND if number == len(summary["data"]) - 1 else ""
        report.show_table(workplace.console, title, COLUMNS, rows, legend=legend, left=2)
    for line in summary["verdict"]:
        workplace.say(line)
