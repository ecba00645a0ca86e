"""The central flow against closed forms, its parts, and descent past the edge of stability."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import gf_jax
from gf_jax.flow.central import chebyshev, complementarity, eigenvectors

STEP = 0.1
EDGE = 2 / STEP
PULL = 0.01  # of the potentials below


def one(w):
    """Sharpness w[1], which grows towards 25."""
    return w[1] * w[0] ** 2 / 2 + PULL / 2 * (w[1] - 25) ** 2


START = jnp.array([0.3, 19.9])


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_complementarity_of_random_problems(size):
    """Both matrices are positive semidefinite and orthogonal, to what Newton's method leaves.

    The ridge that makes the solution one is 1e-9 of G.
    """
    generator = np.random.default_rng(size)
    entries = size * (size + 1) // 2
    for rank in range(1, entries + 1):
        factors = generator.standard_normal((entries, rank))
        response = factors @ factors.T
        offset = response @ generator.standard_normal(entries)  # so that there is a solution
        found, left = complementarity.solve(response, offset, np.zeros(entries))
        assert left <= 1e-8
        primal = complementarity.matrix(found)
        dual = complementarity.matrix(response @ found + offset)
        scale = np.linalg.norm(offset)
        assert np.linalg.eigvalsh(primal)[0] >= -1e-12 * np.linalg.norm(found)
        size_of = np.linalg.norm(response, 2) * np.linalg.norm(found) + scale
        assert np.linalg.eigvalsh(dual)[0] >= -2e-8 * size_of
        assert abs((primal * dual).sum()) <= 2e-8 * size_of * np.linalg.norm(found)


def test_complementarity_in_closed_form():
    """With G the identity X is the projection of -Q; with nothing to respond there is none."""
    matrix = np.array([[1.0, 2.0], [2.0, -3.0]])
    values, vectors = np.linalg.eigh(-matrix)
    expected = (vectors * np.maximum(values, 0)) @ vectors.T
    found, _ = complementarity.solve(np.eye(3), complementarity.vector(matrix), np.ones(3))
    np.testing.assert_allclose(complementarity.matrix(found), expected, atol=1e-12)
    _, left = complementarity.solve(np.zeros((3, 3)), complementarity.vector(matrix), np.ones(3))
    assert left == np.inf


def test_eigenvectors_against_dense_ones():
    """To the residual asked for; begun at the solution they take one product each."""
    generator = np.random.default_rng(0)
    basis, _ = np.linalg.qr(generator.standard_normal((60, 60)))
    values = np.concatenate([[10.0, 9.99, 9.9], np.linspace(-2, 9, 57)])
    matrix = (basis * values) @ basis.T
    start = generator.standard_normal((2, 60))
    found = eigenvectors.largest(lambda block: block @ matrix, start, 3, 1e-6)
    assert found.residual <= 1e-6
    np.testing.assert_allclose(found.values, [10, 9.99, 9.9], rtol=1e-10)
    rest = found.vectors @ matrix - found.values[:, None] * found.vectors
    assert np.linalg.norm(rest, axis=1).max() <= 2e-6
    again = eigenvectors.largest(lambda block: block @ matrix, found.vectors, 3, 1e-5)
    assert again.products == 3


def test_the_stabilised_method():
    """Of second order, its error of third, and stable at the stiffness that it is made for."""
    matrix = jnp.array([[0.0, 1.0], [-1.0, -0.1]])
    with jax.enable_x64(True):
        start, errors, estimates = np.array([1.0, 0.5]), [], []
        for length in (0.2, 0.1):
            method = chebyshev.tableau(length, 1.0)
            end, error = jax.jit(
                lambda method, length: chebyshev.step(
                    lambda state, share: matrix @ state + share * length, start, length, method
                )
            )(method, length)
            exact = solve_ivp(
                lambda t, w: np.asarray(matrix) @ w + t, (0, length), start, rtol=1e-12, atol=1e-14
            )
            errors.append(np.linalg.norm(end - exact.y[:, -1]))
            estimates.append(np.linalg.norm(error))
        assert 2.8 < np.log2(errors[0] / errors[1]) < 3.2  # of one step
        assert 2.8 < np.log2(estimates[0] / estimates[1]) < 3.2
        for stiffness in (10.0, 1000.0):
            method = chebyshev.tableau(1.0, stiffness)
            assert method.stages < 1.3 * np.sqrt(stiffness) + 2
            rates = jnp.linspace(0, stiffness, 200)
            end, _ = jax.jit(
                lambda method, rates: chebyshev.step(
                    lambda state, _: -rates * state, jnp.ones_like(rates), 1.0, method
                )
            )(method, rates)
            assert jnp.abs(end).max() <= 1 + 1e-9


@pytest.fixture(scope="module")
def held():
    return gf_jax.central_flow(one, START, [0.5, 1.0, 5.0, 20.0, 100.0], STEP)


def test_one_eigenvalue_in_closed_form(held):
    """At y = 20 the force of the oscillation, variance / 2, is PULL (25 - 20)."""
    assert held.ended == 0
    assert held.reason == ""
    assert held.held.tolist() == [0, 0, 1, 1, 1]
    np.testing.assert_allclose(held.params[2:, 1], EDGE, atol=1e-3)
    np.testing.assert_allclose(held.params[2:, 0], 0, atol=1e-3)
    np.testing.assert_allclose(held.variances[2:, 0], 0.1, rtol=1e-2)
    np.testing.assert_allclose(held.average_loss[2:], 1.125, rtol=1e-2)
    np.testing.assert_allclose(held.loss[2:], 0.125, rtol=1e-3)
    # The gradient of x is ± 20 x, and y is at rest.
    np.testing.assert_allclose(held.average_squared_gradient[2:], EDGE**2 * 0.1, rtol=1e-2)
    np.testing.assert_allclose(held.lambda_max[2:], EDGE, rtol=1e-4)
    np.testing.assert_allclose(held.lambda_min, PULL, rtol=1e-3)
    np.testing.assert_allclose(np.abs(held.axes[2:, 0]), np.tile([1, 0], (3, 1)), atol=1e-2)
    assert (held.variances[:2] == 0).all()
    assert (held.variances[:, 1:] == 0).all()


def test_when_the_edge_is_reached(held):
    """y goes to 25 at the rate PULL, in steps of the size: solved with x, which decays."""

    def slope(_, w):
        return -np.array([w[1] * w[0], w[0] ** 2 / 2 + PULL * (w[1] - 25)])

    def edge(_, w):
        x, y = w
        return np.linalg.eigvalsh([[y, x], [x, PULL]])[-1] - EDGE

    exact = solve_ivp(slope, (0, 4), START, events=edge, rtol=1e-10, atol=1e-12)
    (reached,) = gf_jax.central_flow(one, START, [4.0], STEP, corrected=False).event_times
    # Its interpolation within one step size is of second order in that over the time of the drift.
    np.testing.assert_allclose(reached, exact.t_events[0][0], atol=0.02)
    assert held.event_held.tolist() == [1]
    assert held.past_edge == held.event_times[0]


def test_descent_follows_it(held):
    run = gf_jax.gradient_descent(
        one, START, step_size=STEP, ratios=(), iterations=20_000, snapshots=20_000,
        arithmetic="float64",
    )  # fmt: skip
    x, y = run.snapshots[5_000:, 0].T
    # Averages of a run that breathes slowly, over many breaths.
    np.testing.assert_allclose(y.mean(), held.params[-1, 1], atol=2e-3)
    np.testing.assert_allclose((x**2).mean(), held.variances[-1, 0], rtol=1e-2)
    np.testing.assert_allclose(run.metrics.loss[5_000:, 0].mean(), held.average_loss[-1], rtol=1e-2)


def turned(angle, values):
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return turn @ np.diag(values) @ turn.T


@pytest.mark.parametrize(
    ("values", "count"), [((25, 22), 2), ((25, 25), 2), ((25, 15), 1)], ids=["two", "tied", "one"]
)
def test_two_eigenvalues_in_closed_form(values, count):
    """The Hessian of two directions is a matrix Y that is pulled towards C.

    At rest Y is C with its eigenvalues cut off at the edge, and Σ is 2 PULL (C - Y).
    """
    goal = turned(0.5, values)

    def f(w):
        x, y = w[:2], jnp.array([[w[2], w[3]], [w[3], w[4]]])
        return x @ y @ x / 2 + PULL / 2 * jnp.sum((y - goal) ** 2)

    flow = gf_jax.central_flow(f, jnp.array([0.2, 0.1, 19.5, 0.0, 19.0]), [800.0], STEP)
    ahead, vectors = np.linalg.eigh(goal)
    expected = (vectors * np.minimum(ahead, EDGE)) @ vectors.T
    a, b, c = flow.params[0, 2:]
    atol = flow.error[0]
    assert atol < 2e-3
    np.testing.assert_allclose([[a, b], [b, c]], expected, atol=atol)
    axes = flow.axes[0, :, :2]
    covariance = (flow.variances[0] * axes.T) @ axes
    np.testing.assert_allclose(covariance, 2 * PULL * (goal - expected), atol=1e-3)
    assert flow.held.tolist() == [count]
    assert flow.event_held.tolist() == list(range(1, count + 1))


def test_an_eigenvalue_that_leaves_the_edge():
    """y follows z, which falls at a constant rate: it is held as long as z is above the edge."""
    fall = 0.5

    def f(w):
        return w[1] * w[0] ** 2 / 2 + PULL / 2 * (w[1] - w[2]) ** 2 + fall * w[2]

    flow = gf_jax.central_flow(
        f, jnp.array([0.0, 20.0, 25.0]), [2.0, 8.0, 12.0], STEP, corrected=False, tolerance=1e-6
    )  # which y leaves so slowly that it has to be known well
    # While y stands at the edge, z - 20 falls at the rate fall + PULL (z - 20).
    leaves = np.log(1 + PULL * 5 / fall) / PULL
    assert flow.event_held.tolist() == [1, 0]
    np.testing.assert_allclose(flow.event_times[1], leaves, atol=STEP)  # in the middle of a step
    assert flow.held.tolist() == [1, 1, 0]
    np.testing.assert_allclose(
        flow.variances[:2, 0], 2 * PULL * (flow.params[:2, 2] - EDGE), rtol=1e-2
    )
    assert flow.lambda_max[2] < EDGE


@pytest.mark.parametrize("corrected", [False, True])
def test_below_the_edge(corrected):
    """It is gradient flow, and with the correction the modified flow, within the error told."""
    start, times = jnp.array([0.3, 15.0]), [0.1, 1.0, 3.0]
    flow = gf_jax.central_flow(one, start, times, STEP, corrected=corrected)
    if corrected:
        expected = gf_jax.modified_flow(one, start, times, [STEP]).params[:, 0]
    else:
        expected = gf_jax.gradient_flow(one, start, times).params
    away = np.linalg.norm(flow.params - expected, axis=1)
    assert (away <= flow.error).all()
    assert (flow.error < 1e-2).all()
    assert flow.past_edge == np.inf
    np.testing.assert_array_equal(flow.loss, flow.average_loss)


def test_where_it_does_not_apply():
    with pytest.raises(ValueError, match=r"^f: has kinks, .* accepted is a smooth f"):
        gf_jax.central_flow(
            lambda w: jnp.sum(jax.nn.relu(w) ** 2 - jax.nn.relu(w)), START, [1.0], STEP
        )
    with pytest.raises(ValueError, match="most_held: got 0"):
        gf_jax.central_flow(one, START, [1.0], STEP, most_held=0)
    with pytest.raises(ValueError, match="step_sizes"):
        gf_jax.central_flow(one, START, [1.0], -STEP)


def test_it_says_why_it_ends():
    past = gf_jax.central_flow(one, jnp.array([0.3, 21.0]), [1.0, 2.0], STEP)
    assert "past the edge of stability" in past.reason
    assert np.isnan(past.params).all()
    assert not past.statistics.complete

    def two(w):
        return one(w[:2]) + one(w[2:])

    both = gf_jax.central_flow(two, jnp.tile(START, 2), [1.0, 5.0], STEP, most_held=1)
    assert "most_held" in both.reason
    assert np.isnan(both.params[-1]).all()
    short = gf_jax.central_flow(one, START, [1.0, 5.0], STEP, budget=50)
    assert "budget" in short.reason
    assert np.isnan(short.average_loss[-1])


def silu_network(params, x):
    for number, (weight, bias) in enumerate(params):
        x = x @ weight + bias
        x = jax.nn.silu(x) if number < 2 else x
    return x[:, 0]


@pytest.mark.long
def test_a_network_past_its_edge():
    """8-16-16-1, SiLU, 128 examples, mean squared error, step size 0.1, as in central_flows_jax.

    A thousand steps past the edge the run, averaged over 50, is ten times nearer to the central
    flow than to gradient flow, its loss within 5 % and its sharpness within 1 % of what the
    central flow predicts; and the correction takes it nearer.
    """
    keys = jax.random.split(jax.random.key(1), 8)
    x = jax.random.normal(keys[0], (128, 8))
    y = jnp.sin(2 * x[:, 0]) + x[:, 1] * x[:, 2]
    inner = jax.random.split(keys[1], 3)
    params = [
        (jax.random.normal(key, shape) / np.sqrt(shape[0]), jnp.zeros(shape[1]))
        for key, shape in zip(inner, ((8, 16), (16, 16), (16, 1)), strict=True)
    ]

    def f(params):
        return jnp.mean((silu_network(params, x) - y) ** 2)

    last, half = 1_350, 25
    times = [STEP * last]
    central, plain = (
        gf_jax.central_flow(f, params, times, STEP, corrected=corrected)
        for corrected in (True, False)
    )
    assert 300 < central.past_edge / STEP < last - 1_000
    flow = gf_jax.gradient_flow(f, params, times)
    kept = tuple(range(last - half, last + half))
    run = gf_jax.gradient_descent(
        f, params, step_size=STEP, ratios=(), iterations=last + half, snapshots=kept,
        arithmetic="float64",
    )  # fmt: skip
    mean = jax.tree.map(lambda leaf: leaf[:, 0].mean(axis=0), run.snapshots)

    def away(stack):
        return float(gf_jax.distance(jax.tree.map(lambda leaf: leaf[0], stack), mean))

    assert away(flow.params) > 10 * away(central.params)
    assert away(plain.params) > away(central.params)
    loss = run.metrics.loss[last - half : last + half, 0].mean()
    np.testing.assert_allclose(central.average_loss, loss, rtol=0.05)
    sharpness = gf_jax.curvature(f, jax.tree.map(lambda leaf: leaf[None], mean)).lambda_max.value
    np.testing.assert_allclose(central.lambda_max, sharpness, rtol=0.01)
    moved = np.concatenate(
        [leaf[:, 0].reshape(len(kept), -1) for leaf in jax.tree.leaves(run.snapshots)], axis=1
    )
    alternating = moved[1:-1] / 2 - (moved[:-2] + moved[2:]) / 4
    variance = (alternating**2).sum() / len(alternating)
    np.testing.assert_allclose(central.variances[0].sum(), variance, rtol=0.1)
