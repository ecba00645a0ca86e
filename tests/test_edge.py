"""The edge of stability of optimisers, found from their programs, against closed forms and runs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import gf_jax
from experiments.optimizers.orders import network

CURVATURES = np.array([0.5, 1.0, 3.0, 4.0])
START = jnp.array([1.0, -2.0, 0.5, 0.7])
SLOPE, ACROSS = 0.3, 5.0  # of the gutter


def quadratic(w):
    return 0.5 * jnp.sum(CURVATURES * w**2)


def gutter(w):
    """Down along (1, -1) with a constant gradient, and of curvature ACROSS along (1, 1).

    An average of gradients or of their squares stands still there, and what is off across the
    gutter leaves it as it is, to first order, along it.
    """
    return ACROSS / 4 * (w[0] + w[1]) ** 2 + SLOPE * (w[0] - w[1])


def adams(h, b1, b2, eps, count=np.inf):
    """h λ/2 of Adam in the gutter, after so many steps."""
    norm = SLOPE + eps
    first = (1 - b1) / (1 + b1) / (1 - b1**count) / norm
    of_squares = (1 - b2) / (1 + b2) / (1 - b2**count) * SLOPE / norm**2
    return h * ACROSS * (first - of_squares) / 2


@pytest.mark.parametrize(
    ("optimizer", "edge"),
    [
        (optax.sgd, 2 / 4),
        (gf_jax.heavy_ball(0.9), (2 + 2 * 0.9) / 4),
        pytest.param(lambda h: optax.sgd(h, 0.9), (2 + 2 * 0.9) / 4, marks=pytest.mark.long),
        (gf_jax.nesterov(0.9), 2 * 1.9 / (1 + 2 * 0.9) / 4),
        pytest.param(lambda h: optax.MultiSteps(optax.sgd(h), 3), 2 / 4, marks=pytest.mark.long),
        (
            lambda h: optax.chain(optax.add_decayed_weights(0.5), optax.sgd(h)),
            2 / 4.5,
        ),
        # A ball with friction, h² λ = 2 + 2 β with β = 1 - 2 h.
        (lambda h: optax.sgd(h**2, 1 - 2 * h), (-4 + np.sqrt(16 + 64)) / 8),
    ],
    ids=["sgd", "heavy ball", "trace", "Nesterov", "MultiSteps", "decayed", "friction"],
)
def test_of_quadratics_in_closed_form(optimizer, edge):
    """To the tolerance of the secant; what holds no number that depends on h takes one step."""
    found = gf_jax.edge_of_stability(quadratic, START, [0.1, 0.2], optimizer, [0.02, 0.01])
    np.testing.assert_allclose(found.step_size, edge, rtol=1e-4)
    assert (found.residual <= 1e-4 * found.sharpness).all()


def test_of_plain_descent_it_is_that_of_the_curvature():
    f, start = network()
    times = np.array([0.5, 1.0])
    flow = gf_jax.gradient_flow(f, start, times)
    curvature = gf_jax.curvature(f, flow.params)
    found = gf_jax.edge_of_stability(f, start, times, optax.sgd, [0.1])
    np.testing.assert_allclose(found.step_size, 2 / curvature.lambda_max.value, rtol=1e-4)
    np.testing.assert_allclose(found.sharpness[:, 0], curvature.lambda_max.value, rtol=1e-4)


def test_of_adam_against_its_matrix():
    """At fixed decays, where m = g and v = g² along the limit; the matrix is D H, D diagonal."""
    f, start = network()
    b1, b2, eps, times = 0.8, 0.9, 0.1, np.array([0.25, 0.5])

    def adam(h):
        return optax.adam(h, b1, b2, eps)

    found = gf_jax.edge_of_stability(f, start, times, adam, [0.01], tolerance=1e-8)
    limit = gf_jax.limit_flow(f, start, times, adam, step_size=0.01)
    for at, sharpness in enumerate(found.sharpness[:, 0]):
        with jax.enable_x64(True):
            point = jax.tree.map(lambda leaf, at=at: jnp.asarray(leaf[at]), limit.params)
            flat, unravel = ravel_pytree(point)

            def loss(x, unravel=unravel):
                return f(unravel(x))

            g, hessian = jax.grad(loss)(flat), jax.hessian(loss)(flat)
            norm = jnp.abs(g) + eps
            scale = (1 - b1) / (1 + b1) / norm - (1 - b2) / (1 + b2) * jnp.abs(g) / norm**2
            exact = np.linalg.eigvals(scale[:, None] * hessian).real.max()
        # The limit's own tolerance.
        np.testing.assert_allclose(sharpness, exact, rtol=1e-4)


def test_decays_of_the_step_size_and_counts_of_time():
    """Averages that last for some time, in a run that is younger than they are."""
    times, sizes = np.array([0.3, 1.0]), np.array([0.02, 0.01])
    start = jnp.array([0.2, -0.2])

    def adam(h):
        return optax.adam(h, 1 - 10 * h, 1 - h, eps=1e-3)

    found = gf_jax.edge_of_stability(gutter, start, times, adam, sizes)
    of_edge = adams(sizes, 1 - 10 * sizes, 1 - sizes, 1e-3, times[:, None] / sizes + 1)
    # Averages of the limit are those of steps but for what is of the order of a step.
    np.testing.assert_allclose(found.of_edge, of_edge, rtol=0.02)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.sgd,
        lambda h: optax.sgd(h, 0.9),
        lambda h: optax.sgd(h, 0.9, nesterov=True),
        lambda h: optax.adam(h, 0.9, 0.95, eps=0.1),
        lambda h: optax.rmsprop(h, 0.9, eps=0.1),
    ],
    ids=["sgd", "heavy ball", "Nesterov", "adam", "rmsprop"],
)
def test_runs_decay_below_it_and_grow_above(optimizer):
    """By 3 % of the step size, from the state in which they have settled."""
    start = jnp.array([0.2, -0.2])
    (edge,) = gf_jax.edge_of_stability(gutter, start, [0.1], optimizer, [0.01]).step_size
    below, above = (oscillation(optimizer, share * edge, start) for share in (0.97, 1.03))
    assert below < 0.8
    assert above > 1.25


def oscillation(optimizer, step_size, start):
    """By how much what is off across the gutter grows in 100 steps, after 60 that pass."""
    with jax.enable_x64(True):
        transformation = optimizer(step_size)

        def step(carry, _):
            params, state = carry
            updates, state = transformation.update(jax.grad(gutter)(params), state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), jnp.abs(params.sum())

        params = jnp.asarray(np.asarray(start), float)
        settled, _ = jax.lax.scan(step, (params, transformation.init(params)), length=400)
        _, off = jax.lax.scan(step, (settled[0] + 1e-5, settled[1]), length=160)
        return float(off[-10:].max() / off[60:70].max())


def test_no_curvature_upwards_is_no_edge():
    found = gf_jax.edge_of_stability(
        lambda w: -jnp.sum(w**2), jnp.ones(2), [0.1], optax.sgd, [0.01]
    )
    np.testing.assert_array_equal(found.step_size, np.inf)


def test_entries_that_never_move_are_no_matter():
    """Of which gradient and averages are zero, and the root of them has no derivative."""
    found = gf_jax.edge_of_stability(
        *(lambda w: gutter(w[:2]) + 0 * w[2], jnp.array([0.2, -0.2, 1.0]), [0.1]),
        *(lambda h: optax.adam(h, 0.9, 0.95, eps=0.1), [0.01]),
    )
    np.testing.assert_allclose(found.of_edge, adams(0.01, 0.9, 0.95, 0.1), rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step_sizes": [0.1, -1]}, "step_sizes: got"),
        ({"step_sizes": []}, "step_sizes: got"),
        ({"products": 0}, "products: got 0"),
        ({"restarts": 0}, "restarts: got 0"),
        ({"optimizer": "adam"}, "optimizer: got 'adam'"),
        ({"optimizer": optax.sign_sgd}, "optimizer: its steps jump"),
    ],
)
def test_what_is_not_accepted(change, message):
    options = {"optimizer": optax.sgd, "step_sizes": [0.1]} | change
    with pytest.raises(ValueError, match=message):
        gf_jax.edge_of_stability(quadratic, START, [0.1], **options)
