"""The paper's distances predicted from the flow alone, without running descent.

    python -m experiments.main --experiment=predict --ratios=2,5,10,20

solves gradient flow and its first-order deviation once and tells the gap between
descent at any two step sizes: ten seconds on two CPU cores for the default linear
network, where the runs take minutes. On MNIST the gap between step sizes 0.001 and
0.00005 is predicted to end near 7e-4, where the flow has travelled 2.55. Networks with
kinks take a tenth of the gradient evaluations of the runs, see ``gf_jax.predict``.
"""

import time
from typing import Any

import numpy as np

import gf_jax
from experiments.cli.configuration import Configuration
from experiments.output import figures, report
from experiments.runs import harness, progress, store
from experiments.studies import records


def run(config: Configuration) -> int:
    """Runs the experiment and writes its run directory.

    Raises:
      UsageError: on data, weights or an output directory that are not accepted.
    """
    workplace = harness.begin(config)
    study, started = workplace.study, time.perf_counter()
    step_sizes = np.array(config.all_step_sizes)
    prediction = progress.solve(
        "prediction",
        lambda tell: gf_jax.predict(
            study.objective.loss,
            study.initial_params,
            config.schedule.clock(config.method.time_scale).times(
                config.schedule.snapshot_iterations
            ),
            step_sizes,
            momentum=config.method.optimizer,
            progress=tell,
        ),
    )
    flow = prediction.flow
    saved = records.Prediction(
        network_label=study.network_label,
        data_label=study.dataset.label,
        step_sizes=prediction.step_sizes,
        times=flow.times,
        loss=flow.loss,
        distance_from_init=harness.distance_from_init(workplace, flow.params),
        to_flow=prediction.to_flow,
        to_base=prediction.to_base,
        momentum=config.method.momentum,
    )
    summary = summarise(saved, prediction, time.perf_counter() - started)
    with harness.results(workplace):
        store.write_record(workplace.directory, "prediction", saved)
    figure = harness.draw(workplace, lambda: figures.draw_prediction(saved, workplace.directory))
    report.print_prediction(summary, workplace.console)
    workplace.say(summary["verdict"])
    harness.end(workplace, summary, figure)
    return 0


def summarise(
    saved: records.Prediction, prediction: gf_jax.Prediction, seconds: float
) -> dict[str, Any]:
    """The numbers of the table: everything at the last time."""
    return {
        "network": saved.network_label,
        "data": saved.data_label,
        "verdict": _verdict(saved),
        "time": float(saved.times[-1]),
        "loss": report.finite(saved.loss[-1]),
        "distance_from_init": report.finite(saved.distance_from_init[-1]),
        "runs": [
            {
                "step_size": float(step_size),
                "predicted_to_flow": report.finite(saved.to_flow[-1, lane]),
                "predicted_gap": report.finite(saved.to_base[-1, lane]),
            }
            for lane, step_size in enumerate(saved.step_sizes)
        ],
        "error": report.finite(prediction.error),
        "kinks": prediction.kinks,
        "seconds": seconds,
        **prediction.flow.statistics._asdict(),
    }


def _verdict(saved: records.Prediction) -> str:
    """How far descent with the largest step size is predicted to stand from its flow."""
    gap, travelled = saved.to_flow[-1, 0], saved.distance_from_init[-1]
    if not (np.isfinite(gap) and travelled > 0):
        return "Verdict: none, since the flow could not be followed."
    share = gap / travelled
    return (
        f"Verdict: as predicted, descent with step size {saved.step_sizes[0]:g} "
        f"{report.nearness(share)} its gradient flow. At time {saved.times[-1]:g} it stands apart "
        f"by {gap:.3g}, {share:.2g} of the distance {travelled:.4g} that the flow has travelled."
    )
