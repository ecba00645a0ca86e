"""The paper's experiment: descent at step size s against steps s/r and against the flow.

    python -m experiments.main --ratios=2,5,10,20

takes about three minutes on MNIST and half a minute on digits for the default linear
network on two CPU cores. All losses fall on one curve; on MNIST the distance from
initialisation ends near 2.55, the runs within 0.03 percent of that of the flow and of
each other, and every gap within two percent of its prediction.
"""

import numpy as np

import gf_jax
from experiments import figures, harness, records, report, store
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
    directory, interrupted = workplace.directory, outcome.interrupted
    saved = harness.saved_form(workplace, config.schedule, config.arithmetic, outcome.trajectory)
    store.write_metrics(directory, saved)
    restore = workplace.study.restore
    store.write_snapshots(directory, saved, restore(outcome.trajectory.snapshots))
    if config.flow and not interrupted and saved.arrived:
        try:
            reference, flow_params = _reference(workplace, saved, outcome.trajectory)
            saved = saved._replace(reference=reference)
            store.write_flow(directory, saved, restore(flow_params))
        except KeyboardInterrupt:
            interrupted = True
    summary = report.summarise(saved)
    timing = {"seconds": outcome.seconds, "interrupted": interrupted}
    store.write_summary(directory, summary | timing)
    figures.draw_run(saved, directory)
    report.print_run(summary, workplace.console)
    harness.end(workplace)
    if interrupted:
        workplace.say("interrupted: this is less than was asked for")
        return EXIT_INTERRUPTED
    return EXIT_DIVERGED if report.divergences(summary) else 0


def _reference(
    workplace: NetworkWorkplace, run: records.Run, trajectory: Trajectory
) -> tuple[records.Reference, Params]:
    """The flow and the prediction at the snapshots' times, and the flow's parameters."""
    f, start = workplace.study.objective.loss, workplace.study.initial_params
    times = run.snapshot_times
    prediction = harness.solve(
        "prediction",
        lambda tell: gf_jax.predict(f, start, times, run.step_sizes, progress=tell),
    )
    # With kinks, as accurate as it takes to tell the runs from the flow, but at no more
    # than half the work of the runs. A smooth flow is far more accurate at far less.
    smallest = prediction.to_flow[-1].min() / WELL_BELOW
    tolerance = smallest if prediction.kinks and 0 < smallest < np.inf else None
    flow = harness.solve(
        "gradient flow",
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
