"""Minibatch descent: the order of the batches, and what is recorded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gf_jax

EXAMPLES, SIZE = 12, 3
NUMBER = EXAMPLES // SIZE
TARGETS = np.random.default_rng(2).normal(size=(EXAMPLES, 2)).astype(np.float32)
WEIGHTS = np.linspace(0.5, 2, EXAMPLES, dtype=np.float32)[:, None]
START = {"x": np.array([1.5, -1.0], np.float32)}


def loss(x, targets, weights):
    return 0.5 * jnp.mean(jnp.sum(weights * (x - targets) ** 2, axis=1))


def f(params):
    return loss(params["x"], jnp.asarray(TARGETS), jnp.asarray(WEIGHTS))


def loss_of_batch(params, index):
    chosen = (
        jax.lax.dynamic_slice_in_dim(jnp.asarray(array), index * SIZE, SIZE)
        for array in (TARGETS, WEIGHTS)
    )
    return loss(params["x"], *chosen)


BATCHES = gf_jax.Batches(loss_of_batch, NUMBER)


def loop(step_size, steps, beta=0.0):
    """The same in NumPy, one example after another."""
    x, v, seen = START["x"].astype(float), 0.0, []
    for step in range(steps):
        batch = np.arange(SIZE) + step % NUMBER * SIZE
        gradient = sum(WEIGHTS[i] * (x - TARGETS[i]) for i in batch) / SIZE
        v = beta * v + gradient
        x = x - step_size * v
        seen.append(x)
    return np.array(seen)


@pytest.mark.parametrize("beta", [0.0, 0.6])
@pytest.mark.parametrize("segments", [1, 3])
def test_a_quadratic_against_a_loop(segments, beta):
    """Segments of three iterations and lanes of 1, 2 and 5 steps end anywhere in the order."""
    run = gf_jax.gradient_descent(
        *(f, START),
        step_size=0.1,
        ratios=(2, 5),
        iterations=9,
        segments=segments,
        arithmetic="float64",
        optimizer=gf_jax.heavy_ball(beta),
        batches=BATCHES,
    )
    for lane, ratio in enumerate((1, 2, 5)):
        expected = loop(0.1 / ratio, 9 * ratio, beta)[ratio - 1 :: ratio]
        # float64, of targets that are float32 in both.
        np.testing.assert_allclose(run.snapshots["x"][:, lane], expected, rtol=0, atol=1e-12)
        # What is recorded is the full objective and its gradient.
        residuals = expected[:, None] - TARGETS
        full = 0.5 * (WEIGHTS * residuals**2).sum(axis=2).mean(axis=1)
        np.testing.assert_allclose(run.metrics.loss[1:, lane], full, rtol=1e-6)
        norms = np.linalg.norm((WEIGHTS * residuals).mean(axis=1), axis=1)
        np.testing.assert_allclose(run.metrics.gradient_norm[1:, lane], norms, rtol=1e-5)


def test_one_batch_of_everything_is_full_batch(digits):
    network = gf_jax.problems.fully_connected((64, 6, 10))
    objective = gf_jax.problems.classification(
        network, digits.images.reshape(-1, 64), digits.labels
    )
    start = gf_jax.problems.xavier_uniform(jax.random.key(3), network.shapes)
    options = {"step_size": 0.1, "ratios": (2, 5), "iterations": 6}
    full = gf_jax.gradient_descent(objective.loss, start, **options)
    batched = gf_jax.gradient_descent(
        objective.loss, start, **options, batches=objective.batches(200)
    )
    # The same sums in another program: a few ulps of gradients of size one, as in test_descent.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6), batched, full)


def test_lanes_equal_separate_runs_from_several_starts(digits):
    network = gf_jax.problems.fully_connected((64, 12, 10))
    objective = gf_jax.problems.classification(
        network, digits.images.reshape(-1, 64), digits.labels
    )
    start = gf_jax.problems.xavier_uniform(jax.random.key(3), network.shapes)
    starts = jax.tree.map(lambda leaf: np.stack([leaf, leaf / 2]), start)
    batches = objective.batches(40)
    together = gf_jax.gradient_descent(
        *(objective.loss, starts),
        step_size=0.1,
        ratios=(3,),
        iterations=4,
        batches=batches,
        starts=True,
    )
    alone = gf_jax.gradient_descent(
        *(objective.loss, start),
        step_size=0.1 / 3,
        ratios=(),
        iterations=12,
        snapshots=(3, 6, 9, 12),
        batches=batches,
    )
    # A product of a larger stack may sum in another order, see test_starts.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[:, 0, 1], b[:, 0], rtol=1e-5, atol=2e-6),
        together.snapshots,
        alone.snapshots,
    )


@pytest.mark.parametrize(
    "network",
    [
        gf_jax.problems.fully_connected((784, 4, 10), "relu"),
        pytest.param(gf_jax.problems.conv_adapted(), marks=pytest.mark.long),
        pytest.param(gf_jax.problems.lenet5(), marks=pytest.mark.long),
    ],
)
def test_a_batch_is_its_consecutive_examples(network, large_digits):
    inputs = large_digits.images.reshape(-1, *network.input_shape)
    params = gf_jax.problems.xavier_uniform(jax.random.key(1), network.shapes)
    batches = gf_jax.problems.classification(network, inputs, large_digits.labels).batches(10)
    assert batches.number == 4
    part = slice(20, 30)
    alone = gf_jax.problems.classification(network, inputs[part], large_digits.labels[part])
    # The same products and sums, in programs of their own: float32 losses of size two.
    np.testing.assert_allclose(jax.jit(batches.loss)(params, 2), alone.loss(params), rtol=1e-5)


def test_evaluations_are_those_of_steps_and_of_what_is_recorded():
    calls = []

    def counted(params, index):
        jax.debug.callback(lambda x: calls.append(int(x)), index)
        return loss_of_batch(params, index)

    batches = gf_jax.Batches(counted, NUMBER)
    gf_jax.gradient_descent(f, START, step_size=0.1, ratios=(2, 5), iterations=2, batches=batches)
    jax.effects_barrier()
    # Step j takes batch j mod 4: two steps, four, and ten.
    wanted = [*range(2), *range(4), *(j % NUMBER for j in range(10))]
    assert sorted(calls) == sorted(wanted)


@pytest.mark.parametrize("number", [0, -1, 2.5, 2**31])
def test_wrong_numbers_of_batches_are_refused(number):
    batches = gf_jax.Batches(loss_of_batch, number)
    with pytest.raises(ValueError, match="batches: number is"):
        gf_jax.gradient_descent(f, START, step_size=0.1, ratios=(), iterations=1, batches=batches)


def test_wrong_batch_sizes_are_refused(digits):
    network = gf_jax.problems.fully_connected((64, 10))
    objective = gf_jax.problems.classification(
        network, digits.images.reshape(-1, 64), digits.labels
    )
    for size in (0, 7, 400):
        with pytest.raises(
            ValueError, match=r"batch_size: got .*; accepted are .* 200: 1, 2, 4, 5"
        ):
            objective.batches(size)


@pytest.mark.parametrize(
    "size", [3, *(pytest.param(size, marks=pytest.mark.long) for size in (2, 6))]
)
def test_order_of_what_predictions_leave_out(size):
    """Two, at the ends of epochs; within them as well off is less than what is told."""
    network, start = smooth_network()
    number, ratios = EXAMPLES // size, (1, 2, 4, 8)

    def of_batch(params, index):
        return network(params, index * size, size)

    run = gf_jax.gradient_descent(
        lambda params: network(params, 0, EXAMPLES),
        start,
        step_size=0.01,
        ratios=ratios,
        iterations=4 * number + 1,
        snapshots=(2 * number, 4 * number, 4 * number + 1),
        arithmetic="float64",
        batches=gf_jax.Batches(of_batch, number),
    )
    told = gf_jax.predict(
        lambda params: network(params, 0, EXAMPLES),
        *(start, run.snapshot_times, run.step_sizes),
        batches=gf_jax.Batches(of_batch, number),
    )
    flow = told.flow
    distance = gf_jax.compare_with_flow(run.snapshots, flow.params, flow.error, run.step_sizes)
    off = np.abs(told.to_flow - distance.distance)
    assert (off <= told.to_flow_error).all()
    orders = np.log2(off[:2, :-1] / off[:2, 1:])  # where all runs end an epoch
    np.testing.assert_allclose(orders, 2, atol=0.05)


def smooth_network():
    """The squared error of a tanh network on some of the examples, and a start."""
    generator = np.random.default_rng(3)
    inputs = generator.normal(size=(EXAMPLES, 3)).astype(np.float32)
    targets = generator.normal(size=EXAMPLES).astype(np.float32)

    def loss(params, first, count):
        rows, wanted = (
            jax.lax.dynamic_slice_in_dim(jnp.asarray(each), first, count)
            for each in (inputs, targets)
        )
        return jnp.mean((jnp.tanh(rows @ params["first"]) @ params["second"] - wanted) ** 2)

    start = {"first": generator.normal(size=(3, 2)), "second": generator.normal(size=2)}
    return loss, start
