"""Where descent and flow are looked at closely, and the curvature found there."""

import operator
from typing import TYPE_CHECKING

import jax
import numpy as np
import optax
from jaxtyping import Float
from scipy.integrate import cumulative_trapezoid

import gf_jax
from experiments.output.figures import style
from experiments.problems.problem import Problem
from experiments.runs import harness, structures
from experiments.runs.harness import NetworkWorkplace
from gf_jax.descent.schedule import Schedule
from gf_jax.problems.networks import Params
from gf_jax.program.arithmetic import flow_arithmetic
from gf_jax.records import record
from gf_jax.theory import network_bounds
from gf_jax.theory.lower_bounds import LowerBound
from gf_jax.theory.network_bounds import NetworkBound

if TYPE_CHECKING:
    from experiments.output.figures import Axes

READING = (
    "Above zero paths draw together, below they part. Dashed and dotted, where they are known: "
    "lower bounds from theory, which must lie below. The axis is logarithmic in both directions."
)


@record
class Spectrum:
    """Curvature at stacked points, each array of shape (points,).

    Attributes:
      lambda_min, lambda_max: extremal eigenvalues of the Hessian.
      lambda_min_residual, lambda_max_residual: within them there is an eigenvalue.
      theorem, sharpened: lower bounds on lambda_min.
      gradient_norm: norm of the gradient.
    """

    lambda_min: Float[np.ndarray, " points"]
    lambda_min_residual: Float[np.ndarray, " points"]
    lambda_max: Float[np.ndarray, " points"]
    lambda_max_residual: Float[np.ndarray, " points"]
    theorem: Float[np.ndarray, " points"]
    sharpened: Float[np.ndarray, " points"]
    gradient_norm: Float[np.ndarray, " points"]


def sampled(schedule: Schedule) -> Schedule:
    """The schedule with snapshots that are dense at first, where curvature changes fast.

    Of P snapshots of K iterations, number j is iteration K (j/P)³, rounded up.
    """
    count = len(schedule.snapshot_iterations)
    cubes = np.ceil(schedule.iterations * (np.arange(1, count + 1) / count) ** 3 - 1e-9)
    return Schedule(
        schedule.step_size,
        (),
        schedule.iterations,
        tuple(np.unique(cubes.astype(int)).tolist()),
        schedule.segments,
    )


def times_of(schedule: Schedule) -> np.ndarray:
    """Times of the start and of all snapshots."""
    return schedule.clock().times([0, *schedule.snapshot_iterations])


def with_start(start: Params, snapshots: Params) -> Params:
    """The base run's snapshots, leaves (snapshots, lanes, ...), preceded by the start."""
    return jax.tree.map(lambda p, s: np.concatenate([p[None], s[:, 0]]), start, snapshots)


def follow(
    workplace: NetworkWorkplace, times: np.ndarray, budget: int, part: str = ""
) -> gf_jax.Flow:
    """Gradient flow at the times, with kinks for at most so many gradient evaluations.

    Args:
      workplace: the workplace.
      times: where.
      budget: the evaluations.
      part: of the experiment, which is in front of the label of what is kept.
    """
    study = workplace.study
    return harness.solve_once(
        workplace,
        f"{part}gradient flow",
        lambda tell: gf_jax.gradient_flow(
            study.objective.loss, study.initial_params, times, budget=budget, progress=tell
        ),
        structures.of(gf_jax.Flow, study.initial_params, times=len(times)),
    )


def measure(workplace: NetworkWorkplace, label: str, stack: Params) -> Spectrum:
    """Curvature, its bounds and the gradient at every point of a stack."""
    study, points = workplace.study, len(jax.tree.leaves(stack)[0])
    curvature = harness.solve_once(
        workplace,
        f"curvature along {label}",
        lambda tell: gf_jax.curvature(study.objective.loss, stack, progress=tell),
        structures.of(gf_jax.Curvature, points=points),
    )
    bound = lower_bound(study, stack)
    return Spectrum(
        lambda_min=curvature.lambda_min.value,
        lambda_min_residual=curvature.lambda_min.residual,
        lambda_max=curvature.lambda_max.value,
        lambda_max_residual=curvature.lambda_max.residual,
        theorem=bound.theorem,
        sharpened=bound.sharpened,
        gradient_norm=gradient_norms(study, stack),
    )


def growth_integral(times: np.ndarray, lambda_min: np.ndarray) -> np.ndarray:
    """Integral of max(-lambda_min, 0) from 0 to every time, by the trapezoidal rule.

    A distance between solutions of the flow grows by at most its exponential.
    """
    return cumulative_trapezoid(np.maximum(-lambda_min, 0), times, initial=0)


def gradient_norms(study: Problem, stack: Params) -> np.ndarray:
    """Norm of the gradient of the loss at every point of a stack."""
    numbers = flow_arithmetic()
    with numbers.context():
        gradient = jax.grad(study.objective.loss)
        norms = jax.jit(lambda s: jax.lax.map(lambda p: optax.tree.norm(gradient(p)), s))
        return np.asarray(norms(numbers.cast(stack)))


def lower_bound(study: Problem, stack: Params, radius: float = 0.0) -> LowerBound:
    """A theorem's lower bound on lambda_min within a radius of every point of a stack.

    NaN where no bound covers the network and its loss, see ``gf_jax.theory.network_bounds``.
    """
    bound = bound_of(study)
    if bound is None:
        unknown = np.full(len(jax.tree.leaves(stack)[0]), np.nan)
        return LowerBound(unknown, unknown)
    return bound.lambda_min(_points(study, stack), radius)


def norm_bound(study: Problem, stack: Params, radius: float) -> np.ndarray | None:
    """Upper bound on the Hessian's norm within a radius of every point; None if none is known."""
    bound = bound_of(study)
    if bound is None or bound.norm is None:
        return None
    return bound.norm(_points(study, stack), radius)


def bound_of(study: Problem) -> NetworkBound | None:
    """The bound that covers the network and its loss, if one does."""
    return network_bounds.bound_for(study.network, study.objective.of_outputs)


def uncovered(label: str) -> str:
    """The line that says why bounds are left out, of what outputs call by that label."""
    return (
        f"No lower bound on λ_min is told, since none covers this: {label}. Bounds are known of "
        f"{network_bounds.covered()}."
    )


def _points(study: Problem, stack: Params) -> network_bounds.Points:
    return network_bounds.Points(
        study.network,
        study.objective.of_outputs,
        gf_jax.problems.layer_norms(study.network, study.restore(stack)),
        inputs_of(study),
        output_gradients(study, stack),
    )


def inputs_of(study: Problem) -> np.ndarray:
    """The training inputs as vectors, shape (examples, features)."""
    return study.inputs.reshape(len(study.inputs), -1)


def output_gradients(study: Problem, stack: Params) -> np.ndarray:
    """Gradient of every example's loss by its outputs, shape (points, classes, examples)."""
    slopes = jax.jit(study.objective.output_gradients)
    points = range(len(jax.tree.leaves(stack)[0]))
    return np.stack([slopes(jax.tree.map(operator.itemgetter(at), stack)) for at in points])


def product_gradients(study: Problem, stack: Params) -> np.ndarray:
    """The loss's gradient by the end-to-end matrix, shape (points, classes, features)."""
    inputs = inputs_of(study)
    return output_gradients(study, stack) @ inputs / len(inputs)


def draw_smallest(axes: "Axes", times: np.ndarray, spectrum: Spectrum) -> None:
    """The smallest eigenvalue and the bounds below it."""
    curves = {
        r"$\lambda_{min}$": (spectrum.lambda_min, style.COLOURS[1], "o-"),
        "lower bound, sharpened": (spectrum.sharpened, style.COLOURS[3], "--"),
        "lower bound of the theorem": (spectrum.theorem, style.COLOURS[0], ":"),
    }
    for label, (values, colour, line) in curves.items():
        if np.isnan(values).all():  # no bound covers the network
            continue
        axes.plot(times, values, line, color=colour, label=label, markersize=3)
    scale = np.abs(spectrum.lambda_min)
    axes.set_yscale("symlog", linthresh=max(float(scale.min()), 1e-3 * float(scale.max()), 1e-12))
    axes.axhline(0, color="0.7", linewidth=1, label="_zero")
    style.describe(axes, r"Smallest eigenvalue, $\lambda_{min}$", "1 / time, logarithmic", READING)


def show_early(axes: "Axes", times: np.ndarray) -> None:
    """A time axis that shows the beginning: linear up to the first sample, then logarithmic."""
    if len(times) > 1:
        axes.set_xscale("symlog", linthresh=times[1])
        axes.set_xlim(0, times[-1])
