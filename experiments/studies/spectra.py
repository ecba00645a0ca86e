"""Where descent and flow are looked at closely, and the curvature found there."""

import operator

import jax
import numpy as np
import optax

import gf_jax
from experiments.problems.problem import Problem
from experiments.runs import progress
from experiments.runs.harness import NetworkWorkplace
from experiments.studies import records
from gf_jax.descent.schedule import Schedule
from gf_jax.problems.networks import Params
from gf_jax.program.arithmetic import flow_arithmetic
from gf_jax.theory import network_bounds
from gf_jax.theory.lower_bounds import LowerBound
from gf_jax.theory.network_bounds import NetworkBound


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


def follow(workplace: NetworkWorkplace, times: np.ndarray, budget: int) -> gf_jax.Flow:
    """Gradient flow at the times, with kinks for at most so many gradient evaluations."""
    study = workplace.study
    return progress.solve(
        "gradient flow",
        lambda tell: gf_jax.gradient_flow(
            study.objective.loss, study.initial_params, times, budget=budget, progress=tell
        ),
    )


def measure(workplace: NetworkWorkplace, label: str, stack: Params) -> records.Spectrum:
    """Curvature, its bounds and the gradient at every point of a stack."""
    study = workplace.study
    curvature = progress.solve(
        f"curvature along {label}",
        lambda tell: gf_jax.curvature(study.objective.loss, stack, progress=tell),
    )
    bound = lower_bound(study, stack)
    return records.Spectrum(
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
    rates = np.maximum(-lambda_min, 0)
    areas = np.diff(times) * (rates[1:] + rates[:-1]) / 2
    return np.concatenate([[0.0], np.cumsum(areas)])


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
