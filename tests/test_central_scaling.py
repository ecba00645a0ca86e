"""The central flow of RMSProp against a closed form and against runs, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gf_jax
from gf_jax.flow.central import scaling

STEP, EPS, PULL, GOAL = 0.02, 0.05, 0.01, 25.0
START = jnp.array([0.3, 19.9])


def rmsprop(h):
    """Its memory lasts for a time of 0.2."""
    return optax.rmsprop(h, 1 - 5 * h, eps=EPS, eps_in_sqrt=False)


def one(w):
    """Sharpness w[1], which is pulled towards GOAL."""
    return w[1] * w[0] ** 2 / 2 + PULL / 2 * (w[1] - GOAL) ** 2


def iterates(f, optimizer, step_size, params, count):
    """Of a run in float64, the start first, as vectors."""
    with jax.enable_x64(True):
        transformation = optimizer(step_size)

        def step(carry, _):
            params, state = carry
            updates, state = transformation.update(jax.grad(f)(params), state, params)
            return (optax.apply_updates(params, updates), state), params

        params = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), float), params)
        carry = params, transformation.init(params)
        _, stack = jax.jit(lambda carry: jax.lax.scan(step, carry, length=count))(carry)
        leaves = jax.tree.leaves(stack)
        return np.concatenate([np.asarray(leaf).reshape(count, -1) for leaf in leaves], axis=1)


def test_rest_in_closed_form():
    """x alternates between a and -a; its memory is (y a)², so that (y a + eps) h⁻¹ 2 = y.

    y rests where the force of the oscillation, a² / 2, is PULL (GOAL - y).
    """
    flow = gf_jax.central_flow(one, START, [2.0, 40.0], STEP, optimizer=rmsprop, tolerance=1e-3)
    y = flow.params[-1, 1]
    amplitude = STEP / 2 - EPS / y
    np.testing.assert_allclose(np.sqrt(flow.variances[-1, 0]), amplitude, rtol=1e-2)
    np.testing.assert_allclose(y, GOAL - amplitude**2 / 2 / PULL, atol=1e-2)
    np.testing.assert_allclose(flow.lambda_max[-1], 2 / STEP, rtol=1e-3)
    assert flow.held.tolist() == [1, 1]
    squares = (y * amplitude) ** 2
    np.testing.assert_allclose(flow.average_squared_gradient[-1], squares, rtol=2e-2)


def test_a_run_follows_it():
    """On the way, where y and the memory of its gradient move, too."""
    last = 250
    times = [STEP * last]
    flow = gf_jax.central_flow(one, START, times, STEP, optimizer=rmsprop, first_steps=5)
    run = iterates(one, rmsprop, STEP, START, last + 2)
    mean = (run[last - 1] + 2 * run[last] + run[last + 1]) / 4
    limit = gf_jax.limit_flow(one, START, times, rmsprop, step_size=STEP)
    away = np.linalg.norm(flow.params[0] - mean)
    assert away < 2e-3
    assert np.linalg.norm(limit.params[0] - mean) > 10 * away
    # The oscillation has grown from rounding to its size.
    alternating = (run[last - 1] - 2 * run[last] + run[last + 1]) / 4
    np.testing.assert_allclose(np.abs(alternating[0]) ** 2, flow.variances[0, 0], rtol=2e-2)


@pytest.mark.parametrize(
    ("gradient", "apart", "memory"), [(0.3, 0.0, 0.2), (0.3, 0.4, 0.3), (-0.1, 0.5, 0.3)]
)
def test_means_over_an_oscillation(gradient, apart, memory):
    """Against steps along a gradient that alternates, with a memory that lasts for ten of them."""
    with jax.enable_x64(True):
        found = scaling.scaling_of(rmsprop, STEP, jnp.ones(3))
        transformation = rmsprop(STEP)
        state = jax.tree.map(lambda leaf: jnp.full_like(leaf, memory), transformation.init(START))
        arguments = [jnp.full(1, float(each)) for each in (gradient, apart**2, memory)]
        _, mean = found.averaged(STEP, *arguments, 0.0)
        # Of the memory the equation is exact: the mean of squares.
        decay = 1 - 5 * STEP
        square = gradient**2 + apart**2
        np.testing.assert_allclose(STEP * mean, (1 - decay) * (square - memory), atol=1e-12)
        for _ in range(400):
            for sign in (1, -1):
                along = jnp.full(2, gradient + sign * apart)
                updates, state = transformation.update(along, state, START)
                last = updates if sign == 1 else (last, updates)
        settled = jnp.full(1, square)
        velocity, rest = found.averaged(STEP, *arguments[:2], settled, 0.0)
        np.testing.assert_allclose(rest, 0, atol=1e-10)
        np.testing.assert_allclose(velocity[0], (last[0] + last[1])[0] / 2 / STEP, rtol=2e-3)
        if apart:
            metric = found.metric(STEP, *arguments[:2], settled, 0.0)
            apart_of_steps = (last[1] - last[0])[0] / 2 / STEP
            np.testing.assert_allclose(metric[0] * apart, apart_of_steps, rtol=5e-3)


def test_what_is_recognised():
    """By what it does: descent, whatever it is called, and any memory of squares."""
    with jax.enable_x64(True):
        params = {"a": jnp.ones((2, 3)), "b": jnp.ones(4)}
        of = functools.partial(scaling.scaling_of, size=0.1, params=params)
        assert of(lambda h: optax.chain(optax.scale(2.0), optax.scale(-h / 2))).kinds == ()
        assert of(optax.rmsprop).remembers
        assert of(optax.adagrad).remembers
        assert of(lambda h: optax.rmsprop(h, bias_correction=True)).kinds.count("count") == 1


@pytest.mark.parametrize(
    ("optimizer", "reason"),
    [
        (optax.adam, "several numbers for each parameter, as with momentum"),
        (lambda h: optax.sgd(h, momentum=0.9), "do not turn around with the gradient"),
        (
            lambda h: optax.chain(optax.add_decayed_weights(0.1), optax.rmsprop(h)),
            "depend on the parameters, as with weight decay",
        ),
        (optax.sign_sgd, "in proportion to the gradient"),
        (lambda h: optax.chain(optax.clip_by_global_norm(0.1), optax.rmsprop(h)), "mix entries"),
        (optax.adafactor, "optimizer: "),
        ("rmsprop", "optimizer: got 'rmsprop'"),
    ],
    ids=["adam", "momentum", "decay", "sign", "norm", "adafactor", "name"],
)
def test_what_is_refused(optimizer, reason):
    with pytest.raises(ValueError, match=reason) as refused:
        gf_jax.central_flow(one, START, [1.0], STEP, optimizer=optimizer)
    assert "accepted" in str(refused.value)


def test_first_steps_end_before_the_first_time():
    with pytest.raises(ValueError, match=r"times: the first is 0\.1, before first_steps end"):
        gf_jax.central_flow(one, START, [0.1], STEP, optimizer=rmsprop, first_steps=10)
    with pytest.raises(ValueError, match="first_steps: got -1; accepted is"):
        gf_jax.central_flow(one, START, [0.1], STEP, first_steps=-1)
