"""The paper's experiment: descent at step size s against steps s/r and against the flow.

    python -m experiments.main --ratios=2,5,10,20

takes about three minutes on MNIST and half a minute on digits for the default linear
network on two CPU cores. All losses fall on one curve; on MNIST the distance from
initialisation ends near 2.55, the runs within 0.03 percent of that of the flow and of
each other, and every gap within two percent of its prediction.

    python -m experiments.main --ratios=2,5,10,20 --seeds=5

does so from five starting points, all in the same compiled call, then solves flow and
prediction of one after another; see ``seeds`` for what is told of them together.

    python -m experiments.main --ratios=2,5,10,20 --momentum=0.9 --step_size=0.0001

makes the runs with momentum, at the same times as the first command. On MNIST they end
0.014 from the flow, 19 times as far as without, and every gap from time 0.2 on is within
2.2 percent of its prediction.
"""

import operator

import jax
import numpy as np

import gf_jax
from experiments import devices, figures, harness, records, report, seeds, store
from experiments.configuration import EXIT_DIVERGED, EXIT_INTERRUPTED, Configuration
from experiments.harness import NetworkWorkplace
from gf_jax.comparison import WELL_BELOW
from gf_jax.descent import Trajectory
from gf_jax.networks import Params


def run(config: Configuration) -> int:
    """Runs the experiment and writes its run directory.

    Returns:
      The exit status: 0, or 3 if a lane diverged, or 130 if it was interrupted.

    Raises:
      UsageError: on data, weights or an output directory that are not accepted.
    """
    assert config.arithmetic is not None
    workplace = harness.begin(config)
    outcome = harness.descend(workplace, config.schedule, config.arithmetic)
    if outcome is None:
        workplace.say("interrupted before the first segment was complete")
        return EXIT_INTERRUPTED
    diverged = not np.isfinite(outcome.trajectory.metrics.loss).all()
    if not devices.leads():  # of several processes one compares, writes and prints
        return EXIT_DIVERGED if diverged else 0
    directory, interrupted = workplace.directory, outcome.interrupted
    saved = harness.saved_form(workplace, config.schedule, config.arithmetic, outcome.trajectory)
    store.write_metrics(directory, saved)
    snapshots = workplace.study.restore(outcome.trajectory.snapshots, lanes=True)
    store.write_snapshots(directory, saved, snapshots)
    if config.flow and not interrupted:
        follow = _follow_seeds if saved.seeds else _follow
        saved, interrupted = follow(workplace, saved, outcome.trajectory)
    timing = {"seconds": outcome.seconds, "interrupted": interrupted}
    summary = seeds.summarise(saved) if saved.seeds else report.summarise(saved)
    store.write_summary(directory, summary | timing)
    figures.draw_run(saved, directory)
    if saved.seeds:
        seeds.print_seeds(summary, workplace.console)
    else:
        report.print_run(summary, workplace.console)
    harness.end(workplace)
    if interrupted:
        workplace.say("interrupted: this is less than was asked for")
        return EXIT_INTERRUPTED
    return EXIT_DIVERGED if diverged else 0


def _follow(
    workplace: NetworkWorkplace, run: records.Run, trajectory: Trajectory
) -> tuple[records.Run, bool]:
    """The run with its flow, which is written; and whether that was interrupted."""
    if not run.arrived:
        return run, False
    try:
        reference, flow_params = _reference(workplace, run, trajectory)
    except KeyboardInterrupt:
        return run, True
    run = run._replace(reference=reference)
    store.write_flow(workplace.directory, run, workplace.study.restore(flow_params))
    return run, False


def _follow_seeds(
    workplace: NetworkWorkplace, run: records.Run, trajectory: Trajectory
) -> tuple[records.Run, bool]:
    """The same for every starting point, one after another; those that were done are kept."""
    study, interrupted = workplace.study, False
    # What is not found is NaN: of starts from which all runs diverge, or after an interrupt.
    points = jax.tree.map(
        lambda leaf: np.full((len(leaf), *leaf.shape[1:2], *leaf.shape[3:]), np.nan),
        trajectory.snapshots,
    )
    references: list[records.Reference | None] = [None] * len(run.seeds)
    for number, (seed, single) in enumerate(zip(run.seeds, run.of_seeds, strict=True)):
        if not single.arrived:
            continue
        start = jax.tree.map(operator.itemgetter(number), study.initial_params)
        of_seed = jax.tree.map(operator.itemgetter((slice(None), number)), trajectory.snapshots)
        try:
            references[number], flow_params = _reference(
                workplace._replace(study=study._replace(initial_params=start)),
                single,
                trajectory._replace(snapshots=of_seed),
                f"seed {seed}, ",
            )
        except KeyboardInterrupt:
            interrupted = True
            break
        for kept, leaf in zip(jax.tree.leaves(points), jax.tree.leaves(flow_params), strict=True):
            kept[:, number] = leaf
    run = run._replace(reference=records.join_references(references))
    if run.reference is not None:
        store.write_flow(workplace.directory, run, study.restore(points))
    return run, interrupted


def _reference(
    workplace: NetworkWorkplace, run: records.Run, trajectory: Trajectory, label: str = ""
) -> tuple[records.Reference, Params]:
    """The flow and the prediction at the snapshots' times, and the flow's parameters."""
    f, start = workplace.study.objective.loss, workplace.study.initial_params
    times = run.snapshot_times
    prediction = _prediction(workplace, run, label)
    # With kinks, as accurate as it takes to tell the runs from the flow, but at no more
    # than half the work of the runs. A smooth flow is far more accurate at far less.
    smallest = (prediction.to_flow[-1].min() if prediction else _smallest_gap(run)) / WELL_BELOW
    kinks = prediction.kinks if prediction else not workplace.study.linear
    tolerance = smallest if kinks and 0 < smallest < np.inf else None
    flow = harness.solve(
        f"{label}gradient flow",
        lambda tell: gf_jax.gradient_flow(
            f,
            start,
            times,
            tolerance=tolerance,
            budget=workplace.config.schedule.gradient_evaluations // 2,
            progress=tell,
        ),
    )
    compared = gf_jax.compare_with_flow(
        trajectory.snapshots, flow.params, flow.error, run.step_sizes
    )
    solves = [flow.statistics, *([prediction.flow.statistics] if prediction else [])]
    unknown = np.full_like(compared.distance, np.nan)
    return records.Reference(
        loss=flow.loss,
        distance_from_init=harness.distance_from_init(workplace, flow.params),
        flow_error=flow.error,
        distance_to_flow=compared.distance,
        resolution=compared.resolution,
        measured=compared.measured,
        predicted_to_flow=prediction.to_flow if prediction else unknown,
        predicted_to_base=prediction.to_base if prediction else unknown,
        order=compared.order,
        flow_evaluations=solves[0].gradient_evaluations,
        prediction_evaluations=sum(solve.gradient_evaluations for solve in solves[1:]),
        checking_evaluations=sum(solve.checking_evaluations for solve in solves),
    ), flow.params


def _prediction(
    workplace: NetworkWorkplace, run: records.Run, label: str
) -> gf_jax.Prediction | None:
    """The prediction at the snapshots' times; None where theory has none."""
    if not workplace.config.predicts:
        return None
    f, start = workplace.study.objective.loss, workplace.study.initial_params
    return harness.solve(
        f"{label}prediction",
        lambda tell: gf_jax.predict(
            *(f, start, run.snapshot_times, run.step_sizes),
            momentum=run.method.record,
            progress=tell,
        ),
    )


def _smallest_gap(run: records.Run) -> float:
    """Distance from the flow of the run with the smallest step, as its gap to the base tells it."""
    gap, ratio = run.metrics.distance_to_base[-1, -1], run.ratios[-1]
    return float(gap) / (ratio - 1) if ratio > 1 else 0.0  # proportional to the step size
