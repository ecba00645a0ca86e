"""The paper's experiment: descent at step size s against steps s/r and against the flow.

    python -m experiments.main --ratios=2,5,10,20

takes about three minutes on MNIST and half a minute on digits for the default linear
network on two CPU cores. All losses fall on one curve; on MNIST the distance from
initialisation ends near 2.55, the runs within 0.03 percent of that of the flow and of
each other, and every gap within two percent of its prediction.

    python -m experiments.main --ratios=2,5,10,20 --seeds=5

does so from five starting points, all in the same compiled call, then solves flow and
prediction of one after another; see ``seeds`` for what is told of them together.
"""

import operator

import jax
import numpy as np

import gf_jax
from experiments import devices, figures, harness, records, report, seeds, store, structures
from experiments.configuration import EXIT_DIVERGED, Configuration
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
      UnwrittenError: if results cannot be written.
    """
    assert config.arithmetic is not None
    workplace = harness.begin(config)
    outcome = harness.descend(workplace, config.schedule, config.arithmetic)
    if outcome is None:
        return harness.interrupt(workplace, "before the first segment was complete")
    diverged = not np.isfinite(outcome.trajectory.metrics.loss).all()
    if not devices.leads():  # of several processes one compares, writes and prints
        return EXIT_DIVERGED if diverged else 0
    directory, interrupted = workplace.directory, outcome.interrupted
    saved = harness.saved_form(workplace, config.schedule, config.arithmetic, outcome.trajectory)
    with harness.results(workplace):
        store.write_metrics(directory, saved)
        snapshots = workplace.study.restore(outcome.trajectory.snapshots, lanes=True)
        store.write_snapshots(directory, saved, snapshots)
    if config.flow and not interrupted:
        follow = _follow_seeds if saved.seeds else _follow
        saved, interrupted = follow(workplace, saved, outcome.trajectory)
    timing = {"seconds": outcome.seconds, "interrupted": interrupted}
    summary = seeds.summarise(saved) if saved.seeds else report.summarise(saved)
    with harness.results(workplace):
        figures.draw_run(saved, directory)
        store.write_summary(directory, summary | timing)  # the last: it says what is complete
    if saved.seeds:
        seeds.print_seeds(summary, workplace.console)
    else:
        report.print_run(summary, workplace.console)
    harness.end(workplace, interrupted=interrupted)
    if interrupted:
        return harness.interrupt(workplace, "this is less than was asked for")
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
    with harness.results(workplace):
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
        with harness.results(workplace):
            store.write_flow(workplace.directory, run, study.restore(points))
    return run, interrupted


def _reference(
    workplace: NetworkWorkplace, run: records.Run, trajectory: Trajectory, label: str = ""
) -> tuple[records.Reference, Params]:
    """The flow and the prediction at the snapshots' times, and the flow's parameters."""
    f, start = workplace.study.objective.loss, workplace.study.initial_params
    times = run.snapshot_times
    prediction = harness.solve_once(
        workplace,
        f"{label}prediction",
        lambda tell: gf_jax.predict(f, start, times, run.step_sizes, progress=tell),
        structures.prediction(start),
    )
    # With kinks, as accurate as it takes to tell the runs from the flow, but at no more
    # than half the work of the runs. A smooth flow is far more accurate at far less.
    smallest = prediction.to_flow[-1].min() / WELL_BELOW
    tolerance = smallest if prediction.kinks and 0 < smallest < np.inf else None
    flow = harness.solve_once(
        workplace,
        f"{label}gradient flow",
        lambda tell: gf_jax.gradient_flow(
            f,
            start,
            times,
            tolerance=tolerance,
            budget=workplace.config.schedule.gradient_evaluations // 2,
            progress=tell,
        ),
        structures.flow(start),
    )
    compared = gf_jax.compare_with_flow(
        trajectory.snapshots, flow.params, flow.error, run.step_sizes
    )
    solves = (flow.statistics, prediction.flow.statistics)
    return records.Reference(
        loss=flow.loss,
        distance_from_init=harness.distance_from_init(workplace, flow.params),
        flow_error=flow.error,
        distance_to_flow=compared.distance,
        resolution=compared.resolution,
        measured=compared.measured,
        predicted_to_flow=prediction.to_flow,
        predicted_to_base=prediction.to_base,
        order=compared.order,
        flow_evaluations=solves[0].gradient_evaluations,
        prediction_evaluations=solves[1].gradient_evaluations,
        checking_evaluations=sum(solve.checking_evaluations for solve in solves),
    ), flow.params
