"""A whole study in one call: does descent on a loss stay near its gradient flow?"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from gf_jax.descent.schedule import Schedule, whole_numbers
from gf_jax.descent.segments import Trajectory
from gf_jax.flow.limit_flow import limit_in_words
from gf_jax.flow.problem import Progress
from gf_jax.optimizers.method import Method, method_of
from gf_jax.optimizers.steps import Optimizer
from gf_jax.program.arithmetic import arithmetic as get_arithmetic
from gf_jax.program.program import Loss, Program, prepare
from gf_jax.study.comparison import Comparison
from gf_jax.study.following import follow
from gf_jax.study.record import Run, clean_label
from gf_jax.study.solving import FAILURES, descend, missing
from gf_jax.theory import spectrum

PyTree = Any
Tell = Callable[[str, float], None]

OF_DESCENT = ("arithmetic", "sharding", "check_memory")

# Options of descent that a comparison has not.
ELSEWHERE = {
    "starts": "one starting point",
    "batches": "all examples",
}


def compare(
    f: Loss | Program,
    params: PyTree,
    *,
    step_size: float,
    iterations: int,
    ratios: int | Sequence[int] = (2, 5, 10),
    snapshots: int | Sequence[int] | None = None,
    flow: bool = True,
    predict: bool = True,
    curvature: bool = False,
    momentum: float = 0.0,
    nesterov: bool = False,
    optimizer: Optimizer | None = None,
    label: str = "loss",
    progress: Tell | None = None,
    **descent: Any,
) -> Comparison:
    """Runs descent at several step sizes, follows the flow, and compares them.

    Args:
      f: maps parameters to a scalar loss; differentiable by JAX, closed over data of any form.
      params: initial point, any pytree, such as a model of equinox or flax.nnx, or what
        ``init`` of flax.linen returns. Arrays of floating-point numbers move; all other leaves
        are held fixed, and f is given them as they are. Results hold the leaves that move, and
        None in the place of the others.
      step_size: of the base run; time = iteration * step_size.
      iterations: of the base run.
      ratios: positive integers r, each of which adds a run with step size step_size/r.
      snapshots: base iterations at which runs, flow and predictions are compared and
        parameters kept, see ``Schedule``; by default 100, evenly spaced.
      flow: whether the flow is solved; without it there are no predictions either.
      predict: whether the distances are predicted, too.
      curvature: whether both ends of the Hessian's spectrum are found at every snapshot of
        the flow: about 40 Hessian-vector products for each.
      momentum: the decay β of past gradients, from 0 to below 1, of heavy-ball descent, whose
        time per iteration is step_size / (1 - β), see ``gf_jax.heavy_ball``.
      nesterov: whether momentum is Nesterov's.
      optimizer: maps a step size to an optax transformation, such as ``optax.adamw`` or
        ``lambda h: optax.adam(h, b1=1 - 100 * h, b2=1 - h)``; every run is of its own step size.
        The flow is then the optimiser's continuous limit as the step size goes to zero, with all
        else that depends on the step size. Time is iteration * step_size. Schedules are functions
        of time: ``lambda h: optax.sgd(lambda count: h * schedule(count * h))``.
      label: what table and figure call the model.
      progress: is called now and then with what is done and the share of it that is done.
      descent: options of ``gradient_descent``, such as ``arithmetic="float64"``.

    Raises:
      ValueError: on values that are not accepted, as ``gradient_descent`` and
        ``gradient_flow``; on ``starts`` and ``batches``, of which a comparison has one and all
        examples; and on an optimiser without a continuous limit, which it says the reason of,
        unless the flow is left out.
      FloatingPointError: if the compiler cancels the compensation of descent.

    Example:
      >>> def f(w):
      ...     return jnp.sum((w**2 - 1) ** 2)
      >>> w = jnp.array([0.1, 1.5])
      >>> found = gf_jax.compare(f, w, step_size=0.01, ratios=(2,), iterations=10)
      >>> print(found)
      loss, 10 iterations to time 0.1
      <BLANKLINE>
      step size     loss      from the flow  predicted  from largest step  predicted
           0.01  1.04904  1.290e-02 ± 4e-08  1.285e-02          0.000e+00  0.000e+00
          0.005  1.05813  6.275e-03 ± 4e-08  6.270e-03          6.622e-03  6.580e-03
      <BLANKLINE>
      Order of the distance from the flow in the step size: 1.039.
      Verdict: descent with step size 0.01 stays in sight of its gradient flow...
    """
    _check_options(descent)
    method = method_of(momentum, nesterov, optimizer)
    optimizer = method.optimizer if optimizer is None else optimizer
    if curvature and not flow:
        raise ValueError("curvature: is found on the flow, which flow=False leaves out")

    def solve(what: str, solver: Callable[[Progress | None], Any]) -> Any:
        return solver(None if progress is None else lambda share: progress(what, float(share)))

    schedule = Schedule(
        step_size,
        whole_numbers("ratios", ratios),
        iterations,
        tuple(snapshots) if isinstance(snapshots, Iterable) else snapshots,
        descent.pop("segments", None),
    )
    program = of_descent = prepare(f, params)
    products = get_arithmetic(descent.get("arithmetic", "compensated")).products
    if products != program.pure.products:  # as in tf32
        of_descent = prepare(f, params, products=products)
    params = program.moving(params)
    if not all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(params)):
        raise ValueError("params: not all numbers are finite; accepted is a finite initial point")
    if method.optimizer_name and flow:  # refused before anything is run
        times = schedule.clock().times(schedule.snapshot_iterations)
        limit = limit_in_words(program, params, times, schedule.step_sizes[-1], optimizer)
        method = dataclasses.replace(method, limit=limit)
        if not limit:
            method, optimizer = Method(), None  # it is plain descent
    if optimizer is not None:
        descent["optimizer"] = optimizer
    trajectory: Trajectory = solve(
        "descent", lambda tell: descend(of_descent, params, schedule, tell, descent)
    )
    run = Run(
        network_label=clean_label(label) + method.words,
        data_label="",
        step_size=float(step_size),
        ratios=schedule.lanes,
        iterations=trajectory.iterations,
        metrics=trajectory.metrics,
        snapshot_iterations=trajectory.snapshot_iterations,
        loss_unit="loss",
        method=method,
    )
    _check_start(run)
    if not flow or not run.arrived:
        return Comparison(run, trajectory.snapshots)
    followed = follow(
        program, params, run, trajectory.snapshots, solve, predict=predict, descent=descent
    )
    doubts, found = list(followed.doubts), None
    if curvature and followed.flow is not None:
        try:
            stack = followed.flow.params
            found = solve(
                "curvature", lambda tell: spectrum.curvature(program, stack, progress=tell)
            )
        except FAILURES as error:
            doubts.append(missing("curvature", error))
    run = dataclasses.replace(run, reference=followed.reference, doubts=tuple(doubts))
    path = None if followed.flow is None else followed.flow.params
    return Comparison(run, trajectory.snapshots, path, found, followed.kinks)


def _check_start(run: Run) -> None:
    for what, values in (("it", run.metrics.loss), ("its gradient", run.metrics.gradient_norm)):
        if not np.isfinite(values[0]).all():
            raise ValueError(
                f"f: {what} is not finite at the initial point; accepted is an f that is finite "
                "there, with its gradient"
            )


def _check_options(descent: dict[str, Any]) -> None:
    for name, instead in ELSEWHERE.items():
        if descent.get(name):
            raise ValueError(
                f"{name}: compare takes {instead}; for others take gradient_descent and "
                "compare_with_flow"
            )
    for name in descent:
        if name not in (*OF_DESCENT, *ELSEWHERE, "segments"):
            raise ValueError(
                f"{name}: compare has no such option; accepted of descent are segments, "
                + ", ".join(OF_DESCENT)
            )
