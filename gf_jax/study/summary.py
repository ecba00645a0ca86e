"""What runs of descent beside their flow amount to: numbers, and a verdict in words."""

import dataclasses
from typing import Any

import numpy as np

from gf_jax.comparison import WELL_BELOW
from gf_jax.study.record import DOUBTFUL, Reference, Run

# How far from its flow, relative to how far it travelled, descent is said to be.
NEAR, IN_SIGHT = 0.01, 0.1


@np.errstate(over="ignore", divide="ignore", invalid="ignore")  # of lanes about to diverge
def summarise(run: Run) -> dict[str, Any]:
    """The numbers of the final table, one entry per lane.

    ``largest_gap`` is the largest distance between a run and the base run, and
    ``largest_relative_gap`` the largest ratio of that distance to the distance the
    base run has travelled from its start by then, each with the base iteration at
    which it occurs. Numbers that are not finite are None; ``diverged_at`` is the
    first base iteration at which the loss is not finite, None if there is none.
    """
    summary = {
        "network": run.network_label,
        "data": run.data_label,
        "step_size": run.step_size,
        **dataclasses.asdict(run.method),
        "iterations": int(run.iterations[-1]),
        "time": float(run.times[-1]),
        "runs": [_lane(run, lane) for lane in range(len(run.ratios))],
        "doubts": list(run.doubts),
    }
    return summary if run.reference is None else summary | {"flow": _flow(run, run.reference)}


def verdict(summary: dict[str, Any]) -> list[str]:
    """How far the base run stands from its flow, in sentences."""
    lines = ["Verdict: none, since there is no flow to compare with."]
    if "flow" in summary:
        lines = summary["flow"]["verdict"]
    return [*lines, *summary["doubts"]]


def divergences(summary: dict[str, Any]) -> list[str]:
    """One line per lane that diverged."""
    return [
        f"the run with step size {lane['step_size']:g} (ratio {lane['ratio']}) diverged: its loss "
        f"is not finite from base iteration {lane['diverged_at']} on"
        for lane in summary["runs"]
        if lane["diverged_at"] is not None
    ]


def _flow(run: Run, reference: Reference) -> dict[str, Any]:
    """The comparison with the flow at the last snapshot, and what it amounts to."""
    gaps = run.metrics.distance_to_base[np.isin(run.iterations, run.snapshot_iterations)]
    flow = {
        "time": float(run.snapshot_times[-1]),
        "loss": finite(reference.loss[-1]),
        "distance_from_init": finite(reference.distance_from_init[-1]),
        "error": finite(reference.flow_error[-1]),
        "order": finite(reference.order[-1]),
        "flow_evaluations": int(reference.flow_evaluations),
        "prediction_evaluations": int(reference.prediction_evaluations),
        "checking_evaluations": int(reference.checking_evaluations),
        "run_evaluations": int(run.iterations[-1]) * sum(run.ratios) + 1,
        **_predictions(run, reference, gaps),
        "runs": [
            {
                "ratio": int(ratio),
                "distance_to_flow": finite(reference.distance_to_flow[-1, lane]),
                "measured": bool(reference.measured[-1, lane]),
                "resolution": finite(reference.resolution[-1, lane]),
                "smallest_measurable": finite(WELL_BELOW * reference.resolution[-1, lane]),
                "predicted_to_flow": finite(reference.predicted_to_flow[-1, lane]),
                "loss_difference": _at_end(reference.run_loss, lane, reference.loss),
                "loss_difference_error": _at_end(reference.run_loss_error, lane),
                "predicted_loss_difference": _at_end(
                    reference.predicted_loss, lane, reference.loss
                ),
                "gap": finite(gaps[-1, lane]),
                "predicted_gap": finite(reference.predicted_to_base[-1, lane]),
            }
            for lane, ratio in enumerate(run.ratios)
        ],
    }
    return flow | {"verdict": _verdict(run, flow)}


def but_for(flow: dict[str, Any]) -> str:
    """Which of the measured gaps are not counted, if there are any."""
    if not flow["doubtful_predictions"]:
        return ""
    return (
        f", but for {flow['doubtful_predictions']:,} of {flow['measured_gaps']:,} of which the "
        "prediction says itself that it is off by more than ten percent"
    )


def _at_end(values: np.ndarray | None, lane: int, less: np.ndarray | None = None) -> float | None:
    """A number of a lane at the last snapshot; None where it is not known."""
    if values is None:
        return None
    return finite(values[-1, lane] - (0.0 if less is None else less[-1]))


def _predictions(run: Run, reference: Reference, gaps: np.ndarray) -> dict[str, Any]:
    """Largest relative error of the predicted gaps, over all ratios and snapshots.

    Those whose own error says that they are no good are counted, and left out.
    """
    predicted = reference.predicted_to_base
    with np.errstate(divide="ignore", invalid="ignore"):
        errors = np.abs(predicted / gaps - 1)
        # A gap carries the rounding of two runs: all of the resolution that is not the flow's.
        rounding = np.sqrt(
            np.maximum(reference.resolution**2 - reference.flow_error[:, None] ** 2, 0)
        )
        measured = gaps >= WELL_BELOW * (rounding + rounding.max(axis=-1, keepdims=True))
        measured &= np.isfinite(errors)
        own = (
            np.zeros_like(gaps) if reference.predicted_error is None else reference.predicted_error
        )
        own = np.maximum(own, own[:, :1])  # a gap is known as well as the worse of its two runs
        doubtful = measured & (own > DOUBTFUL * predicted)
    counted = errors[:, 1:][(measured & ~doubtful)[:, 1:]]
    return {
        "largest_prediction_error": finite(counted.max(initial=-np.inf)),
        "measured_gaps": int(measured[:, 1:].sum()),
        "doubtful_predictions": int(doubtful[:, 1:].sum()),
    }


def _verdict(run: Run, flow: dict[str, Any]) -> list[str]:
    """How far the base run stands from its flow, in words and numbers."""
    base, lines = flow["runs"][0], []
    travelled, loss = flow["distance_from_init"], run.metrics.loss[-1, 0]
    known = base["measured"] or base["smallest_measurable"] is not None
    followed = known and base["distance_to_flow"] is not None and flow["loss"] is not None
    if not followed or not travelled or not np.isfinite(loss):
        return [
            "Verdict: none, since the run with the largest step size diverged, or the flow could "
            "not be followed."
        ]
    share = base["distance_to_flow"] / travelled
    if base["measured"]:
        distance = (
            f"{base['distance_to_flow']:.3g} (the flow is known to {text(flow['error'], '.1g')}), "
            f"{share:.2g} of the distance {travelled:.4g} that the flow has travelled"
        )
    else:
        distance = (
            f"less than {base['smallest_measurable']:.1g}, which is as well as the flow is known"
        )
    if run.method.limit:
        lines.append(f"As the step size goes to zero, steps follow {run.method.limit}.")
    lines.append(
        f"Verdict: descent with {steps(run)} {nearness(share)} its {run.method.flow_name}. "
        f"At time {flow['time']:g} it stands apart by {distance}. Its loss is {loss:.6g}, that of "
        f"the flow {flow['loss']:.6g}: they {_difference(float(loss), flow['loss'], base)}."
    )
    if flow["largest_prediction_error"] is not None and flow["prediction_evaluations"]:
        factor = flow["run_evaluations"] / flow["prediction_evaluations"]
        fewer = f": {factor:,.0f} times fewer" if factor >= 2 else ""
        lines.append(
            f"Predicted gaps are within {flow['largest_prediction_error']:.2%} of the measured "
            f"ones, over all ratios and snapshots at which these are measured{but_for(flow)}, for "
            f"{flow['prediction_evaluations']:,} gradient-sized evaluations where the runs took "
            f"{flow['run_evaluations']:,}{fewer}. "
            f"The flow took {flow['flow_evaluations']:,}, and knowing the errors of both "
            f"{flow['checking_evaluations']:,} more."
        )
    return lines + unpredicted(run, flow)


def _difference(loss: float, of_flow: float, base: dict[str, Any]) -> str:
    """How two losses differ; of one that is zero, or rounded to it, nothing is a share."""
    known, error = base["loss_difference"], base["loss_difference_error"]
    if known is not None and error is not None:
        if abs(known) < WELL_BELOW * error:
            return f"differ by less than {WELL_BELOW * error:.1g}"
        share = f", a share of {abs(known / of_flow):.1g}" if of_flow else ""
        predicted = base["predicted_loss_difference"]
        foretold = "" if predicted is None else f", where {abs(predicted):.3g} is predicted"
        return f"differ by {abs(known):.3g}{share}{foretold}"
    if loss == of_flow:
        return "are equal"
    if of_flow == 0:
        return f"differ by {abs(loss):.1g}"
    return f"differ by a share of {abs(loss - of_flow) / abs(of_flow):.1g}"


def steps(run: Run) -> str:
    """What a verdict says of the steps of the base run."""
    words = run.method.words
    return f"step size {run.step_size:g}{words}," if words else f"step size {run.step_size:g}"


def unpredicted(run: Run, flow: dict[str, Any]) -> list[str]:
    """Why no gaps are predicted, where the theory has no prediction."""
    if flow["prediction_evaluations"] or not run.method.words or run.doubts:
        return []
    return [
        "No gaps are predicted: where the loss has kinks, the theory of the first order does not "
        "cover batches, momentum and other optimisers."
    ]


def nearness(share: float) -> str:
    """What descent does, at a distance from its flow that is this share of the way travelled."""
    return "stays near" if share < NEAR else "stays in sight of" if share < IN_SIGHT else "leaves"


def run_name(ratio: int) -> str:
    """What figures and tables call a run."""
    return "η₀" if ratio == 1 else f"η₀/{ratio}"


def _lane(run: Run, lane: int) -> dict[str, Any]:
    metrics = run.metrics
    gaps, travelled = metrics.distance_to_base[:, lane], metrics.distance_from_init[:, 0]
    # At the start both are zero: no gap over no distance is no gap.
    relative = gaps / np.where(travelled > 0, travelled, 1)
    return {
        "ratio": int(run.ratios[lane]),
        "step_size": run.step_size / run.ratios[lane],
        "final_loss": finite(metrics.loss[-1, lane]),
        "final_accuracy": _accuracy(run, lane),
        "final_distance_from_init": finite(metrics.distance_from_init[-1, lane]),
        "final_distance_to_base": finite(gaps[-1]),
        "final_gradient_norm": finite(metrics.gradient_norm[-1, lane]),
        "largest_gap": _largest(gaps, run.iterations),
        "largest_relative_gap": _largest(relative, run.iterations),
        "diverged_at": run.diverged_at(lane),
    }


def _accuracy(run: Run, lane: int) -> float | None:
    """At the last snapshot, if it is known of any."""
    if run.accuracy is None or not len(run.accuracy):
        return None
    return finite(run.accuracy[-1, lane])


def _largest(values: np.ndarray, iterations: np.ndarray) -> dict[str, Any]:
    """The largest finite value and where it stands."""
    finite = np.isfinite(values)
    if not finite.any():
        return {"value": None, "iteration": None}
    where = int(np.where(finite, values, -np.inf).argmax())
    return {"value": float(values[where]), "iteration": int(iterations[where])}


def finite(value: float) -> float | None:
    """The number as JSON has it: None if it is not finite."""
    return float(value) if np.isfinite(value) else None


def predicted(flow: dict[str, Any], value: float | None) -> str:
    """A prediction; a dash where none was made."""
    return text(value, ".3e") if flow["prediction_evaluations"] else "-"


def text(value: float | None, form: str) -> str:
    """The number in a format; None is a number that is not finite."""
    return "nan" if value is None else format(value, form)
