"""Whether what was measured and what was predicted can both be right."""

import numpy as np

from gf_jax.comparison import FlowComparison
from gf_jax.flow.prediction import Prediction
from gf_jax.study.record import Run

CONTRADICTS = 3.0  # times what both are known to, together


def contradictions(run: Run, compared: FlowComparison, predicted: Prediction) -> list[str]:
    """Whether measured and predicted distances differ by far more than the errors of both.

    Runs and flow are programs that share f alone, and predictions are made of the flow's: so one
    of them is wrong then.
    """
    off = np.abs(compared.distance - predicted.to_flow)
    known = predicted.to_flow_error + compared.resolution
    with np.errstate(divide="ignore", invalid="ignore"):
        times = np.where(compared.measured & np.isfinite(known), off / known, 0.0)
    slot, lane = np.unravel_index(np.argmax(np.nan_to_num(times)), times.shape)
    if not times[slot, lane] > CONTRADICTS:
        return []
    return [
        f"Measured and predicted distances from the {run.method.flow_name} contradict each other: "
        f"at time {run.snapshot_times[slot]:.4g} the run with step size {run.step_sizes[lane]:g} "
        f"is measured at {compared.distance[slot, lane]:.3g} and predicted at "
        f"{predicted.to_flow[slot, lane]:.3g}, though both are said to be known to "
        f"{known[slot, lane]:.1g}. Trust neither before it is known why: the step may be too "
        "large for what is predicted, f or the optimizer less smooth than was found, or a kink "
        "may part them."
    ]
