"""Which step size the theory allows, beside what is predicted and what is measured.

    python -m experiments.main --experiment=bounds --epsilon=0.001

asks how small the step must be for descent to stay within epsilon of its flow. It runs descent
and the flow, finds the Hessian's extremal eigenvalues along both, evaluates the fundamental
theorem on them (a bound on the gap of the run that was made), and answers the question four
times: by the a-priori theorem with constants that are proven for the tube of width epsilon
around the flow (where they are known, which is for linear networks), by the same formula with
constants measured on the flow, by the prediction, and by a run that is compared with the flow.
Two minutes on two CPU cores for the linear network on MNIST, where at time 10 the gap is
7.6e-4, as predicted, and the fundamental theorem gives 40 times that; the a-priori theorem
allows 9e-8 with constants measured on the flow where 7.5e-4 suffices.
"""

from typing import Any

import jax
import numpy as np

import gf_jax
from experiments.cli.configuration import EXIT_DIVERGED, EXIT_INTERRUPTED, Configuration
from experiments.output import figures, report
from experiments.runs import harness, interruption, progress, store
from experiments.runs.harness import NetworkWorkplace
from experiments.studies import records, spectra
from gf_jax.comparison import precise_distance
from gf_jax.descent.schedule import Schedule
from gf_jax.problems.networks import Params

KINK_BUDGET = 4  # of a flow with kinks, in gradient evaluations per step of descent
TRIALS = 3  # runs at most, to find a step size that suffices
SAFELY = 0.98  # of the step size that a trial suggests
NEARLY = 0.5  # of the accuracy: a gap above that needs no further trial
ROWS = 9

GAP_LEGEND = """\
measured: distance of descent from its flow. predicted: without running descent.
bound: the fundamental theorem, evaluated on measured defects and on λ_min at
samples of descent and flow. λ_min: the smaller one of the two."""

ANSWER_LEGEND = """\
theorem: the a-priori theorem, ε / (β γ integral). β and γ are the smoothness
and the Lipschitz constant of the loss, integral is the largest ∫ exp(∫ m) over
time, with m ≥ -λ_min; all are proven for the tube of width ε around the flow,
at samples in time. theorem, sampled: the same formula with constants measured
on the flow, which is no proof. growth: exp(∫ max(m, 0)). prediction: the step
size whose predicted gap is ε, or half the edge of stability if that is less.
measured: a run and its largest gap."""

KINKS = """\
The loss has kinks: its gradient is not Lipschitz continuous, so that the
a-priori theorem does not apply, and the Hessian is that of the smooth pieces.
What is printed for both theorems is what their formulas give, not a bound."""


def run(config: Configuration) -> int:
    """Runs the experiment and writes its run directory.

    Returns:
      The exit status: 0, or 3 if descent diverged, or 130 if it was interrupted.

    Raises:
      UsageError: on data, weights or an output directory that are not accepted.
    """
    workplace = harness.begin(config)
    schedule = spectra.sampled(config.schedule)
    try:
        saved = _base(workplace, schedule)
        if saved is None:
            workplace.say(
                f"the run with step size {schedule.step_size:g} diverged; try a smaller one"
            )
            return EXIT_DIVERGED
        with harness.results(workplace):
            store.write_record(workplace.directory, "bounds", saved)
        workplace.say("the gap and its bound are written; next the step size that suffices")
        answers = _answers(workplace, saved)
    except KeyboardInterrupt:
        workplace.say(f"interrupted; what is complete lies in {workplace.directory}")
        return EXIT_INTERRUPTED
    summary = summarise(saved, answers)
    figure = harness.draw(
        workplace, lambda: figures.draw_bounds(saved, answers, workplace.directory)
    )
    _print(summary, workplace)
    harness.end(workplace, summary, figure)
    return 0


def _base(workplace: NetworkWorkplace, schedule: Schedule) -> records.BoundsRun | None:
    """The run that was asked for, its gap, and everything that bounds it; None if it diverged."""
    config, study = workplace.config, workplace.study
    step_size, times = schedule.step_size, spectra.times_of(schedule)
    assert config.epsilon is not None
    compared = _compare(workplace, schedule)
    if compared is None:
        return None
    descent, flow, gap = compared
    predicted, suggested = _predict(workplace, times, step_size, gap)
    # Back along descent, so that neighbours in the stack are neighbours in weight space.
    points = jax.tree.map(lambda a, b: np.concatenate([a, b[::-1]]), flow.params, descent)
    spectrum = spectra.measure(workplace, "flow and descent", points)
    at_flow = records.Spectrum(*(values[: len(times)] for values in spectrum))
    at_descent = spectrum.lambda_min[len(times) :][::-1]
    defects = interruption.call(
        lambda: gf_jax.theory.defects(study.objective.loss, descent, step_size)
    )
    iterations = np.array([0, *schedule.snapshot_iterations])
    lambda_min = np.minimum(at_flow.lambda_min, at_descent)
    tube = None
    norms = spectra.norm_bound(study, flow.params, config.epsilon)
    if norms is not None:
        beta = norms.max()
        tube = records.Tube(
            lambda_min=spectra.lower_bound(study, flow.params, config.epsilon).sharpened,
            beta=float(beta),
            gamma=float(at_flow.gradient_norm.max() + beta * config.epsilon),
        )
    return records.BoundsRun(
        network_label=study.network_label,
        data_label=study.dataset.label,
        epsilon=config.epsilon,
        step_size=step_size,
        kinks=not study.network.smooth,
        times=times,
        loss=flow.loss,
        travelled=harness.distance_from_init(workplace, flow.params),
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
    workplace: NetworkWorkplace, schedule: Schedule
) -> tuple[Params, gf_jax.Flow, np.ndarray] | None:
    """Descent and flow at the start and the snapshots, and their distance; None if it diverges."""
    assert workplace.config.arithmetic is not None
    outcome = harness.descend(workplace, schedule, workplace.config.arithmetic)
    if outcome is None or outcome.interrupted:
        raise KeyboardInterrupt
    if not np.isfinite(outcome.trajectory.metrics.loss).all():
        return None
    budget = KINK_BUDGET * schedule.iterations
    flow = spectra.follow(workplace, spectra.times_of(schedule), budget)
    snapshots = outcome.trajectory.snapshots
    descent = spectra.with_start(workplace.study.initial_params, snapshots)
    return descent, flow, precise_distance(descent, flow.params, 1)


def _predict(
    workplace: NetworkWorkplace, times: np.ndarray, step_size: float, gap: np.ndarray
) -> tuple[np.ndarray, float]:
    """The gap as predicted at all times but the first, and the step size for the accuracy.

    That is the one whose predicted gap is at most epsilon, or the edge of stability at
    the start if that is less; with kinks it is taken in proportion to the gap measured.
    """
    f, start = workplace.study.objective.loss, workplace.study.initial_params
    epsilon = workplace.config.epsilon
    assert epsilon is not None
    if not workplace.study.network.smooth:
        prediction = progress.solve(
            "prediction",
            lambda tell: gf_jax.predict(f, start, times[1:], np.array([step_size]), progress=tell),
        )
        return prediction.to_flow[:, 0], float(step_size * epsilon / gap.max())
    deviation = progress.solve(
        "prediction", lambda tell: gf_jax.deviation(f, start, times[1:], progress=tell)
    )
    low, high = 0.0, float(times[-1])
    for _ in range(60):
        middle = (low + high) / 2
        fits = deviation.gap(middle).max() <= epsilon
        low, high = (middle, high) if fits else (low, middle)
    return deviation.gap(step_size), low


def _answers(workplace: NetworkWorkplace, saved: records.BoundsRun) -> tuple[records.Answer, ...]:
    """The step sizes that keep descent within epsilon, by theorem, prediction and measurement."""
    spectrum, epsilon, times = saved.spectrum, saved.epsilon, saved.times
    answers = []
    if saved.tube is not None:
        proven = gf_jax.theory.allowed_step_size(
            epsilon, times, saved.tube.lambda_min, beta=saved.tube.beta, gamma=saved.tube.gamma
        )
        answers.append(records.Answer("theorem", proven.step_size, proven))
    sampled = gf_jax.theory.allowed_step_size(
        epsilon,
        times,
        spectrum.lambda_min,
        beta=float(np.maximum(spectrum.lambda_max, -spectrum.lambda_min).max()),
        gamma=float(spectrum.gradient_norm.max()),
    )
    answers.append(records.Answer("theorem, sampled", sampled.step_size, sampled))
    edge = 2 / float(spectrum.lambda_max.max())
    largest = min(edge / 2, times[-1])
    suggested = min(saved.suggested, largest)
    answers.append(records.Answer("prediction", step_size=suggested))
    return (*answers, _measured(workplace, suggested, epsilon, times[-1], largest))


def _measured(
    workplace: NetworkWorkplace, step_size: float, epsilon: float, end: float, largest: float
) -> records.Answer:
    """The largest step size tried at which descent was seen to stay within epsilon.

    The first trial is the step size suggested. The next ones are in proportion to the gap
    measured, or between one that suffices and one that does not, and at most the largest.
    If none suffices the smallest is returned, with its gap.
    """
    snapshots = workplace.config.snapshots or 1
    enough: dict[float, float] = {}
    failed: dict[float, float] = {}
    fewest = _iterations(end, largest)
    for _ in range(TRIALS):
        iterations = max(fewest, _iterations(end, step_size))
        step_size = end / iterations
        schedule = Schedule(step_size, (), iterations, min(iterations, snapshots), None)
        compared = _compare(workplace, spectra.sampled(schedule))
        gap = np.inf if compared is None else float(compared[2].max())
        (enough if gap <= epsilon else failed)[step_size] = gap
        if NEARLY * epsilon <= gap <= epsilon or (enough and iterations == fewest):
            break
        if enough and failed:
            step_size = float(np.sqrt(max(enough) * min(failed)))
        else:
            step_size *= SAFELY * epsilon / gap if 0 < gap < np.inf else 0.5
    best = max(enough) if enough else min(failed)
    return records.Answer("measured", step_size=best, gap=(enough | failed)[best])


def _iterations(end: float, step_size: float) -> int:
    """Fewest steps, none of them longer, that end at a time."""
    return int(np.ceil(end / step_size * (1 - 1e-9)))


def summarise(saved: records.BoundsRun, answers: tuple[records.Answer, ...]) -> dict[str, Any]:
    """The numbers of both tables, and a verdict."""
    spectrum, measured = saved.spectrum, answers[-1]
    factor = _factor(saved.bound[-1], saved.gap[-1])
    growth = float(np.exp(spectra.growth_integral(saved.times, spectrum.lambda_min)[-1]))
    holds = bool((saved.bound >= saved.gap - saved.flow_error).all())
    words = (
        "stays within" if measured.gap is not None and measured.gap <= saved.epsilon else "leaves"
    )
    verdict = [
        f"Verdict: at time {saved.times[-1]:g} descent with step size {saved.step_size:g} stands "
        f"{saved.gap[-1]:.3g} from its flow (known to {saved.flow_error[-1]:.1g}), predicted were "
        f"{saved.predicted[-1]:.3g}. The fundamental theorem on measured defects and λ_min gives "
        f"{saved.bound[-1]:.3g}, {factor:,.3g} times the gap"
        + (". It holds at all samples." if holds else "; it does NOT hold at all samples."),
        f"With λ_min between {spectrum.lambda_min.min():.3g} and {spectrum.lambda_min.max():.3g} a "
        f"gap grows by a factor of {growth:.3g} at most.",
        f"For an accuracy of {saved.epsilon:g}: descent with step size {measured.step_size:.3g} "
        f"{words} it, measured: its largest gap is {measured.gap:.3g}.",
    ]
    return {
        "network": saved.network_label,
        "data": saved.data_label,
        "epsilon": saved.epsilon,
        "step_size": saved.step_size,
        "time": float(saved.times[-1]),
        "kinks": saved.kinks,
        "lambda_min": [float(spectrum.lambda_min.min()), float(spectrum.lambda_min.max())],
        "lambda_max": [float(spectrum.lambda_max.min()), float(spectrum.lambda_max.max())],
        "lower_bound": [
            report.finite(spectrum.sharpened.min()),
            report.finite(spectrum.sharpened.max()),
        ],
        "growth": growth,
        "gap": report.finite(saved.gap[-1]),
        "predicted_gap": report.finite(saved.predicted[-1]),
        "bound": report.finite(saved.bound[-1]),
        "factor": report.finite(factor),
        "holds": holds,
        "answers": [
            {"by": answer.by, "step_size": report.finite(answer.step_size)}
            | ({} if answer.gap is None else {"measured_gap": report.finite(answer.gap)})
            | (
                {}
                if answer.allowed is None
                else {k: report.finite(v) for k, v in answer.allowed._asdict().items()}
            )
            for answer in answers
        ],
        "verdict": verdict,
        "points": [
            {
                "time": float(saved.times[at]),
                "gap": report.finite(saved.gap[at]),
                "predicted": report.finite(saved.predicted[at]),
                "bound": report.finite(saved.bound[at]),
                "factor": report.finite(_factor(saved.bound[at], saved.gap[at])),
                "lambda_min": float(min(spectrum.lambda_min[at], saved.descent_lambda_min[at])),
            }
            for at in range(len(saved.times))
        ],
    }


def _factor(bound: float, gap: float) -> float:
    return float(bound / gap) if gap > 0 else np.nan


def _print(summary: dict[str, Any], workplace: NetworkWorkplace) -> None:
    text, points = report.text, summary["points"]
    shown = np.unique(np.linspace(1, len(points) - 1, ROWS).round().astype(int))
    report.show_table(
        workplace.console,
        f"{summary['network']} on {summary['data']}\n"
        f"gap between descent with step size {summary['step_size']:g} and its flow",
        ("time", "measured", "predicted", "bound", "bound / gap", "λ_min"),
        [
            (
                f"{point['time']:.4g}",
                *(text(point[name], ".3e") for name in ("gap", "predicted", "bound")),
                text(point["factor"], ",.3g"),
                f"{point['lambda_min']:.3g}",
            )
            for point in (points[at] for at in shown)
        ],
        legend=GAP_LEGEND,
    )
    report.show_table(
        workplace.console,
        f"Step size for an accuracy of {summary['epsilon']:g} up to time {summary['time']:g}",
        ("by", "step size", "β", "γ", "integral", "growth", "gap"),
        [
            (
                answer["by"],
                text(answer["step_size"], ".3e"),
                *(
                    text(answer[name], ".3g") if name in answer else ""
                    for name in ("beta", "gamma", "integral", "growth", "measured_gap")
                ),
            )
            for answer in summary["answers"]
        ],
        legend=ANSWER_LEGEND,
        left=1,
    )
    if summary["kinks"]:
        workplace.console.print(KINKS, highlight=False)
    if spectra.bound_of(workplace.study) is None:
        workplace.say(spectra.uncovered(summary["network"]))
    for line in summary["verdict"]:
        workplace.say(line)
