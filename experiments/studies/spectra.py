"""Where descent and flow are looked at closely, and the curvature found there."""

import operator

import jax
import numpy as np
import optax
from scipy.integrate import cumulative_trapezoid

import gf_jax
from experiments.problems.problem import Problem
from experiments.runs import progress
from experiments.runs.harness import NetworkWorkplace
from experiments.studies import records
from gf_jax.descent.schedule import Schedule
from gf_jax.problems.networks import Params
from gf_jax.program.arithmetic import flow_arithmetic
from gf_jax.theory.lower_bounds import LowerBound

SMOOTHNESS = 0.5  # of the cross-entropy: the norm of its Hessian by the logits is below


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
    return np.array([0, *schedule.snapshot_iterations]) * schedule.step_size


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
    return cumulative_trapezoid(np.maximum(-lambda_min, 0), times, initial=0)


def gradient_norms(study: Problem, stack: Params) -> np.ndarray:
    """Norm of the gradient of the loss at every point of a stack."""
    numbers = flow_arithmetic()
    with numbers.context():
        gradient = jax.grad(study.objective.loss)
        norms = jax.jit(lambda s: jax.lax.map(lambda p: optax.tree.norm(gradient(p)), s))
        return np.asarray(norms(numbers.cast(stack)))


def lower_bound(study: Problem, stack: Params, radius: float = 0.0) -> LowerBound:
    """The theorem's lower bound on lambda_min within a radius of every point of a stack.

    For networks with biases or convolutions it is the extension of the theorem for
    homogeneous networks.
    """
    norms = gf_jax.layer_norms(study.network, study.restore(stack))
    if study.linear:
        slopes = np.linalg.norm(product_gradients(study, stack), axis=(1, 2))
        options = {"radius": radius, "smoothness": product_smoothness(study)}
        return gf_jax.linear_network_bound(norms.norms, slopes, **options)
    return gf_jax.homogeneous_network_bound(
        input_norms=np.linalg.norm(inputs_of(study), axis=1),
        gradient_norms=np.linalg.norm(output_gradients(study, stack), axis=1),
        radius=radius,
        smoothness=SMOOTHNESS,
        **norms._asdict(),
    )


def smoothness_bound(study: Problem, stack: Params, radius: float) -> np.ndarray:
    """Bound on the Hessian's norm of a linear network within a radius of every point."""
    return gf_jax.linear_network_smoothness(
        gf_jax.layer_norms(study.network, study.restore(stack)).norms,
        np.linalg.norm(product_gradients(study, stack), axis=(1, 2)),
        smoothness=product_smoothness(study),
        radius=radius,
    )


def inputs_of(study: Problem) -> np.ndarray:
    """The training inputs as vectors, shape (examples, features)."""
    return study.inputs.reshape(len(study.inputs), -1)


def output_gradients(study: Problem, stack: Params) -> np.ndarray:
    """Gradient of every example's loss by its logits, shape (points, classes, examples)."""
    slopes = jax.jit(study.objective.output_gradients)
    points = range(len(jax.tree.leaves(stack)[0]))
    return np.stack([slopes(jax.tree.map(operator.itemgetter(at), stack)) for at in points])


def product_gradients(study: Problem, stack: Params) -> np.ndarray:
    """The loss's gradient by the end-to-end matrix, shape (points, classes, features)."""
    inputs = inputs_of(study)
    return output_gradients(study, stack) @ inputs / len(inputs)


def product_smoothness(study: Problem) -> float:
    """Lipschitz constant of that gradient in the end-to-end matrix."""
    inputs = inputs_of(study)
    return float(SMOOTHNESS * np.linalg.norm(inputs, 2) ** 2 / len(inputs))
