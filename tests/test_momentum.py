"""Descent with momentum: against its recursion in closed form, and against its flow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gf_jax
from tests.test_descent import CURVATURES, START, quadratic

KINDS = (gf_jax.heavy_ball, gf_jax.nesterov)
RATIOS = np.array([1, 2, 5])


def matrix(kind, beta, step_size, curvature):
    """One iteration of one mode of a quadratic, of (params, past gradients)."""
    remembered = np.array([curvature, beta])  # v' = lambda x + beta v
    moved = remembered if kind is gf_jax.heavy_ball else [curvature, 0] + beta * remembered
    return np.array([[1, 0] - step_size * np.asarray(moved), remembered])


def iterates(kind, beta, step_size, steps):
    """Of the quadratic after some steps from rest, by powers of matrices."""
    modes = [
        (np.linalg.matrix_power(matrix(kind, beta, step_size, c), steps) @ [x, 0])[0]
        for c, x in zip(CURVATURES.astype(float), START["x"].astype(float), strict=True)
    ]
    return np.array(modes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arithmetic", ["compensated", "float64"])
def test_lanes_follow_the_recursion(kind, arithmetic):
    beta, step_size, iterations = 0.8, 0.02, 24
    run = gf_jax.gradient_descent(
        *(quadratic, START),
        step_size=step_size,
        ratios=(2, 5),
        iterations=iterations,
        segments=4,
        arithmetic=arithmetic,
        optimizer=kind(beta),
    )
    for lane, ratio in enumerate(RATIOS):
        expected = [iterates(kind, beta, step_size / ratio, k * ratio) for k in range(1, 25)]
        # The curvatures are float32; so are gradients and past gradients when compensated,
        # with an error of an ulp or two, of numbers up to 5 v = 5/(1 - beta), times 0.02.
        atol = 1e-12 if arithmetic == "float64" else 120 * 6e-8 * 0.02 * 25
        np.testing.assert_allclose(run.snapshots["x"][:, lane], expected, rtol=0, atol=atol)


@pytest.mark.parametrize("kind", KINDS)
def test_zero_decay_is_plain_descent(kind):
    options = {"step_size": 0.1, "ratios": (2, 3), "iterations": 6}
    plain = gf_jax.gradient_descent(quadratic, START, **options)
    run = gf_jax.gradient_descent(quadratic, START, **options, optimizer=kind(0.0))
    jax.tree.map(np.testing.assert_array_equal, run, plain)
    assert kind(0.0).time_scale == 1


def test_every_start_is_its_own_run():
    """In one call or three to the last bit, and to rounding as if it were alone."""
    options = {"step_size": 0.05, "ratios": (2, 3), "iterations": 6}
    options["optimizer"] = gf_jax.nesterov(0.7)
    starts = {"x": np.stack([START["x"], START["x"] / 3])}
    whole, parts = (
        gf_jax.gradient_descent(quadratic, starts, **options, starts=True, segments=segments)
        for segments in (1, 3)
    )
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    alone = gf_jax.gradient_descent(quadratic, START, **options)
    np.testing.assert_allclose(whole.snapshots["x"][:, 0], alone.snapshots["x"], rtol=1e-6)


def slope(values, ratios):
    """Order in the step size of the norm over all times, (times, lanes)."""
    return np.polyfit(np.log(ratios), -np.log(np.linalg.norm(values, axis=0)), 1)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_order_of_gaps_and_predictions_on_a_quadratic(kind):
    """From the closed form: gaps are of order one in the step size, predictions of order two."""
    beta, times, ratios = 0.8, np.array([0.0025, 0.03, 0.3, 1.0]), np.array([1, 2, 4, 8])
    step_sizes, momentum = 1e-4 / ratios, kind(beta)
    flow = np.exp(-np.outer(times, CURVATURES)) * START["x"]
    steps = np.round(times / (step_sizes[:, None] * momentum.time_scale)).astype(int)
    runs = [
        np.array([iterates(kind, beta, step_size, count) for count in counts])
        for step_size, counts in zip(step_sizes, steps, strict=True)
    ]
    to_flow = np.stack([np.linalg.norm(run - flow, axis=1) for run in runs], axis=1)
    to_base = np.stack([np.linalg.norm(run - runs[0], axis=1) for run in runs], axis=1)
    told = gf_jax.predict(quadratic, START, times, step_sizes, optimizer=momentum)
    # The next order of the expansion is smaller by c tau lambda, 0.03 for the largest step.
    late = slice(2, None)  # while momentum builds up, after 5 and 60 iterations, there is no power
    assert abs(slope(to_flow[late], ratios) - 1) < 0.03
    assert abs(slope((told.to_flow - to_flow)[late], ratios) - 2) < 0.1
    np.testing.assert_allclose(told.to_flow, to_flow, rtol=0.03)
    np.testing.assert_allclose(told.to_base, to_base, rtol=0.06)  # of differences of the above
    assert not told.to_base[:, 0].any()
    assert (np.abs(told.to_flow - to_flow) <= told.to_flow_error)[late].all()
    assert told.error < 0.2  # the next order, as above, in several parts; twice what is seen


@pytest.fixture(scope="module")
def smooth_network():
    """A small network with tanh, whose curvature changes on the way."""
    generator = np.random.default_rng(5)
    inputs, targets = generator.normal(size=(20, 3)), generator.normal(size=20)

    def f(params):
        hidden = jnp.tanh(inputs @ params["first"])
        return jnp.mean((hidden @ params["second"] - targets) ** 2)

    return f, {"first": generator.normal(size=(3, 4)), "second": generator.normal(size=4)}


@pytest.mark.parametrize(
    "kind", [gf_jax.nesterov, pytest.param(gf_jax.heavy_ball, marks=pytest.mark.long)]
)
def test_order_of_gaps_and_predictions_on_a_network(kind, smooth_network):
    f, start = smooth_network
    momentum, ratios, times = kind(0.75), np.array([1, 2, 4, 8]), np.array([0.25, 0.5, 1.0])
    step_sizes = 1 / 200 / momentum.time_scale / ratios
    run = gf_jax.gradient_descent(
        *(f, start),
        step_size=step_sizes[0],
        ratios=tuple(ratios),
        iterations=200,
        snapshots=(50, 100, 200),
        arithmetic="float64",
        optimizer=momentum,
    )
    flow = gf_jax.gradient_flow(f, start, times)
    to_flow = gf_jax.compare_with_flow(run.snapshots, flow.params, flow.error, step_sizes).distance
    told = gf_jax.predict(f, start, times, step_sizes, optimizer=momentum)
    # The largest step is 0.02 of the time in which the flow arrives, times c, up to 7.
    assert abs(slope(to_flow, ratios) - 1) < 0.1
    assert abs(slope(told.to_flow - to_flow, ratios) - 2) < 0.2
    to_base = run.metrics.distance_to_base[[50, 100, 200]]
    np.testing.assert_allclose(told.to_base, to_base, rtol=0.1)


def test_what_is_refused(small_problem):
    for beta in (-0.1, 1, 1.5, float("nan"), "much"):
        for kind in KINDS:
            with pytest.raises(ValueError, match=r"beta: got .*; accepted is a number from 0 to"):
                kind(beta)
    f, start = small_problem  # has kinks
    with pytest.raises(ValueError, match="optimizer: f has kinks; accepted"):
        gf_jax.predict(f, start, [0.1], [0.1], optimizer=gf_jax.heavy_ball(0.5))


@pytest.mark.parametrize("momentum", [None, gf_jax.heavy_ball(0.5), gf_jax.nesterov(0.9)])
def test_a_trajectory_knows_its_times(momentum):
    """As a comparison does, which computes them in the same place; joined parts do, too."""
    schedule = gf_jax.Schedule(0.01, (5, 2), 12, snapshots=4, segments=3)
    start = jnp.array([0.3, -0.2])
    options = {} if momentum is None else {"optimizer": momentum}
    parts = gf_jax.descent_segments(lambda w: jnp.sum(jnp.cos(w)), start, schedule, **options)
    run = gf_jax.join(list(parts))
    per_iteration = 0.01 * (1.0 if momentum is None else momentum.time_scale)
    np.testing.assert_allclose(run.times, np.arange(13) * per_iteration, rtol=1e-15)
    np.testing.assert_allclose(
        run.snapshot_times, np.array([3, 6, 9, 12]) * per_iteration, rtol=1e-15
    )
    np.testing.assert_array_equal(run.step_sizes, [0.01, 0.005, 0.002])
    with pytest.raises(ValueError, match="its step size is not known"):
        _ = run._replace(clock=None).times


def test_momentum_of_one_decay_is_one_optimizer():
    """What is compiled with it then serves again."""
    assert gf_jax.heavy_ball(0.9) == gf_jax.heavy_ball(0.9)
    assert hash(gf_jax.heavy_ball(0.9)) == hash(gf_jax.heavy_ball(0.9))
    assert gf_jax.nesterov(0.9) != gf_jax.heavy_ball(0.9)
