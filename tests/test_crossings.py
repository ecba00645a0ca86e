"""Gradient flows through kinks, against closed forms and brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gf_jax
from gf_jax.flow import crossings, gate_times, piecewise, through_kinks, ties
from gf_jax.flow.problem import flow_problem


def flow_of(f, start, times, **options):
    return gf_jax.gradient_flow(f, np.asarray(start, np.float64), times, **options)


def test_two_kinks_crossed_at_once():
    """Both coordinates go at speed 1 to zero, and beyond at speed 1/2."""
    times = np.array([0.2, 0.6, 1.0])
    flow = flow_of(lambda w: jnp.sum(-w + 0.5 * jax.nn.relu(w)), [-0.35, -0.35], times)
    exact = np.where(times < 0.35, -0.35 + times, (times - 0.35) / 2)
    np.testing.assert_allclose(flow.params, np.stack([exact, exact], axis=1), atol=1e-12)


def test_a_quadratic_with_another_one_behind_a_kink():
    """To (w - 4.25)² below zero and to (w - 2.25)² above: two exponentials joined at zero."""
    times = np.array([0.02, 0.1, 0.5])
    flow = flow_of(lambda w: jnp.sum((w - 4.25) ** 2 + 4 * jax.nn.relu(w)), [-0.5], times)
    crossed = np.log(4.75 / 4.25) / 2
    after = 2.25 * (1 - np.exp(-2 * (times - crossed)))
    exact = np.where(times < crossed, 4.25 - 4.75 * np.exp(-2 * times), after)
    assert (np.abs(flow.params[:, 0] - exact) <= flow.error).all()
    assert flow.error.max() < 1e-5  # the default tolerance


@pytest.mark.parametrize(
    ("shut_speed", "open_speed", "z", "expected"),
    [
        (1.0, -1.0, 0.1, True),
        (1.0, -1.0, -0.1, True),
        (1.0, -1.0, 0.6, False),  # too far to be reached in a step of 0.5
        (-0.2, -1.0, 0.1, False),  # it crosses
        (-1.0, 1.0, 0.1, False),  # both sides lead away
    ],
)
def test_it_slides_where_both_sides_lead_to_the_kink(shut_speed, open_speed, z, expected):
    """In the last step, of length 0.5, the gate was open for 0.3 of it."""
    length, gate = 0.5, 0.3
    speed = gate * open_speed + (1 - gate) * shut_speed
    last = gate_times.Span(length, z - length * speed, gate * length, gate)
    assert gate_times.slides(z, open_speed - shut_speed, last, length) == expected
    if expected:
        held = float(gate_times.holding(jnp.asarray(z), open_speed - shut_speed, last, length))
        after = z + length * (held * open_speed + (1 - held) * shut_speed)
        assert abs(after) < 1e-6  # single precision


def test_it_slides_along_a_kink_and_leaves_it():
    """|u| - w u holds u at zero while |w| < 1; w grows at speed 1, and then u' = w - 1."""

    def f(p):
        u, w = p
        return jnp.abs(u) - jax.lax.stop_gradient(w) * u - w

    times = np.array([0.1, 0.6, 1.0, 2.0])
    flow = flow_of(f, [0.2, 0.0], times)
    left, hit = 1.0, 1 - np.sqrt(0.6)  # u = 0.2 - t + t²/2 until it is zero
    exact = np.where(times < hit, 0.2 - times + times**2 / 2, np.maximum(times - left, 0) ** 2 / 2)
    # A solution may leave a step late: the error tells it.
    assert (np.abs(flow.params[:, 0] - exact) <= 2 * flow.error + 1e-12).all()
    assert flow.error.max() < 1e-4


@pytest.mark.parametrize("depth", [1e-6, -1e-4])
def test_a_grazed_kink(depth):
    """u = (t - 1/2)² + depth, which comes near zero or to it, and is driven back from below."""

    def f(p):
        u, w = p
        return -2 * jax.lax.stop_gradient(w - 0.5) * u - w + 3 * jax.nn.relu(-u)

    times = np.array([0.3, 0.7, 1.0])
    flow = flow_of(f, [0.25 + depth, 0.0], times)
    exact = (times - 0.5) ** 2 + depth
    if depth < 0:  # it slides from when it is zero until it would rise
        exact = np.where(times < 0.49, exact, (times - 0.5) ** 2)
    # Parabolas are followed but for rounding, and the time at which it leaves is told.
    assert (np.abs(flow.params[:, 0] - exact) <= 2 * flow.error + 1e-9).all()
    assert flow.error.max() < (1e-12 if depth > 0 else 1e-3)


def many_kinks(kinks):
    """Of w in the plane: a bowl, and kinks at random lines, each of a small jump."""
    generator = np.random.default_rng(5)
    normals = generator.normal(size=(kinks, 2))
    offsets = generator.normal(size=kinks)

    def f(w):
        return jnp.sum((w - 1.5) ** 2) / 2 + jnp.mean(jax.nn.relu(normals @ w - offsets))

    return f, np.array([-1.0, -0.5])


def by_brute_force(f, start, times, step):
    """Heun's method in tiny steps: an error of a step times a jump at every kink."""
    with jax.enable_x64(True):
        gradient = jax.jit(jax.grad(f))

        def one(_, w):
            g = gradient(w)
            return w - step / 2 * (g + gradient(w - step * g))

        point, now, found = jnp.asarray(start), 0.0, []
        run = jax.jit(lambda w, count: jax.lax.fori_loop(0, count, one, w))
        for time in times:
            point, now = run(point, round((time - now) / step)), time
            found.append(np.asarray(point))
    return np.stack(found)


def test_many_small_kinks():
    f, start = many_kinks(200)
    times = np.array([0.1, 0.5])
    exact = by_brute_force(f, start, times, 5e-6)
    flow = flow_of(f, start, times, tolerance=1e-6)
    # Brute force is off by up to a step times a jump, 5e-6 / 200, at each of some fifty kinks.
    off = np.linalg.norm(flow.params - exact, axis=1)
    assert (off <= 2 * flow.error + 1e-6).all()
    assert flow.error.max() < 1e-5


@pytest.mark.long
def test_fewer_crossings_a_step_are_more_accurate(small_problem):
    """By far more than in proportion: those in one step bend each other's paths."""
    f, start = small_problem
    problem = flow_problem(f, start, [0.3], None)
    _, solver = through_kinks._solver(problem, False)
    found = []
    with problem.numbers.context():
        begin = ties.start(problem)
        for share in (1.0, 1 / 4, 1 / 20):
            resolution = crossings.Resolution(16.0 * share, 1e-3 * share)
            found.append(
                jax.device_get(solver(problem.data, begin, problem.times, resolution, 10**5))
            )
        coarse, fine = (
            float(gf_jax.distance(each.params, found[-1].params, stack_axes=1)[0])
            for each in found[:2]
        )
    assert all(each.complete for each in found)
    assert fine < coarse / 4


@pytest.mark.long
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_told_errors_hold(digits, seed):
    network = gf_jax.problems.fully_connected((64, 8, 6, 10), "relu")
    f = gf_jax.problems.classification(network, digits.images.reshape(-1, 64), digits.labels).loss
    start = gf_jax.problems.xavier_uniform(jax.random.key(seed), network.shapes)
    times = np.array([0.1, 0.4])
    flow = gf_jax.gradient_flow(f, start, times, tolerance=1e-4)
    # Macro steps are another method, as fine as they go.
    problem = flow_problem(f, start, times, None)
    division = piecewise.divide(times, 1e-4)
    _, solve = piecewise._solver(problem, True, False)
    with problem.numbers.context():
        arguments = (problem.data, ties.start(problem), np.zeros(1), division, times)
        exact, _ = jax.device_get(solve(*arguments))
        first = jax.tree.map(lambda leaf: leaf[:, 0], exact)
        off = np.asarray(gf_jax.distance(flow.params, first, stack_axes=1))
    # Macro steps of that length are themselves off by less than a millionth.
    assert (off <= 2 * flow.error + 1e-6).all()
    assert flow.error.max() <= 2e-4
