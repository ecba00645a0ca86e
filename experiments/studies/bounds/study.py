"""Which step size the theory allows, beside what is predicted and what is measured.

    python -m experiments.main --experiment=bounds --epsilon=0.001

asks how small the step must be for descent to stay within epsilon of its flow. It runs
descent and the flow, finds the Hessian's extremal eigenvalues along both, evaluates the
fundamental theorem on them (a bound on the gap of the run that was made), and answers the
question four times: by the a-priori theorem with constants that are proven for the tube
of width epsilon around the flow (linear networks only), by the same formula with constants
measured on the flow, by the prediction, and by a run that is compared with the flow.
Two minutes on two CPU cores for the linear network on MNIST, where at time 10 the gap is
7.6e-4, as predicted, and the fundamental theorem gives 40 times that; the a-priori theorem
allows 9e-8 with constants measured on the flow where 7.5e-4 suffices.
"""

import dataclasses

import jax
import numpy as np

import gf_jax
from experiments.cli.experiment import Experiment
from experiments.process import interruption
from experiments.process.mistakes import EXIT_DIVERGED
from experiments.runs import descending, harness, store, structures
from experiments.runs.harness import NetworkWorkplace
from experiments.studies import groups, spectra
from experiments.studies.bounds import figure, table
from experiments.studies.bounds.records import Answer, BoundsRun, Tube
from gf_jax.comparison import precise_distance
from gf_jax.descent.schedule import Schedule
from gf_jax.problems.networks import Params

KINK_BUDGET = 4  # of a flow with kinks, in gradient evaluations per step of descent
TRIALS = 3  # runs at most, to find a step size that suffices
SAFELY = 0.98  # of the step size that a trial suggests
NEARLY = 0.5  # of the accuracy: a gap above that needs no further trial


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(groups.Arithmetic, groups.Segments):
    """What the experiment can be told."""

    snapshots: int = 40  # the curvature is found at each
    epsilon: float = groups.accuracy("Accuracy: the distance between descent and flow.", 1e-3)


def run(options: Options) -> int:
    """Runs the experiment and writes its run directory.

    Returns:
      The exit status: 0, or 3 if descent diverged, or 130 if it was interrupted.

    Raises:
      UsageError: on data, weights or an output directory that are not accepted.
    """
    workplace = harness.begin(EXPERIMENT, options)
    schedule = spectra.sampled(options.schedule)
    try:
        saved = _base(workplace, schedule)
        if saved is None:
            workplace.say(
                f"the run with step size {schedule.step_size:g} diverged; try a smaller one"
            )
            workplace.journal.remove()
            return EXIT_DIVERGED
        with harness.results(workplace):
            store.write_record(workplace.directory, "bounds", saved)
        workplace.say("the gap and its bound are written; next the step size that suffices")
        answers = _answers(workplace, saved)
    except KeyboardInterrupt:
        return harness.interrupt(workplace, f"what is complete lies in {workplace.directory}")
    summary = table.summarise(saved, answers)
    drawn = harness.draw(workplace, lambda: figure.draw(saved, answers))
    table.show(summary, workplace.console)
    if spectra.bound_of(workplace.study) is None:
        workplace.say(spectra.uncovered(summary["network"]))
    for line in summary["verdict"]:
        workplace.say(line)
    harness.end(workplace, summary, drawn)
    return 0


def _base(workplace: NetworkWorkplace[Options], schedule: Schedule) -> BoundsRun | None:
    """The run that was asked for, its gap, and everything that bounds it; None if it diverged."""
    epsilon, study = workplace.options.epsilon, workplace.study
    step_size, times = schedule.step_size, spectra.times_of(schedule)
    compared = _compare(workplace, schedule)
    if compared is None:
        return None
    descent, flow, gap = compared
    predicted, suggested = _predict(workplace, times, step_size, gap)
    # Back along descent, so that neighbours in the stack are neighbours in weight space.
    points = jax.tree.map(lambda a, b: np.concatenate([a, b[::-1]]), flow.params, descent)
    spectrum = spectra.measure(workplace, "flow and descent", points)
    at_flow = jax.tree.map(lambda values: values[: len(times)], spectrum)
    at_descent = spectrum.lambda_min[len(times) :][::-1]
    defects = interruption.call(
        lambda: gf_jax.theory.defects(study.objective.loss, descent, step_size)
    )
    iterations = np.array([0, *schedule.snapshot_iterations])
    lambda_min = np.minimum(at_flow.lambda_min, at_descent)
    tube = None
    norms = spectra.norm_bound(study, flow.params, epsilon)
    if norms is not None:
        beta = norms.max()
        tube = Tube(
            lambda_min=spectra.lower_bound(study, flow.params, epsilon).sharpened,
            beta=float(beta),
            gamma=float(at_flow.gradient_norm.max() + beta * epsilon),
        )
    return BoundsRun(
        network_label=study.network_label,
        data_label=study.dataset.label,
        epsilon=epsilon,
        step_size=step_size,
        kinks=not study.network.smooth,
        times=times,
        loss=flow.loss,
        travelled=descending.distance_from_init(study, flow.params),
        gap=gap,
        flow_error=flow.error,
        predicted=np.concatenate([[0.0], predicted]),
        bound=gf_jax.theory.a_posteriori_bound(step_size, iterations, defects, lambda_min),
        defects=defects,
        spectrum=at_flow,
        descent_lambda_min=at_descent,
        tube=tube,
        suggested=suggested,
    )


def _compare(
    workplace: NetworkWorkplace[Options], schedule: Schedule, part: str = ""
) -> tuple[Params, gf_jax.Flow, np.ndarray] | None:
    """Descent and flow at the start and the snapshots, and their distance; None if it diverges.

    Args:
      workplace: the workplace.
      schedule: of descent.
      part: of the experiment, which is in front of the labels of what is kept.
    """
    outcome = descending.descend(workplace, schedule, workplace.options.arithmetic, part)
    if outcome is None or outcome.interrupted:
        raise KeyboardInterrupt
    if not np.isfinite(outcome.trajectory.metrics.loss).all():
        return None
    budget = KINK_BUDGET * schedule.iterations
    flow = spectra.follow(workplace, spectra.times_of(schedule), budget, part)
    snapshots = outcome.trajectory.snapshots
    descent = spectra.with_start(workplace.study.initial_params, snapshots)
    return descent, flow, precise_distance(descent, flow.params, 1)


def _predict(
    workplace: NetworkWorkplace[Options], times: np.ndarray, step_size: float, gap: np.ndarray
) -> tuple[np.ndarray, float]:
    """The gap as predicted at all times but the first, and the step size for the accuracy.

    That is the one whose predicted gap is at most epsilon, or the edge of stability at
    the start if that is less; with kinks it is taken in proportion to the gap measured.
    """
    f, start = workplace.study.objective.loss, workplace.study.initial_params
    epsilon = workplace.options.epsilon
    if not workplace.study.network.smooth:
        prediction = harness.solve_once(
            workplace,
            "prediction",
            lambda tell: gf_jax.predict(f, start, times[1:], np.array([step_size]), progress=tell),
            structures.of(gf_jax.Prediction, start, times=len(times) - 1, lanes=1),
        )
        return prediction.to_flow[:, 0], float(step_size * epsilon / gap.max())
    deviation = harness.solve_once(
        workplace,
        "prediction",
        lambda tell: gf_jax.deviation(f, start, times[1:], progress=tell),
        structures.of(gf_jax.Deviation, start, times=len(times) - 1),
    )
    low, high = 0.0, float(times[-1])
    for _ in range(60):
        middle = (low + high) / 2
        fits = deviation.gap(middle).max() <= epsilon
        low, high = (middle, high) if fits else (low, middle)
    return deviation.gap(step_size), low


def _answers(workplace: NetworkWorkplace[Options], saved: BoundsRun) -> tuple[Answer, ...]:
    """The step sizes that keep descent within epsilon, by theorem, prediction and measurement."""
    spectrum, epsilon, times = saved.spectrum, saved.epsilon, saved.times
    answers = []
    if saved.tube is not None:
        proven = gf_jax.theory.allowed_step_size(
            epsilon, times, saved.tube.lambda_min, beta=saved.tube.beta, gamma=saved.tube.gamma
        )
        answers.append(Answer("theorem", proven.step_size, proven))
    sampled = gf_jax.theory.allowed_step_size(
        epsilon,
        times,
        spectrum.lambda_min,
        beta=float(np.maximum(spectrum.lambda_max, -spectrum.lambda_min).max()),
        gamma=float(spectrum.gradient_norm.max()),
    )
    answers.append(Answer("theorem, sampled", sampled.step_size, sampled))
    edge = 2 / float(spectrum.lambda_max.max())
    largest = min(edge / 2, times[-1])
    suggested = min(saved.suggested, largest)
    answers.append(Answer("prediction", step_size=suggested))
    return (*answers, _measured(workplace, suggested, epsilon, times[-1], largest))


def _measured(
    workplace: NetworkWorkplace[Options],
    step_size: float,
    epsilon: float,
    end: float,
    largest: float,
) -> Answer:
    """The largest step size tried at which descent was seen to stay within epsilon.

    The first trial is the step size suggested. The next ones are in proportion to the gap
    measured, or between one that suffices and one that does not, and at most the largest.
    If none suffices the smallest is returned, with its gap.
    """
    snapshots = workplace.options.snapshots
    enough: dict[float, float] = {}
    failed: dict[float, float] = {}
    fewest = _iterations(end, largest)
    for number in range(1, TRIALS + 1):
        iterations = max(fewest, _iterations(end, step_size))
        step_size = end / iterations
        schedule = Schedule(step_size, (), iterations, min(iterations, snapshots), None)
        compared = _compare(workplace, spectra.sampled(schedule), f"trial {number}: ")
        gap = np.inf if compared is None else float(compared[2].max())
        (enough if gap <= epsilon else failed)[step_size] = gap
        if NEARLY * epsilon <= gap <= epsilon or (enough and iterations == fewest):
            break
        if enough and failed:
            step_size = float(np.sqrt(max(enough) * min(failed)))
        else:
            step_size *= SAFELY * epsilon / gap if 0 < gap < np.inf else 0.5
    best = max(enough) if enough else min(failed)
    return Answer("measured", step_size=best, gap=(enough | failed)[best])


def _iterations(end: float, step_size: float) -> int:
    """Fewest steps, none of them longer, that end at a time."""
    return int(np.ceil(end / step_size * (1 - 1e-9)))


EXPERIMENT = Experiment(
    name="bounds",
    studies="what the theorems allow, and what is measured",
    question=(
        "How small must the step be for descent to stay within a given distance ε of its "
        "flow? Steps are those of plain descent on all examples, which the theorems are about. "
        "Four answers are set side by side: what is proven, what the same formula gives "
        "with measured constants, what is predicted, and what is measured by running it."
    ),
    options=Options,
    run=run,
)
