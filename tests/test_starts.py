"""Descent from many starts at once: each start is its own run."""

import jax
import numpy as np
import pytest

import gf_jax
from tests.test_descent import START, quadratic

OPTIONS = {"step_size": 0.1, "ratios": (2, 5), "iterations": 6, "snapshots": 3}


def stack(points):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *points)


@pytest.fixture(scope="module")
def starts(small_problem):
    """Three starts of a small network, one of them near zero."""
    _, start = small_problem
    return [jax.tree.map(lambda leaf, s=scale: s * leaf, start) for scale in (1, -0.5, 0.01)]


@pytest.mark.parametrize(
    "arithmetic", ["compensated", pytest.param("float64", marks=pytest.mark.long)]
)
def test_every_start_equals_its_own_run(arithmetic, small_problem, starts):
    f, _ = small_problem
    options = OPTIONS | {"arithmetic": arithmetic}
    together = gf_jax.gradient_descent(f, stack(starts), **options, starts=True)
    assert together.metrics.loss.shape == (7, 3, 3)
    assert together.snapshots["dense_1"]["weight"].shape == (3, 3, 3, 12, 64)
    # A product of a larger stack may sum in another order: a few ulps of a gradient of size
    # one, times step size 0.1, in each of at most 30 steps.
    tolerance = {"rtol": 1e-5, "atol": 2e-6} if arithmetic == "compensated" else {"rtol": 1e-12}
    for number, start in enumerate(starts):
        alone = gf_jax.gradient_descent(f, start, **options)
        for ours, its in (
            (together.metrics, alone.metrics),
            (together.snapshots, alone.snapshots),
        ):
            jax.tree.map(
                lambda a, b, at=number: np.testing.assert_allclose(a[:, at], b, **tolerance),
                ours,
                its,
            )


def test_segments_change_nothing(small_problem, starts):
    f, _ = small_problem
    whole, parts = (
        gf_jax.gradient_descent(f, stack(starts), **OPTIONS, starts=True, segments=segments)
        for segments in (1, 3)
    )
    jax.tree.map(np.testing.assert_array_equal, parts, whole)


def test_a_diverging_start_leaves_the_others_alone():
    """On a quadratic entries do not meet in sums, so the others are the same to the last bit."""
    tame = {"x": START["x"] / 10}
    wild = {"x": np.float32(1e30) * START["x"]}
    options = {"step_size": 0.4, "ratios": (2,), "iterations": 40}
    with_wild = gf_jax.gradient_descent(quadratic, stack([wild, tame]), **options, starts=True)
    without = gf_jax.gradient_descent(quadratic, stack([tame, tame]), **options, starts=True)
    assert not np.isfinite(with_wild.metrics.loss[-1, 0, 0])
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a[:, 1], b[:, 1]),
        (with_wild.metrics, with_wild.snapshots),
        (without.metrics, without.snapshots),
    )


def test_every_evaluation_is_needed():
    """The sum of the ratios per base iteration and start, as for a single start."""
    calls = []

    def f(params):
        jax.debug.callback(lambda x: calls.append(float(x)), params["x"][0])
        return quadratic(params)

    options = {"step_size": 0.01, "ratios": (2, 5, 10, 20), "iterations": 2}
    gf_jax.gradient_descent(f, stack([START, START, START]), **options, starts=True)
    jax.effects_barrier()
    assert len(calls) == 3 * (2 * 38 + 1)


def test_one_compilation(caplog, small_problem, starts):
    loss, _ = small_problem
    with jax.log_compiles(), caplog.at_level("WARNING"):
        gf_jax.gradient_descent(
            lambda p: 1.25 * loss(p), stack(starts), **OPTIONS, starts=True, segments=3
        )
    compiled = [r.message for r in caplog.records if r.message.startswith("Compiling jit(run)")]
    assert len(compiled) == 1


@pytest.mark.parametrize(
    "params", [{"x": np.ones((2, 3)), "y": np.ones((3, 3))}, {"x": np.float32(1)}]
)
def test_leaves_without_a_common_axis_are_refused(params):
    with pytest.raises(ValueError, match="accepted is a stack of points, with one length"):
        gf_jax.gradient_descent(quadratic, params, **OPTIONS, starts=True)
