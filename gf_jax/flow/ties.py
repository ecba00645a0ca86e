"""Where a flow begins if its start lies on a kink.

Weights of one value, or zeros, make entries tie, and JAX's derivative there may be that of no side:
half of both, or one order of a sort. The flow has then no velocity at its start, and perhaps
several solutions; the limit of descent is one of them. As everything near the start scales with
the step size, the first tiny steps of descent choose the side that all small steps choose.

Where they never settle, descent slides along the kink. Macro steps follow that along a kink that
is seen; where sorts and the like tie, the flow is a mean of many sides that nothing determines.
"""

from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from gf_jax.comparison import precise_distance
from gf_jax.flow.problem import FlowProblem
from gf_jax.program.compiling import jit
from gf_jax.program.kinks import step

PyTree = Any

STEPS, STEP_SIZE = 64, 1e-10  # of descent from a tie, the size as a share of the whole time
JUMP = 1e-4  # of the gradient within such a step, over the gradient


def start(problem: FlowProblem) -> PyTree:
    """The start, or the point behind a few tiny steps of descent if the gradient jumps there.

    Raises:
      ValueError: if the gradient goes on to jump, and not for kinks that are seen.
    """
    pure, size, params = problem.pure, STEP_SIZE * problem.times[-1], problem.params

    def descended(params: PyTree, gradient: PyTree) -> PyTree:
        return jax.tree.map(lambda p, g: p - size * g, params, gradient)

    def jumps(gradient: PyTree, other: PyTree) -> bool:
        """Nothing jumps where it is no number."""
        allowed = JUMP * precise_distance(gradient, jax.tree.map(np.zeros_like, gradient), 0)
        return bool(precise_distance(gradient, other, 0) > allowed)

    with problem.numbers.context():
        find = pure.once("gradient", lambda: jit(pure.gradient, speed=pure.flow_speed))
        params = jax.device_get(params)
        gradient = jax.device_get(find(problem.data, params))
        if not jumps(gradient, jax.device_get(find(problem.data, descended(params, gradient)))):
            return problem.params
        both = _gradients(problem)
        _, gradient, gates = jax.device_get(both(problem.data, params, None))
        hidden = []
        for _ in range(STEPS):
            params = descended(params, gradient)
            as_before, following, gates = jax.device_get(both(problem.data, params, gates))
            hidden.append(jumps(gradient, as_before))
            gradient = following
    if any(hidden[STEPS // 2 :]):
        raise ValueError(
            "params: several parts of f meet at the start that it then changes between without "
            "end, as sorting does with equal entries, so that there are many gradient flows; "
            "accepted is a start without such ties"
        )
    return params


def _gradients(problem: FlowProblem) -> Any:
    """Maps (data, params, gates) to ∇f with these gates and with its own, and its own gates."""
    gated_of = problem.gated_of

    def both(data: list[Array], params: PyTree, gates: list[Array] | None) -> tuple[Any, ...]:
        gradient = jax.grad(gated_of(data, params).both, has_aux=True)
        own, kinks = gradient(params, None)
        given = own if gates is None else gradient(params, gates)[0]
        return given, own, [step(kink) for kink in kinks]

    return problem.pure.once("gradients at ties", lambda: jit(both, speed=problem.pure.flow_speed))
