import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gf_jax
from tests import reference

CONVOLUTIONAL = {
    "conv_adapted": (gf_jax.problems.conv_adapted(), {"stride": 2, "pool": False}),
    "lenet5": (gf_jax.problems.lenet5(), {"stride": 1, "pool": True}),
}


def random_params(network, generator):
    return {
        layer: {kind: jnp.float32(0.2 * generator.normal(size=shape)) for kind, shape in ks.items()}
        for layer, ks in network.shapes.items()
    }


@pytest.mark.parametrize(
    ("network", "count"),
    [
        (gf_jax.problems.fully_connected((784, 50, 50, 10)), 784 * 50 + 50 * 50 + 50 * 10),
        (gf_jax.problems.conv_adapted(), 150 + 2400 + 400 * 120 + 120 * 84 + 84 * 10),
        (gf_jax.problems.lenet5(), 61_706),  # the published size of this LeNet-5
    ],
)
def test_number_of_parameters(network, count):
    sizes = [np.prod(shape) for kinds in network.shapes.values() for shape in kinds.values()]
    assert sum(sizes) == count


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_convolutional_networks_equal_the_textbook_form(name, large_digits, generator):
    network, form = CONVOLUTIONAL[name]
    params = random_params(network, generator)
    inputs = jnp.asarray(large_digits.images[:, None])
    f = gf_jax.problems.classification(network, inputs, large_digits.labels).loss
    loss, gradient = jax.jit(jax.value_and_grad(f))(params)
    textbook = functools.partial(reference.convolutional_loss, **form)
    expected, expected_gradient = jax.jit(jax.value_and_grad(textbook))(
        params, inputs, large_digits.labels
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    logits = reference.convolutional_logits(params, inputs, **form)
    # Sums of up to 400 float32 products in another order: a few hundred ulps at worst.
    np.testing.assert_allclose(network.apply(params, inputs), logits, rtol=2e-5, atol=2e-5)
    for ours, theirs in zip(
        jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True
    ):
        # 40 x 784 terms per entry of a first-layer kernel, relative to the largest entry.
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("activation", ["linear", "relu", "leaky_relu"])
def test_fully_connected_equals_numpy(activation, generator):
    network = gf_jax.problems.fully_connected((7, 5, 4, 3), activation)
    params = random_params(network, generator)
    inputs = generator.normal(size=(6, 7)).astype(np.float32)
    slope = {"linear": 1.0, "relu": 0.0, "leaky_relu": 0.01}[activation]
    hidden = inputs
    for layer in ("dense_1", "dense_2"):
        hidden = hidden @ params[layer]["weight"].T
        hidden = np.where(hidden > 0, hidden, slope * hidden)
    expected = hidden @ params["dense_3"]["weight"].T
    # Sums of at most seven float32 products.
    np.testing.assert_allclose(network.apply(params, inputs), expected, rtol=1e-5, atol=1e-6)


def test_more_than_nine_layers_keep_their_order(generator):
    sizes = tuple(range(14, 2, -1))
    network = gf_jax.problems.fully_connected(sizes)
    params = random_params(network, generator)
    inputs = generator.normal(size=(2, 14)).astype(np.float32)
    expected = inputs
    for layer in range(1, len(sizes)):
        expected = expected @ params[f"dense_{layer}"]["weight"].T
    scale = np.abs(expected).max()
    np.testing.assert_allclose(network.apply(params, inputs), expected, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("sizes", [(3,), (3, 0, 2), ()])
def test_bad_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match="sizes: got"):
        gf_jax.problems.fully_connected(sizes)


def test_bad_activation_and_inputs_are_refused():
    with pytest.raises(ValueError, match="activation: got 'sine'"):
        gf_jax.problems.fully_connected((3, 2), "sine")
    with pytest.raises(ValueError, match="inputs: examples of shape"):
        gf_jax.problems.lenet5().apply({}, jnp.zeros((2, 1, 8, 8)))
    with pytest.raises(ValueError, match="inputs, labels: shapes"):
        gf_jax.problems.classification(
            gf_jax.problems.fully_connected((3, 2)), np.zeros((4, 3)), np.zeros(5, int)
        )


def test_accuracy_counts_largest_logits():
    network = gf_jax.problems.fully_connected((2, 2))
    params = {"dense_1": {"weight": jnp.eye(2)}}
    inputs = np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0], [0.0, 3.0]], np.float32)
    accuracy = gf_jax.problems.classification(network, inputs, np.array([0, 1, 1, 1])).accuracy
    assert accuracy(params) == 0.75
