"""The engine against the independent implementations, over whole trajectories."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gf_jax
from experiments.problems import data
from tests import reference

# What the project promises for 200 base iterations in float32.
LOSS_TOLERANCE, DISTANCE_TOLERANCE = 1e-5, 1e-4


def compare_dense(dataset, sizes, activation, slope, step_size):
    network = gf_jax.problems.fully_connected(sizes, activation)
    params = gf_jax.problems.xavier_uniform(jax.random.key(5), network.shapes)
    inputs = dataset.images.reshape(len(dataset.labels), -1)
    f = gf_jax.problems.classification(network, inputs, dataset.labels).loss
    run = gf_jax.gradient_descent(f, params, step_size=step_size, ratios=(2, 5), iterations=200)
    weights = [np.asarray(params[f"dense_{j}"]["weight"]) for j in range(1, len(sizes))]
    for lane, ratio in enumerate((1, 2, 5)):
        losses, distances = reference.dense_descent(
            weights, inputs, dataset.labels, slope, step_size / ratio, 200 * ratio
        )
        assert_agree(run, lane, losses[::ratio], distances[::ratio])


def assert_agree(run, lane, losses, distances):
    np.testing.assert_allclose(run.metrics.loss[:, lane], losses, rtol=LOSS_TOLERANCE)
    measured = run.metrics.distance_from_init[:, lane]
    np.testing.assert_allclose(measured, distances, rtol=DISTANCE_TOLERANCE)


@pytest.mark.parametrize(
    ("activation", "slope"), [("linear", 1.0), ("relu", 0.0), ("leaky_relu", 0.01)]
)
def test_digits_against_numpy(activation, slope, digits):
    compare_dense(digits, (64, 20, 20, 10), activation, slope, 0.01)


@pytest.mark.real_data
@pytest.mark.parametrize(("activation", "slope"), [("linear", 1.0), ("relu", 0.0)])
def test_mnist_against_numpy(activation, slope, mnist_dir):
    subset = data.load("mnist", str(mnist_dir), 1000)
    compare_dense(subset, (784, 50, 50, 10), activation, slope, 0.001)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("network", "form"),
    [
        (gf_jax.problems.conv_adapted(), {"stride": 2, "pool": False}),
        (gf_jax.problems.lenet5(), {"stride": 1, "pool": True}),
    ],
)
def test_mnist_against_the_textbook_convolution(network, form, mnist_dir):
    subset = data.load("mnist", str(mnist_dir), 200)
    inputs = jnp.asarray(subset.images[:, None])
    start = gf_jax.problems.xavier_uniform(jax.random.key(5), network.shapes)
    f = gf_jax.problems.classification(network, inputs, subset.labels).loss
    run = gf_jax.gradient_descent(f, start, step_size=0.001, ratios=(2,), iterations=200)
    step = jax.jit(
        jax.value_and_grad(lambda p: reference.convolutional_loss(p, inputs, subset.labels, **form))
    )
    params, losses, distances = start, [], []
    for _ in range(201):
        loss, gradient = step(params)
        losses.append(loss)
        distances.append(gf_jax.distance(params, start))
        params = jax.tree.map(lambda p, g: p - np.float32(0.001) * g, params, gradient)
    assert_agree(run, 0, np.array(losses), np.array(distances))


@pytest.fixture(scope="module")
def mnist_problem(mnist_dir):
    """Builds f and a starting point of a fully connected network on the paper's subset."""
    subset = data.load("mnist", str(mnist_dir), 1000)

    def build(activation):
        network = gf_jax.problems.fully_connected((784, 50, 50, 10), activation)
        f = gf_jax.problems.classification(
            network, subset.images.reshape(1000, -1), subset.labels
        ).loss
        return f, gf_jax.problems.xavier_uniform(jax.random.key(0), network.shapes)

    return build


@pytest.mark.real_data
def test_the_papers_linear_run_and_its_prediction(mnist_problem):
    f, start = mnist_problem("linear")
    ratios = (2, 5, 10, 20)
    run = gf_jax.gradient_descent(
        f, start, step_size=0.001, ratios=ratios, iterations=10_000, segments=10
    )
    travelled = run.metrics.distance_from_init[-1]
    # Six other seeds end between 2.55 and 2.68; the paper's program near 2.6.
    assert 2.4 < travelled[0] < 2.8
    sampled = np.unique(np.geomspace(1, 10_000, 150).round().astype(int))
    prediction = gf_jax.predict(f, start, sampled * 0.001, 0.001 / np.array([1, *ratios]))
    measured = run.metrics.distance_to_base[sampled, 1:]
    assert np.abs(prediction.to_base[:, 1:] / measured - 1).max() < 0.02  # what is promised
    evaluations = 10_000 * (1 + sum(ratios))
    assert prediction.flow.statistics.gradient_evaluations < evaluations / 30
    flow = gf_jax.gradient_flow(f, start, run.snapshot_iterations * 0.001)
    step_sizes = 0.001 / np.array([1, *ratios])
    compared = gf_jax.compare_with_flow(run.snapshots, flow.params, flow.error, step_sizes)
    assert compared.measured.all()
    # The next order is the step size times a curvature of 77 at most, on the largest lane.
    np.testing.assert_allclose(compared.order, 1, atol=0.01)


@pytest.mark.real_data
def test_compensation_agrees_with_float64_where_float32_does_not(mnist_problem):
    f, start = mnist_problem("linear")
    gaps = {
        arithmetic: gf_jax.gradient_descent(
            f,
            start,
            step_size=0.001,
            ratios=(2, 5, 10, 20),
            iterations=2000,
            snapshots=1,
            arithmetic=arithmetic,
        ).metrics.distance_to_base[1:, 1:]
        for arithmetic in ("compensated", "float32", "float64")
    }
    # Four significant digits, at every iteration and ratio.
    np.testing.assert_allclose(gaps["compensated"], gaps["float64"], rtol=5e-5)
    excess = gaps["float32"][-1] / gaps["float64"][-1]
    assert (np.diff(excess) > 0).all()
    assert excess[-1] > 2.5


@pytest.mark.real_data
def test_predicted_gaps_of_the_relu_network(mnist_problem):
    """Up to time 1, where the runs have long parted at a kink."""
    f, start = mnist_problem("relu")
    ratios = (2, 5, 10, 20)
    run = gf_jax.gradient_descent(
        f, start, step_size=0.001, ratios=ratios, iterations=1000, snapshots=20
    )
    measured = run.metrics.distance_to_base[run.snapshot_iterations, 1:]
    assert measured[-1, 1] > 5 * measured[-1, 0]
    prediction = gf_jax.predict(
        f, start, run.snapshot_iterations * 0.001, 0.001 / np.array([1, *ratios])
    )
    assert np.abs(prediction.to_base[:, 1:] / measured - 1).max() < 0.1  # what is aimed at
    assert prediction.flow.statistics.gradient_evaluations < 38_000 / 2


@pytest.mark.real_data
def test_prediction_for_the_adapted_network(mnist_dir):
    subset = data.load("mnist", str(mnist_dir), 100)
    network = gf_jax.problems.conv_adapted()
    f = gf_jax.problems.classification(network, subset.images[:, None], subset.labels).loss
    start = gf_jax.problems.xavier_uniform(jax.random.key(0), network.shapes)
    run = gf_jax.gradient_descent(
        f, start, step_size=0.001, ratios=(2, 5), iterations=40, snapshots=4
    )
    step_sizes = np.array([1e-3, 5e-4, 2e-4])
    prediction = gf_jax.predict(f, start, run.snapshot_iterations * 1e-3, step_sizes)
    measured = run.metrics.distance_to_base[run.snapshot_iterations, 1:]
    # With all 1,000 images it is within 3 percent up to time 0.1.
    assert np.abs(prediction.to_base[:, 1:] / measured - 1).max() < 0.1
