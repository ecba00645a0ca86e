"""Descent in batches drawn at random: how runs spread around their mean, and that around the flow.

    python -m experiments.main --experiment=draws

makes 64 runs with each of three step sizes, from one start, in batches of 10 examples drawn with
replacement at every step, and predicts from the flow alone how far a run stands from the mean
run, the mean run from the flow, and their mean loss from that of the flow. A minute on digits and
eight on MNIST, on two CPU cores; on MNIST a run of step size 0.0025 ends 0.210 from the mean run,
where 0.205 is predicted, and the mean run 0.042 from the flow, where 0.041 is.

    python -m experiments.main --experiment=draws --svag=4

takes four smaller, noisier steps for each, which tells whether the stochastic differential
equation is the right limit. `--order=shuffled` draws without replacement within an epoch, as most
training does; the prediction then takes a solve for each step size, and three times as long.
"""

import dataclasses
import time
from typing import Any

import jax
import numpy as np

import gf_jax
from experiments.cli.experiment import Experiment
from experiments.cli.options import option, positive, seed
from experiments.process.mistakes import EXIT_DIVERGED, UsageError
from experiments.runs import descending, harness, store, structures
from experiments.runs.harness import NetworkWorkplace
from experiments.studies import groups
from experiments.studies.draws import figure, table
from experiments.studies.draws.records import Draws, summarise
from gf_jax.descent.batches import CYCLIC, ORDERS, REPLACEMENT
from gf_jax.descent.segments import Trajectory
from gf_jax.optimizers.method import Method
from gf_jax.problems.objective import check_batch_size

MOST_DRAWS = 100_000
STEPS, WHAT = "Step sizes and time", "What to run"


def _some_draws(count: int) -> str:
    inside = 2 <= count <= MOST_DRAWS
    return "" if inside else f"accepted is an integer from 2 to {MOST_DRAWS}"


def _some_samples(count: int) -> str:
    return "" if count >= 2 else "accepted is an integer from 2 on"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(groups.Arithmetic, groups.Segments, groups.Ratios):
    """What the experiment can be told."""

    step_size: float = 0.01
    iterations: int = 200
    ratios: tuple[int, ...] = groups.ratios_option((2, 4))
    snapshots: int = 20  # each of all runs
    draws: int = option(
        "Number of independent runs with every step size.", 64, WHAT, accepted=_some_draws
    )
    batch_size: int = option(
        "Number of examples in a batch, which every step draws; shuffled, a divisor of examples.",
        10,
        STEPS,
        accepted=positive,
    )
    order: str = option(
        "How batches are drawn.",
        REPLACEMENT,
        STEPS,
        choices={name: meaning for name, meaning in ORDERS.items() if name != CYCLIC},
    )
    svag: int = option(
        "Small steps that stand for one, of its size in all, along a noisier combination of two "
        "batches each; 1 is plain descent. As it grows, runs follow the stochastic equation.",
        1,
        STEPS,
        accepted=positive,
    )
    batch_seed: int = option("Seed of the draws of batches.", 0, STEPS, accepted=seed)
    noise_samples: int = option(
        "Samples of the noise that the prediction follows; its error is as the root of it.",
        16,
        WHAT,
        accepted=_some_samples,
    )

    @property
    def method(self) -> Method:
        """How a step is made of gradients."""
        return Method(batch_size=self.batch_size)

    @property
    def sampling(self) -> dict[str, Any]:
        """How batches are drawn, as ``Classification.batches`` takes it."""
        return {"order": self.order, "svag": self.svag, "seed": self.batch_seed}

    @property
    def unpredicted(self) -> str:
        """Why nothing is predicted; empty if it is."""
        if not self.smooth:
            return "Not predicted: the loss has kinks; take --activation=tanh, for example."
        return ""

    @property
    def flow_runs(self) -> int:
        """As many trajectories as the flow amounts to; of the prediction none is kept."""
        return 1

    def check(self) -> None:
        """Raises UsageError on batches that cannot be drawn so."""
        super().check()
        try:
            check_batch_size(self.batch_size, self.examples, self.order)
        except ValueError as error:
            raise UsageError(f"--{error}") from None
        if self.svag > 1 and self.order != REPLACEMENT:
            raise UsageError(
                f"--svag={self.svag}: takes independent batches, which --order={self.order} does "
                "not draw; drop one of the two flags"
            )

    def unused(self) -> dict[str, str]:
        """Without a prediction its samples."""
        reason = "are of a prediction, and nothing is predicted here; drop the flag"
        return super().unused() | ({"noise_samples": reason} if self.unpredicted else {})


def run(options: Options) -> int:
    """Runs the experiment and writes its run directory.

    Returns:
      The exit status: 0, or 3 if a run diverged, or 130 if it was interrupted.

    Raises:
      UsageError: on data, weights or an output directory that are not accepted.
    """
    workplace = harness.begin(EXPERIMENT, options)
    started = time.perf_counter()
    outcome = descending.descend(workplace, options.schedule, options.arithmetic)
    if outcome is None or outcome.interrupted:
        return harness.interrupt(workplace, "the runs are not complete")
    try:
        flow, predicted = _flow(workplace)
    except KeyboardInterrupt:
        return harness.interrupt(workplace, "the flow is not known yet")
    saved = Draws(
        network_label=workplace.study.network_label,
        data_label=workplace.study.dataset.label,
        draws=options.draws,
        batch_size=options.batch_size,
        svag=options.svag,
        order=options.order,
        step_sizes=np.array(options.all_step_sizes),
        times=flow.times,
        flow_loss=flow.loss,
        distance_from_init=descending.distance_from_init(workplace.study, flow.params),
        measured=_measured(outcome.trajectory, flow),
        predicted=predicted,
    )
    seconds = {"descent": outcome.seconds, "all": time.perf_counter() - started}
    summary = summarise(saved) | {"unpredicted": options.unpredicted, "seconds": seconds}
    with harness.results(workplace):
        store.write_record(workplace.directory, "draws", saved)
    drawn = harness.draw(workplace, lambda: figure.draw(saved))
    table.show(summary, workplace.console)
    for line in filter(None, (options.unpredicted, *summary["verdict"])):
        workplace.say(line)
    for step_size in summary["diverged"]:
        workplace.say(f"warning: with step size {step_size:g} runs diverged, some or all of them")
    harness.end(workplace, summary, drawn)
    return EXIT_DIVERGED if summary["diverged"] else 0


def _flow(workplace: NetworkWorkplace[Options]) -> tuple[gf_jax.Flow, gf_jax.Ensemble | None]:
    """The flow at the snapshots, and what is predicted of the runs, if it is."""
    options, study = workplace.options, workplace.study
    f, start = study.objective.loss, study.initial_params
    schedule = options.schedule
    times = schedule.clock().times(schedule.snapshot_iterations)
    if options.unpredicted:
        like = structures.of(gf_jax.Flow, start, times=len(times))
        flow = harness.solve_once(
            workplace,
            "gradient flow",
            lambda tell: gf_jax.gradient_flow(f, start, times, progress=tell),
            like,
        )
        return flow, None
    batches = study.objective.batches(options.batch_size, **options.sampling)
    found = harness.solve_once(
        workplace,
        "flow and prediction",
        lambda tell: gf_jax.predict_ensemble(
            f,
            start,
            times,
            np.array(options.all_step_sizes),
            batches=batches,
            samples=options.noise_samples,
            seed=options.batch_seed,
            progress=tell,
        ),
        structures.of(
            gf_jax.EnsemblePrediction, start, times=len(times), lanes=len(schedule.lanes)
        ),
    )
    return found.flow, found.ensemble


def _measured(trajectory: Trajectory, flow: gf_jax.Flow) -> gf_jax.Ensemble:
    """What the runs amount to at all times of the flow; NaN when all have diverged."""
    snapshots = trajectory.snapshot_iterations
    missing = len(flow.times) - len(snapshots)

    def whole(leaf: np.ndarray) -> np.ndarray:
        return np.concatenate([leaf, np.full((missing, *leaf.shape[1:]), np.nan, leaf.dtype)])

    losses = trajectory.metrics.loss[np.isin(trajectory.iterations, snapshots)]
    stack, losses = jax.tree.map(whole, (trajectory.snapshots, losses))
    return gf_jax.measure_ensemble(stack, losses, flow.params, flow.loss, flow.error)


EXPERIMENT = Experiment(
    name="draws",
    studies="many runs in batches drawn at random, and what they do together",
    question=(
        "Mostly a step follows the gradient of a few examples that are drawn at random, so that "
        "every run is another one. How far do runs spread, how far is their mean from gradient "
        "flow, and how much higher is their loss? All three follow from the flow alone."
    ),
    options=Options,
    run=run,
)
