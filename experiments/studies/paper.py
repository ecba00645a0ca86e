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

import dataclasses
import operator
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import gf_jax
from experiments.cli.experiment import Experiment
from experiments.cli.options import option
from experiments.output import report
from experiments.process import peers
from experiments.process.mistakes import EXIT_DIVERGED
from experiments.runs import descending, effort, engine, harness, store, structures
from experiments.runs.harness import NetworkWorkplace
from experiments.runs.options.storage import RESULTS
from experiments.studies import groups, seeds
from gf_jax import stacks
from gf_jax.descent.segments import Trajectory
from gf_jax.flow.misjudged import Misjudged
from gf_jax.flow.problem import Progress
from gf_jax.problems.networks import Params
from gf_jax.study.following import Followed, follow
from gf_jax.study.record import Reference, Run, join_references

PATIENCE = 300.0  # seconds of flows to come that are not worth a word


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(
    groups.BesideFlow,
    groups.Starts,
    groups.Batches,
    groups.Arithmetic,
    groups.Segments,
    groups.Ratios,
):
    """What the experiment can be told."""

    weights: bool = option(
        "Results hold the parameters of all runs and of the flow at the snapshots, and not only "
        "what is told of them.",
        True,
        RESULTS,
    )

    def kept(self, stack: Params) -> Params | None:
        """Parameters that results hold, if they hold any."""
        return stack if self.weights else None


def run(options: Options) -> int:
    """Runs the experiment and writes its run directory.

    Returns:
      The exit status: 0, or 3 if a lane diverged, or 130 if it was interrupted.

    Raises:
      UsageError: on data, weights or an output directory that are not accepted.
      UnwrittenError: if results cannot be written.
    """
    workplace = harness.begin(EXPERIMENT, options)
    outcome = descending.descend(workplace, options.schedule, options.arithmetic)
    if outcome is None:
        return harness.interrupt(workplace, "before the first segment was complete")
    diverged = not np.isfinite(outcome.trajectory.metrics.loss).all()
    if not peers.leads():  # of several processes one compares, writes and prints
        return peers.wait_for_first()
    peers.alone()
    workplace.journal.alone()
    directory, interrupted = workplace.directory, outcome.interrupted
    saved = descending.saved_form(
        workplace, options.schedule, options.arithmetic, outcome.trajectory
    )
    with harness.results(workplace):
        store.write_metrics(directory, saved)
        snapshots = workplace.study.restore(outcome.trajectory.snapshots, lanes=True)
        store.write_snapshots(directory, saved, options.kept(snapshots))
    if options.flow and not interrupted:
        follow = _follow_seeds if saved.seeds else _follow
        saved, interrupted = follow(workplace, saved, outcome.trajectory)
    timing = {"seconds": outcome.seconds, "interrupted": interrupted}
    summary = seeds.summarise(saved) if saved.seeds else report.summarise(saved)
    figure = harness.draw(workplace, lambda: report.draw_run(saved))
    if saved.seeds:
        seeds.print_seeds(summary, workplace.console)
    else:
        report.print_run(summary, workplace.console)
    harness.end(workplace, summary | timing, figure, interrupted=interrupted)
    if interrupted:
        return harness.interrupt(workplace, "this is less than was asked for")
    return EXIT_DIVERGED if diverged else 0


def _follow(
    workplace: NetworkWorkplace[Options], run: Run, trajectory: Trajectory
) -> tuple[Run, bool]:
    """The run with its flow, which is written; and whether that was interrupted."""
    if not run.arrived:
        return run, False
    try:
        followed = _followed(workplace, run, trajectory)
    except KeyboardInterrupt:
        return run, True
    run = dataclasses.replace(run, reference=followed.reference, doubts=followed.doubts)
    if followed.flow is not None:
        with harness.results(workplace):
            flow_params = workplace.study.restore(followed.flow.params)
            store.write_flow(workplace.directory, run, workplace.options.kept(flow_params))
    return run, False


def _follow_seeds(
    workplace: NetworkWorkplace[Options], run: Run, trajectory: Trajectory
) -> tuple[Run, bool]:
    """The same for every starting point, one after another; those that were done are kept."""
    study, interrupted = workplace.study, False
    # What is not found is NaN: of starts from which all runs diverge, or after an interrupt.
    start = jax.tree.map(lambda leaf: np.full(leaf.shape, np.nan), study.initial_params)
    points = stacks.empty(start, len(run.snapshot_iterations))
    for at in stacks.blocks(points):
        stacks.put(points, at, start)
    references: list[Reference | None] = [None] * len(run.seeds)
    doubts: list[str] = []
    for number, (seed, single) in enumerate(zip(run.seeds, run.of_seeds, strict=True)):
        if not single.arrived:
            continue
        start = jax.tree.map(operator.itemgetter(number), study.initial_params)
        begun = time.perf_counter()
        of_seed = jax.tree.map(operator.itemgetter((slice(None), number)), trajectory.snapshots)
        try:
            followed = _followed(
                workplace._replace(study=study._replace(initial_params=start)),
                single,
                trajectory._replace(snapshots=of_seed),
                f"seed {seed}, ",
            )
        except KeyboardInterrupt:
            interrupted = True
            break
        doubts += [f"Seed {seed}: {doubt}" for doubt in followed.doubts]
        _foretell(workplace, number, time.perf_counter() - begun)
        references[number] = followed.reference
        if followed.flow is not None:
            of_seed = jax.tree.map(operator.itemgetter((slice(None), number)), points)
            for at in stacks.blocks(of_seed, followed.flow.params):
                stacks.put(of_seed, at, stacks.take(followed.flow.params, at))
    reference = join_references(references)
    run = dataclasses.replace(run, reference=reference, doubts=tuple(doubts))
    if run.reference is not None:
        with harness.results(workplace):
            flow_params = study.restore(points)
            store.write_flow(workplace.directory, run, workplace.options.kept(flow_params))
    return run, interrupted


def _foretell(workplace: NetworkWorkplace[Options], number: int, seconds: float) -> None:
    """After the first flow, says what those of the other starting points will take."""
    left = len(workplace.options.starts_of_seeds) - 1
    if number == 0 and seconds * left > PATIENCE:
        workplace.say(
            f"the flow of one starting point took {effort.duration(seconds)}, those of the other "
            f"{left:,} will take about {effort.duration(seconds * left)}; --noflow leaves them out"
        )


def _followed(
    workplace: NetworkWorkplace[Options], run: Run, trajectory: Trajectory, label: str = ""
) -> Followed:
    """The flow and the prediction at the snapshots' times, and what rounding did to the runs."""
    options, study = workplace.options, workplace.study
    start = study.initial_params
    times, lanes = len(run.snapshot_iterations), len(run.ratios)
    likes = {
        "prediction": structures.of(gf_jax.Prediction, start, times=times, lanes=lanes),
        "rounding": structures.trajectory(start, times),
        "rounding at kinks": structures.of(Misjudged),
        run.method.flow_name: structures.of(gf_jax.Flow, start, times=times),
    }

    def solve(what: str, solver: Callable[[Progress | None], Any]) -> Any:
        return harness.solve_once(workplace, label + what, solver, likes[what])

    return follow(
        study.objective.loss,
        start,
        run,
        trajectory.snapshots,
        solve,
        predict=options.predicts,
        descent={"arithmetic": options.arithmetic, **engine.steps(options, study)},
    )


EXPERIMENT = Experiment(
    name="paper",
    studies="descent against smaller steps and against gradient flow",
    question=(
        "Gradient descent takes steps of finite size; gradient flow is what is left when the "
        "steps become infinitely small. Here the same network is trained from the same start "
        "with step size η₀ and with smaller ones, η₀/2, η₀/5 and so on. Runs are compared at "
        "equal time, that is iteration times step size, so that a run with half the step size "
        "has taken twice as many steps. If all runs and the flow agree, what theory says of "
        "the flow holds for descent as well."
    ),
    options=Options,
    run=run,
    label=lambda options: options.network,
    on_hosts=True,
    shown=True,
)
