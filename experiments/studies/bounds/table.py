"""What the experiment shows in numbers."""

from typing import Any

import numpy as np
from rich.console import Console

from experiments.output import report
from experiments.studies import spectra
from experiments.studies.bounds.records import Answer, BoundsRun

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
measured: a run and its largest gap. All of it is of plain descent on all
examples: of momentum, batches and other optimisers the theorems say nothing."""

KINKS = """\
The loss has kinks: its gradient is not Lipschitz continuous, so that the
a-priori theorem does not apply, and the Hessian is that of the smooth pieces.
What is printed for both theorems is what their formulas give, not a bound."""


def summarise(saved: BoundsRun, answers: tuple[Answer, ...]) -> dict[str, Any]:
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


def show(summary: dict[str, Any], console: Console) -> None:
    """Prints both tables."""
    text, points = report.text, summary["points"]
    shown = np.unique(np.linspace(1, len(points) - 1, ROWS).round().astype(int))
    report.show_table(
        console,
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
        console,
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
        console.print(KINKS, highlight=False)
