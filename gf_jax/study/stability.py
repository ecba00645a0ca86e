"""Whether runs were past the edge of stability, as their losses tell it."""

import numpy as np

from gf_jax.study.record import Run

ROUNDING = 64.0  # of a loss, in units of its last place


def past_edge(run: Run) -> list[str]:
    """A sentence on the runs of plain descent on a smooth loss that were past their edge.

    Where a step of size s along −g raises the loss, Taylor's formula f(θ − s g) = f(θ) − s ‖g‖² +
    ½ s² gᵀ∇²f g, with the Hessian at some point of the step, says that the curvature along g was
    above 2 / s there. So what is told is certain; a run may be past its edge before that.
    """
    loss = run.metrics.loss
    with np.errstate(invalid="ignore", over="ignore"):  # of lanes that diverged
        rises = np.diff(loss, axis=0) > ROUNDING * np.finfo(loss.dtype).eps * np.abs(loss[:-1])
    past = rises.any(axis=0) & np.isfinite(loss[-1])
    if not past.any():
        return []
    first = run.times[1:][rises[:, past.argmax()]][0]
    return [
        f"With step size {run.step_sizes[past.argmax()]:g} the loss rises at time {first:g}: there "
        "the step size is past the edge of stability, 2 over the curvature, where descent "
        "oscillates about another path than gradient flow; gf_jax.central_flow follows that."
    ]
