import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import gf_jax
from gf_jax.flow import problem as flow_problem
from gf_jax.program import arithmetic

CURVATURES = np.array([0.5, 2.0, 7.0])
START = {"x": np.array([1.0, -2.0, 0.5])}
TIMES = np.array([0.0, 0.1, 0.5, 1.0, 2.0])
DECAY = np.exp(-np.outer(TIMES, CURVATURES))


def quadratic(params):
    return 0.5 * jnp.sum(CURVATURES * params["x"] ** 2)


def norms(difference):
    return np.linalg.norm(difference, axis=-1)


@pytest.mark.parametrize("tolerance", [1e-6, 1e-10])
def test_flow_of_a_quadratic(tolerance):
    result = gf_jax.gradient_flow(quadratic, START, TIMES, tolerance=tolerance)
    truth = norms(result.params["x"] - DECAY * START["x"])
    assert result.params["x"].dtype == np.float64
    assert (truth <= 10 * tolerance).all()  # tens of steps, and errors decay
    assert (truth <= result.error + 1e-14).all()  # the estimate is that of a looser solve
    assert 0 < result.error.max() < 100**0.5
    expected = 0.5 * (CURVATURES * (DECAY * START["x"]) ** 2).sum(axis=1)
    np.testing.assert_allclose(result.loss, expected, rtol=1e4 * tolerance)
    assert result.statistics.complete


def test_deviation_of_a_quadratic():
    result = gf_jax.deviation(quadratic, START, TIMES)
    # e = -lambda^2 t / 2 theta: the second order of (1 - s lambda)^(t/s).
    expected = -0.5 * CURVATURES**2 * TIMES[:, None] * DECAY * START["x"]
    scale = np.linalg.norm(CURVATURES * START["x"])
    assert (norms(result.coherent["x"] - expected) < 1e-3 * scale).all()
    np.testing.assert_allclose(result.norm, norms(result.coherent["x"]), rtol=1e-6)
    # The third order of the same logarithm, and half the square of the second.
    t = TIMES[:, None]
    second = (CURVATURES**4 * t**2 / 8 - CURVATURES**3 * t / 3) * DECAY * START["x"]
    assert (norms(result.second["x"] - second) < 1e-3 * scale).all()
    assert not result.gap(0.1, 0.1).any()
    np.testing.assert_allclose(result.gap(1e-9, 3e-9), 2e-9 * result.norm, rtol=1e-6)


def test_gap_of_one_mode_to_second_order():
    """(1 - s lambda)^(t/s), in closed form, from the first step on."""
    curvature, times = 50.0, np.array([0.002, 0.004, 0.01, 0.02, 0.04])
    result = gf_jax.deviation(lambda p: 0.5 * curvature * p[0] ** 2, np.ones(1), times)
    for step_size, other in ((0.002, 0.001), (0.002, 0.0005), (0.001, 0.0)):
        ends = [
            (1 - s * curvature) ** (times / s) if s else np.exp(-curvature * times)
            for s in (step_size, other)
        ]
        exact = np.abs(ends[0] - ends[1])
        # The step size times the curvature is 0.1; what is left is of its square.
        assert np.abs(result.gap(step_size, other) / exact - 1).max() < 0.015
        first_order = (step_size - other) * result.norm
        assert np.abs(first_order / exact - 1).max() > 0.03


def tanh_unit(params):
    """Not a quadratic: third and fourth derivatives count; its numbers are the same in float32."""
    return (jnp.tanh(params[:3] @ params[3:]) - 0.75) ** 2 + 0.125 * jnp.sum(params**4)


def test_orders_of_the_expansion():
    """What is left of descent is of the second order without e₂ and of the third with it."""
    start, step_sizes = np.array([0.5, -0.3, 0.8, 0.2, 0.6, -0.4]), 0.04 / 2.0 ** np.arange(4)
    found = gf_jax.deviation(tanh_unit, start, [2.0], tolerance=1e-12)
    left = []
    with jax.enable_x64(True):
        gradient = jax.jit(jax.grad(tanh_unit))
        for step_size in step_sizes:
            params = jnp.asarray(start)
            for _ in range(round(2.0 / step_size)):
                params = params - step_size * gradient(params)
            first = np.asarray(params) - found.flow.params[0] - step_size * found.coherent[0]
            left.append([norms(first), norms(first - step_size**2 * found.second[0])])
    orders = np.log2(np.array(left[:-1]) / np.array(left[1:]))
    np.testing.assert_allclose(orders, np.broadcast_to([2.0, 3.0], orders.shape), atol=0.2)


def test_the_error_of_a_gap_is_told():
    """A quadratic, whose descent is known, from far below the edge of stability to near it."""
    curvature, times = 50.0, np.array([0.04, 0.2])
    result = gf_jax.deviation(lambda p: 0.5 * curvature * p[0] ** 2, np.ones(1), times)
    for step_size in (0.0005, 0.002, 0.008, 0.02):
        exact = np.abs((1 - step_size * curvature) ** (times / step_size) - np.exp(-50 * times))
        off = np.abs(result.gap(step_size) - exact)
        assert (off <= 2 * result.gap_error(step_size)).all()
    assert result.gap_error(0.0005)[0] < 0.01 * result.gap(0.0005)[0]


def test_what_is_off_in_a_steep_direction_dies_with_it():
    """Rates of 1.6 to 1e-7, Hilbert's matrix: the error at first is no longer one at last."""
    hilbert = 1 / (1 + np.arange(6.0) + np.arange(6.0)[:, None])
    iterations, step_size = np.array([1, 2, 5, 10, 100]), 0.2
    times = iterations * step_size
    result = gf_jax.deviation(lambda w: 0.5 * w @ hilbert @ w - w.sum(), np.ones(6), times)
    values, vectors = np.linalg.eigh(hilbert)
    away = vectors.T @ (np.ones(6) - np.linalg.solve(hilbert, np.ones(6)))
    factors = (1 - step_size * values) ** iterations[:, None] - np.exp(-times[:, None] * values)
    exact = np.linalg.norm(factors * away, axis=1)
    off, told = np.abs(result.gap(step_size) - exact), result.gap_error(step_size)
    assert (off <= told).all()
    assert told[0] > 0.05 * exact[0]
    assert told[-1] < 0.02 * exact[-1]


def test_with_kinks_nothing_tells_the_error_of_a_gap():
    result = gf_jax.deviation(lambda w: jnp.abs(w - 0.3).sum(), np.ones(2), np.array([0.1]))
    assert np.isfinite(result.gap(0.01)).all()
    assert np.isnan(result.gap_error(0.01)).all()


DATA = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)


def rounded(params):
    return params + jax.lax.stop_gradient(jnp.round(4 * params) / 4 - params)


@pytest.mark.parametrize(
    ("f", "jumps"),
    [
        (lambda p: jnp.mean((DATA @ rounded(p) - 1) ** 2), True),
        (lambda p: jnp.mean((DATA @ p - 1) ** 2), False),
        pytest.param(lambda p: jnp.sum(jnp.sort(DATA @ p)[:3] ** 2), True, marks=pytest.mark.long),
    ],
    ids=["rounded", "smooth", "sorted"],
)
def test_jumps_that_are_no_kinks_are_told(f, jumps):
    """Of sorting and of rounding with a derivative of its own the gradient jumps unseen."""
    start = np.array([0.9, -0.4, 0.3])
    budget = {"budget": 1000} if jumps else {}
    assert gf_jax.predict(f, start, [0.5, 1.0], [0.1], **budget).jumps == jumps


def test_modified_flow_of_a_quadratic():
    step_sizes = [0.1, 0.05]
    result = gf_jax.modified_flow(quadratic, START, TIMES, step_sizes)
    assert result.params["x"].shape == (5, 2, 3)
    assert result.error.shape == result.loss.shape == (5, 2)
    for lane, step_size in enumerate(step_sizes):
        rates = CURVATURES + step_size / 2 * CURVATURES**2
        expected = np.exp(-np.outer(TIMES, rates)) * START["x"]
        assert (norms(result.params["x"][:, lane] - expected) < 1e-7).all()


@pytest.mark.parametrize(
    ("solve", "cost", "each", "besides"),
    [
        (lambda f: gf_jax.gradient_flow(f, START, TIMES).statistics, 1, 1, len(TIMES) + 2),
        # The gradient, its derivatives along two vectors at once, and along a third; besides
        # the gradient along the flow, and at the start; two tell whether it lies on a kink.
        (lambda f: gf_jax.deviation(f, START, TIMES).flow.statistics, 13, 3, 2 * len(TIMES) + 3),
        (lambda f: gf_jax.modified_flow(f, START, TIMES, [0.1, 0.2]).statistics, 3, 1, 12),
    ],
)
def test_evaluations_are_counted_as_they_happen(solve, cost, each, besides):
    calls = []

    def f(params):
        jax.debug.callback(lambda x: calls.append(1), params["x"][0])
        return quadratic(params)

    statistics = solve(f)
    jax.effects_barrier()
    counted = (statistics.gradient_evaluations + statistics.checking_evaluations) / cost
    assert len(calls) == each * counted + besides  # the losses along the flow, in any case


def test_steps_to_where_there_is_no_number_are_taken_again():
    """Near the end a root is small, and steps that grow pass what is below it."""
    found = gf_jax.deviation(
        lambda w: jnp.sum(4 / 3 * w**1.5 - 0.02 * w), jnp.ones(1), [1.0, 10.0], tolerance=1e-2
    )
    assert found.flow.statistics.complete
    assert found.flow.statistics.rejected_steps < found.flow.statistics.steps
    np.testing.assert_allclose(found.flow.params[-1], 1e-4, rtol=1e-3)  # where both are equal


def test_depth_two_scalar_logistic():
    """s = w_2 w_1 of a balanced start obeys s' = 2 s (L - s)."""
    target, start, times = 1.5, 0.1, np.linspace(0.2, 4, 8)
    params = {"w": np.full(2, np.sqrt(start))}
    result = gf_jax.gradient_flow(lambda p: 0.5 * (p["w"].prod() - target) ** 2, params, times)
    expected = target / (1 + (target / start - 1) * np.exp(-2 * target * times))
    np.testing.assert_allclose(result.params["w"].prod(axis=1), expected, rtol=1e-7)


@pytest.mark.parametrize("depth", [3, pytest.param(4, marks=pytest.mark.long)])
def test_deep_linear_networks_follow_the_reduced_equation(depth, generator):
    """w' = -|w|^(2-2/n) (g + (n-1) (w.g/|w|^2) w), g = w - target, for balanced starts."""
    target, size = generator.normal(size=5), 0.3
    direction = generator.normal(size=5)
    direction /= np.linalg.norm(direction)
    layer = size ** (1 / depth)
    params = {"first": layer * direction, "rest": np.full(depth - 1, layer)}

    def f(params):
        return 0.5 * jnp.sum((params["rest"].prod() * params["first"] - target) ** 2)

    def reduced(_, w):
        length, g = np.linalg.norm(w), w - target
        return -(length ** (2 - 2 / depth)) * (g + (depth - 1) * (w @ g) / length**2 * w)

    times = np.linspace(0.25, 3, 6)
    expected = solve_ivp(
        reduced, (0, 3), size * direction, "DOP853", times, rtol=1e-11, atol=1e-13
    ).y.T
    result = gf_jax.gradient_flow(f, params, times)
    product = result.params["rest"].prod(axis=1)[:, None] * result.params["first"]
    assert np.abs(product - expected).max() < 1e-6


@pytest.mark.long
def test_orders_in_the_step_size(smooth_problem):
    """Distance to the flow falls as s; to its first-order deviation and modified flow as s^2."""
    f, start = smooth_problem
    run = gf_jax.gradient_descent(
        f, start, step_size=0.02, ratios=(2, 4, 8), iterations=20, arithmetic="float64"
    )
    times, step_sizes = run.snapshot_iterations * 0.02, 0.02 / np.array([1, 2, 4, 8])
    deviation = gf_jax.deviation(f, start, times, tolerance=1e-9)
    compared = gf_jax.compare_with_flow(
        run.snapshots, deviation.flow.params, deviation.flow.error, step_sizes
    )
    assert compared.measured.all()
    # Between step sizes 0.02 and 0.0025 the next order is a few percent of the slope.
    np.testing.assert_allclose(compared.order[4:], 1, atol=0.05)
    modified = gf_jax.modified_flow(f, start, times, step_sizes)
    scale = step_sizes.reshape(-1, 1, 1)
    first_order = jax.tree.map(
        lambda theta, e: theta[:, None] + scale * e[:, None],
        deviation.flow.params,
        deviation.coherent,
    )
    with jax.enable_x64(True):
        for description in (first_order, modified.params):
            gaps = np.asarray(gf_jax.distance(run.snapshots, description, stack_axes=2))
            slopes = np.polyfit(np.log(step_sizes), np.log(gaps[4:].T), 1)[0]
            np.testing.assert_allclose(slopes, 2, atol=0.1)


def test_predicted_gaps_are_those_of_descent(smooth_problem):
    f, start = smooth_problem
    run = gf_jax.gradient_descent(f, start, step_size=0.001, ratios=(2, 10), iterations=400)
    deviation = gf_jax.deviation(f, start, run.snapshot_iterations * 0.001)
    for lane, ratio in ((1, 2), (2, 10)):
        measured = run.metrics.distance_to_base[run.snapshot_iterations, lane]
        # The next order is the step size times a curvature of about 10.
        np.testing.assert_allclose(deviation.gap(0.001, 0.001 / ratio), measured, rtol=0.02)


@pytest.mark.long
def test_float32_where_the_device_has_no_more(smooth_problem, monkeypatch):
    f, start = smooth_problem
    times = [0.1, 0.5]
    exact = gf_jax.gradient_flow(f, start, times)
    monkeypatch.setattr(
        flow_problem, "flow_arithmetic", lambda data: arithmetic.ARITHMETICS["float32"]
    )
    rough = gf_jax.gradient_flow(f, start, times)
    assert jax.tree.leaves(rough.params)[0].dtype == np.float32
    gaps = gf_jax.distance(rough.params, exact.params, stack_axes=1)
    # 1,000 weights of size 0.3, each rounded in each of tens of steps.
    assert (np.asarray(gaps) < 1e-5).all()
    assert (rough.error < 1e-5).all()


def test_progress_is_told():
    told = []
    gf_jax.gradient_flow(quadratic, START, TIMES, progress=lambda share: told.append(float(share)))
    jax.effects_barrier()
    assert told == sorted(told)
    assert told[0] < 0.1
    assert 0.9 < told[-1] <= 1


def test_a_flow_that_ends_says_so():
    """x' = x^2 reaches infinity at time 1."""
    result = gf_jax.gradient_flow(lambda x: -jnp.sum(x**3) / 3, jnp.ones(1), [0.5, 2.0])
    assert not result.statistics.complete
    np.testing.assert_allclose(result.params[0], 2, rtol=1e-6)
    assert np.isnan(result.params[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"times": [1.0, 0.5]}, "times: got"),
        ({"times": [-1.0, 0.5]}, "times: got"),
        ({"times": [0.0]}, "times: got"),
        ({"times": [np.nan]}, "times: got"),
        ({"times": []}, "times: got"),
        ({"times": [[1.0]]}, "times: got"),
        ({"tolerance": 0.0}, "tolerance: got 0.0"),
        ({"tolerance": -1.0}, "tolerance: got -1.0"),
        ({"tolerance": np.nan}, "tolerance: got nan"),
        ({"params": {"x": np.array([1, 2, 3])}}, "dtype int"),
        ({"f": lambda p: p["x"]}, "accepted is a floating-point scalar"),
    ],
)
@pytest.mark.parametrize("solve", [gf_jax.gradient_flow, gf_jax.deviation])
def test_bad_arguments_are_refused(solve, change, message):
    options = {"f": quadratic, "params": START, "times": TIMES} | change
    with pytest.raises(ValueError, match=message):
        solve(options.pop("f"), options.pop("params"), options.pop("times"), **options)
