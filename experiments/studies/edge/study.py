"""Past the edge of stability: what descent follows where it does not follow gradient flow.

    python -m experiments.main --experiment=edge

runs descent at two step sizes, of which the larger is past its edge of stability for most of the
run, averages it over windows of 50 iterations, and compares the averages with gradient flow
and with the central flow of each step size, which is followed from the start alone.

    python -m experiments.main --experiment=edge --activation=gelu --step_sizes=0.1

does the same of one run of another network.

    python -m experiments.main --experiment=edge --optimizer=rmsprop --step_sizes=0.002

asks what RMSProp follows, whose central flow knows what it remembers of squares, too. With a memory
as short as that of ten steps it may end early, which is told.
"""

import time
from typing import Any

import jax
import numpy as np

import gf_jax
from experiments.cli.experiment import Experiment
from experiments.process.mistakes import EXIT_DIVERGED
from experiments.runs import harness, store, structures
from experiments.runs.harness import NetworkWorkplace
from experiments.studies.edge import figure, table
from experiments.studies.edge.averages import average
from experiments.studies.edge.options import Options
from experiments.studies.edge.records import Averages, Edges, Followed
from gf_jax.comparison import precise_distance
from gf_jax.flow.problem import Progress

MOST_HELD = 8
TOLERANCE = 3e-4  # of a step of the central flow, in parameters
BUDGET = 20  # gradients of gradient flow over those of all runs
SHARPNESS = 1e-3  # relative residual of eigenvalues


def run(options: Options) -> int:
    """Runs the experiment and writes its run directory.

    Returns:
      The exit status: 0, or 3 if a run diverged, or 130 if it was interrupted.

    Raises:
      UsageError: on data, weights or an output directory that are not accepted.
    """
    workplace = harness.begin(EXPERIMENT, options)
    for line in table.announcement(options, workplace.study.initial_params):
        workplace.say(line)
    try:
        saved, seconds = _compare(workplace)
    except KeyboardInterrupt:
        return harness.interrupt(workplace, "not all runs and flows are known yet")
    summary = table.summarise(saved, seconds)
    with harness.results(workplace):
        store.write_record(workplace.directory, "edge", saved)
    drawn = harness.draw(workplace, lambda: figure.draw(saved))
    table.show(summary, workplace.console)
    for line in summary["verdict"]:
        workplace.say(line)
    harness.end(workplace, summary, drawn)
    return EXIT_DIVERGED if any(lane["diverged"] for lane in summary["runs"]) else 0


def _compare(workplace: NetworkWorkplace[Options]) -> tuple[Edges, list[dict[str, float]]]:
    """All runs and flows, one after another, and the seconds that each lane took."""
    options, study = workplace.options, workplace.study
    flow, sharpness = _limit(workplace)
    lanes = [
        _lane(workplace, ratio, step_size, flow)
        for ratio, step_size in zip(options.schedule.lanes, options.all_step_sizes, strict=True)
    ]
    seconds = [{name: lane.pop(name) for name in table.SECONDS} for lane in lanes]
    columns = {name: np.stack([lane[name] for lane in lanes], axis=-1) for name in lanes[0]}
    saved = Edges(
        network_label=study.network_label,
        data_label=study.dataset.label,
        runs=options.runs_named,
        limit=options.method.flow_name,
        loss_unit=study.objective.of_outputs.unit,
        window=options.window,
        step_sizes=np.array(options.all_step_sizes),
        times=options.times,
        flow_loss=flow.loss,
        flow_sharpness=sharpness,
        **columns,
    )
    return saved, seconds


def _limit(workplace: NetworkWorkplace[Options]) -> tuple[gf_jax.Flow, np.ndarray]:
    """The limit of small steps, and its sharpness for every step size, (times, lanes)."""
    options, study = workplace.options, workplace.study
    f, start, times = study.objective.loss, study.initial_params, options.times
    optimizer, step_sizes = options.chosen_optimizer, np.array(options.all_step_sizes)
    budget = BUDGET * sum(options.schedule.lanes) * options.iterations
    like = structures.of(gf_jax.Flow, start, times=len(times))
    if optimizer is None:
        flow = harness.solve_once(
            workplace,
            "gradient flow",
            lambda tell: gf_jax.gradient_flow(f, start, times, budget=budget, progress=tell),
            like,
        )
        sharpness = _sharpness(workplace, "sharpness of gradient flow", flow.params)
        return flow, np.tile(sharpness[:, None], len(step_sizes))
    how: dict[str, Any] = {"budget": budget}
    flow = harness.solve_once(
        workplace,
        "continuous limit",
        lambda tell: gf_jax.limit_flow(
            *(f, start, times, optimizer), step_size=step_sizes.min(), progress=tell, **how
        ),
        like,
    )
    edge = harness.solve_once(
        workplace,
        "sharpness of the limit",
        lambda tell: gf_jax.edge_of_stability(
            *(f, start, times, optimizer, step_sizes),
            tolerance=SHARPNESS,
            products=12,
            progress=tell,
            **how,
        ),
        structures.of(gf_jax.Edge, times=len(times), lanes=len(step_sizes)),
    )
    return flow, edge.sharpness


def _lane(
    workplace: NetworkWorkplace[Options], ratio: int, step_size: float, flow: gf_jax.Flow
) -> dict[str, Any]:
    """What is told of one step size: its central flow, then its run."""
    options, study = workplace.options, workplace.study
    f, start, times = study.objective.loss, study.initial_params, options.times
    size = sum(leaf.size for leaf in jax.tree.leaves(start))
    named = f"step size {step_size:g}"

    def follow(tell: Progress) -> Followed:
        begun = time.perf_counter()
        found = gf_jax.central_flow(
            *(f, start, times, step_size),
            optimizer=options.chosen_optimizer,
            first_steps=options.first_steps(ratio),
            corrected=options.corrected,
            most_held=MOST_HELD,
            tolerance=TOLERANCE,
            progress=tell,
        )
        return Followed(found, time.perf_counter() - begun)

    central, seconds = harness.solve_once(
        workplace,
        f"central flow, {named}",
        follow,
        structures.of(Followed, start, times=len(times), most=MOST_HELD, parameters=size),
    )
    schedule = options.schedule_of(ratio)
    run = harness.solve_once(
        workplace,
        f"{options.runs_named}, {named}",
        lambda tell: average(
            *(f, start, schedule, options.compared * ratio, options.window // 2),
            *(central.axes, options.arithmetic, options.chosen_optimizer, tell),
        ),
        structures.of(Averages, start, times=len(times), most=MOST_HELD),
    )
    sharpness = np.full(len(times), np.nan)  # in a metric that the averages do not know
    if options.chosen_optimizer is None:
        sharpness = _sharpness(workplace, f"sharpness, {named}", run.params)
    share = 2 / ratio  # of a window of this run in the time between two windows
    return {
        "loss": run.loss,
        "average_loss": run.average_loss,
        "average_squared_gradient": run.average_squared_gradient,
        "sharpness": sharpness,
        "travelled": precise_distance(run.params, start, 1),
        "variance": run.variance,
        "variance_within": np.trace(run.covariance, axis1=1, axis2=2),
        "central_loss": central.average_loss,
        "central_squared_gradient": central.average_squared_gradient,
        "central_sharpness": central.lambda_max,
        "central_variance": central.variances.sum(axis=1),
        "held": central.held,
        "central_error": central.error,
        "from_flow": precise_distance(run.params, _averaged(flow.params, start, share), 1),
        "from_central": precise_distance(run.params, _averaged(central.params, start, share), 1),
        "past_edge": central.past_edge,
        "ended": central.ended,
        "evaluations": schedule.gradient_evaluations,
        "central_evaluations": central.statistics.gradient_evaluations
        + central.statistics.checking_evaluations,
        "seconds": run.seconds,
        "central_seconds": seconds,
    }


def _averaged(params: Any, start: Any, share: float) -> Any:
    """A flow averaged over windows as runs are, by its second differences.

    Args:
      params: of the flow, at evenly spaced times.
      start: where it begins.
      share: length of a window over the time between two of them.
    """

    def mean(leaf: np.ndarray, first: np.ndarray) -> np.ndarray:
        whole = np.concatenate([np.asarray(first, float)[None], leaf])
        bend = np.diff(whole, 2, axis=0)
        bend = np.concatenate([bend, bend[-1:] if len(bend) else np.zeros_like(leaf)])
        return leaf + share**2 / 24 * bend

    return jax.tree.map(mean, params, start)


def _sharpness(workplace: NetworkWorkplace[Options], label: str, stack: Any) -> np.ndarray:
    """The largest eigenvalue of the Hessian at the points of a stack that are finite."""
    leaves = jax.tree.leaves(stack)
    known = np.all([np.isfinite(leaf).reshape(len(leaf), -1).all(axis=1) for leaf in leaves], 0)
    values = np.full(len(known), np.nan)
    if not known.any():
        return values
    points = jax.tree.map(lambda leaf: leaf[known], stack)
    found = harness.solve_once(
        workplace,
        label,
        lambda tell: gf_jax.curvature(
            *(workplace.study.objective.loss, points),
            tolerance=SHARPNESS,
            products=12,
            progress=tell,
        ),
        structures.of(gf_jax.Curvature, points=int(known.sum())),
    )
    values[known] = found.lambda_max.value
    return values


EXPERIMENT = Experiment(
    name="edge",
    studies="past the edge of stability: the central flow",
    question=(
        "Where the loss bends so sharply that a step overshoots, descent oscillates and leaves "
        "gradient flow for good, and yet it goes on training. What does it follow then? On "
        "average it follows the central flow, which knows how large the oscillation has to be to "
        "keep the sharpness at the edge of stability, 2 / step size. It is followed from the "
        "start alone and compared with the runs."
    ),
    options=Options,
    run=run,
)
