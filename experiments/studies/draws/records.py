"""What many runs with every step size amount to: the record, its summary and verdict."""

from typing import Any

import numpy as np

import gf_jax
from experiments.output import report
from gf_jax.records import record

SIGMAS = 3.0  # standard errors by which what is measured and what is predicted may differ
NAMES = ("spread", "mean_to_flow", "loss_difference")


@record
class Draws:
    """Many runs with every step size beside their flow.

    Attributes:
      network_label, data_label: what is trained on what.
      draws: number of runs with every step size.
      batch_size, svag: of the steps.
      step_sizes: of the runs, the largest first.
      times: of all numbers below.
      flow_loss, distance_from_init: of the flow.
      measured: what the runs amount to.
      predicted: the same without them; None if nothing is predicted.
    """

    network_label: str
    data_label: str
    draws: int
    batch_size: int
    svag: int
    step_sizes: np.ndarray
    times: np.ndarray
    flow_loss: np.ndarray
    distance_from_init: np.ndarray
    measured: gf_jax.Ensemble
    predicted: gf_jax.Ensemble | None


def summarise(saved: Draws) -> dict[str, Any]:
    """The numbers of the table, at the last time, and a verdict."""
    sides = {"measured": saved.measured, "predicted": saved.predicted}
    ensembles = {name: each for name, each in sides.items() if each is not None}
    runs = [
        {"step_size": float(step_size)}
        | {
            f"{side}_{name}": _numbers(getattr(ensemble, name), lane)
            for side, ensemble in ensembles.items()
            for name in NAMES
        }
        for lane, step_size in enumerate(saved.step_sizes)
    ]
    orders = {
        name: [
            report.finite(each[-1])
            for each in getattr(saved.measured, name).order(saved.step_sizes)
        ]
        for name in NAMES
    }
    summary = {
        "network": saved.network_label,
        "data": saved.data_label,
        "draws": saved.draws,
        "batch_size": saved.batch_size,
        "svag": saved.svag,
        "time": float(saved.times[-1]),
        "loss": report.finite(saved.flow_loss[-1]),
        "distance_from_init": report.finite(saved.distance_from_init[-1]),
        "diverged": bool(not np.isfinite(saved.measured.loss_difference.value).all()),
        "runs": runs,
        "orders": orders,
        "beyond": _beyond(saved),
    }
    return summary | {"verdict": _verdict(summary, len(saved.times) * len(saved.step_sizes))}


def _numbers(estimate: gf_jax.Estimate, lane: int) -> dict[str, float | None]:
    """Of a step size at the last time."""
    return {name: report.finite(values[-1, lane]) for name, values in vars(estimate).items()}


def _beyond(saved: Draws) -> dict[str, int] | None:
    """At how many times and step sizes the prediction is off by more than both sides' errors."""
    if saved.predicted is None:
        return None
    counts = {}
    for name in NAMES:
        found, told = getattr(saved.measured, name), getattr(saved.predicted, name)
        noise = np.hypot(found.standard_error, told.standard_error)
        allowed = SIGMAS * noise + found.error + told.error
        counts[name] = int((np.abs(found.value - told.value) > allowed).sum())
    return counts


def _verdict(summary: dict[str, Any], count: int) -> list[str]:
    """How far runs and their mean stand from the flow, and whether that was predicted."""
    first, last = summary["runs"][0], summary["orders"]
    spread, mean = (first[f"measured_{name}"] for name in ("spread", "mean_to_flow"))
    travelled = summary["distance_from_init"]
    if spread["value"] is None or mean["value"] is None or not travelled:
        return ["Verdict: none, since runs with the largest step size diverged."]
    known = mean["value"] > SIGMAS * mean["standard_error"] + mean["error"]
    most = mean["value"] + SIGMAS * mean["standard_error"] + mean["error"]
    distance = f"by {mean['value']:.3g}" if known else f"by less than {most:.2g}"
    share = spread["value"] / travelled
    lines = [
        f"Verdict: in batches of {summary['batch_size']} with step size {first['step_size']:g}, a "
        f"run stands from the mean run by {spread['value']:.3g} at time {summary['time']:g}, "
        f"{share:.2g} of the distance {travelled:.4g} that the flow has travelled, and the mean "
        f"run from the flow {distance}."
    ]
    powers = [
        f"{label} {last[name][0]:.2f} ± {last[name][1]:.2f}"
        for name, label in zip(NAMES[:2], ("of the spread", "of the distance"), strict=True)
        if last[name][0] is not None
    ]
    if powers:
        expected = "" if summary["beyond"] is None else "; 0.5 and 1 are expected"
        lines.append(f"As powers of the step size: {', '.join(powers)}{expected}.")
    if summary["beyond"] is not None:
        off = sum(summary["beyond"].values())
        lines.append(
            f"Predicted from the flow alone: of {len(NAMES) * count} numbers "
            + ("all are" if off == 0 else f"{len(NAMES) * count - off} are")
            + f" as measured, within {SIGMAS:g} standard errors and the error that was told."
        )
    return lines
