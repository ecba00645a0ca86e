"""The paper's distances predicted from the flow alone, without running descent.

    python -m experiments.main --experiment=predict --ratios=2,5,10,20

solves gradient flow and its first-order deviation once and tells the gap between
descent at any two step sizes: seconds on two CPU cores for the default linear network,
where the runs take minutes. On MNIST the gap between step sizes 0.001 and 0.00005 is
predicted to end near 7e-4, where the flow has travelled 2.55.
"""

import time
from typing import Any

import numpy as np

import gf_jax
from experiments import figures, harness, report, store
from experiments.configuration import Configuration

TIMES = 100  # at which the prediction is told


def run(config: Configuration) -> int:
    """Runs the experiment and writes its run directory.

    Raises:
      UsageError: on data, weights or an output directory that are not accepted.
    """
    workplace = harness.begin(config)
    study, started = workplace.study, time.perf_counter()
    assert config.step_size is not None
    times = np.arange(1, TIMES + 1) * (config.iterations * config.step_size / TIMES)
    deviation = harness.solve(
        "prediction",
        lambda tell: gf_jax.deviation(
            study.objective.loss, study.initial_params, times, progress=tell
        ),
    )
    prediction = store.Prediction(
        network_label=study.network_label,
        data_label=study.dataset.label,
        step_sizes=np.array(config.all_step_sizes),
        times=times,
        loss=deviation.flow.loss,
        distance_from_init=np.asarray(
            gf_jax.distance(deviation.flow.params, study.initial_params, stack_axes=1)
        ),
        to_flow=np.stack([deviation.gap(s, 0.0) for s in config.all_step_sizes], axis=1),
        to_base=np.stack(
            [deviation.gap(s, config.step_size) for s in config.all_step_sizes], axis=1
        ),
    )
    summary = summarise(prediction, deviation.flow.statistics, time.perf_counter() - started)
    store.write_prediction(workplace.directory, prediction)
    store.write_summary(workplace.directory, summary)
    figures.draw_prediction(prediction, workplace.directory)
    report.print_prediction(summary, workplace.console)
    harness.end(workplace)
    return 0


def summarise(
    prediction: store.Prediction, statistics: gf_jax.Statistics, seconds: float
) -> dict[str, Any]:
    """The numbers of the table: everything at the last time."""
    return {
        "network": prediction.network_label,
        "data": prediction.data_label,
        "time": float(prediction.times[-1]),
        "loss": float(prediction.loss[-1]),
        "distance_from_init": float(prediction.distance_from_init[-1]),
        "runs": [
            {
                "step_size": float(step_size),
                "predicted_to_flow": float(prediction.to_flow[-1, lane]),
                "predicted_gap": float(prediction.to_base[-1, lane]),
            }
            for lane, step_size in enumerate(prediction.step_sizes)
        ],
        "seconds": seconds,
        **statistics._asdict(),
    }
