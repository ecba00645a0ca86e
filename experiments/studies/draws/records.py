"""What many runs with every step size amount to: the record, its summary and verdict."""

from typing import Any

import numpy as np

import gf_jax
from experiments.output import report
from gf_jax.descent.batches import REPLACEMENT
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
      order: of the batches.
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
    order: str
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
        "order": saved.order,
        "time": float(saved.times[-1]),
        "loss": report.finite(saved.flow_loss[-1]),
        "distance_from_init": report.finite(saved.distance_from_init[-1]),
        "diverged": [
            float(step_size)
            for step_size, losses in zip(
                saved.step_sizes, saved.measured.loss_difference.value.T, strict=True
            )
            if not np.isfinite(losses).all()
        ],
        "runs": runs,
        "orders": orders,
        "compared": _compared(saved),
    }
    return summary | {"verdict": _verdict(summary)}


def _numbers(estimate: gf_jax.Estimate, lane: int) -> dict[str, float | None]:
    """Of a step size at the last time."""
    return {name: report.finite(values[-1, lane]) for name, values in vars(estimate).items()}


def _compared(saved: Draws) -> dict[str, Any] | None:
    """How many numbers are known on both sides, and how many of them differ by more than they may.

    With it goes how well they are predicted: the median of all errors told over the numbers.
    """
    if saved.predicted is None:
        return None
    count, beyond, shares = 0, 0, []
    for name in NAMES:
        found, told = getattr(saved.measured, name), getattr(saved.predicted, name)
        noise = np.hypot(found.standard_error, told.standard_error)
        allowed = SIGMAS * noise + found.error + told.error
        off = np.abs(found.value - told.value)
        known = np.isfinite(off) & np.isfinite(allowed)
        count += int(known.sum())
        beyond += int((off[known] > allowed[known]).sum())
        shares += (told.within(SIGMAS) / np.abs(told.value)).ravel().tolist()
    known_shares = [share for share in shares if np.isfinite(share)]
    median = float(np.median(known_shares)) if known_shares else None
    return {"numbers": count, "beyond": beyond, "median_error": median}


def _verdict(summary: dict[str, Any]) -> list[str]:
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
    shuffled = "" if summary["order"] == REPLACEMENT else f"{summary['order']} "
    lines = [
        f"Verdict: in {shuffled}batches of {summary['batch_size']} with step size "
        f"{first['step_size']:g}, a run stands from the mean run by {spread['value']:.3g} at time "
        f"{summary['time']:g}, {share:.2g} of the distance {travelled:.4g} that the flow has "
        f"travelled, and the mean run from the flow {distance}."
    ]
    powers = [
        f"{label} {last[name][0]:.2f} ± {last[name][1]:.2f}"
        for name, label in zip(NAMES[:2], ("of the spread", "of the distance"), strict=True)
        if last[name][0] is not None
    ]
    if powers:
        white = summary["compared"] is not None and summary["order"] == REPLACEMENT
        expected = "; 0.5 and 1 are expected" if white else ""
        lines.append(f"As powers of the step size: {', '.join(powers)}{expected}.")
    compared = summary["compared"]
    if compared is not None and compared["numbers"]:
        count, beyond = compared["numbers"], compared["beyond"]
        lines.append(
            f"Predicted from the flow alone: of {count} numbers "
            + ("all are" if beyond == 0 else f"{count - beyond} are")
            + f" as measured, within {SIGMAS:g} standard errors and the error that was told; in "
            f"the median that is {report.text(compared['median_error'], '.2g')} of the number."
        )
    return lines
