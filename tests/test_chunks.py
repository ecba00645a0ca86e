"""A loss in chunks of examples is the same loss, in less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gf_jax
from experiments.runs import store
from gf_jax.problems import classification, fully_connected, xavier_uniform
from tests.conftest import SMALL

EXAMPLES = 240
INPUTS = np.random.default_rng(0).normal(size=(EXAMPLES, 6)).astype(np.float32)
LABELS = np.arange(EXAMPLES) % 4
NETWORK = fully_connected((6, 50, 4), "tanh")
PARAMS = xavier_uniform(jax.random.key(0), NETWORK.shapes)
WHOLE = classification(NETWORK, INPUTS, LABELS).loss


def product(f):
    """A Hessian-vector product, along the point itself."""
    return lambda params: jax.jvp(jax.grad(f), (params,), (params,))[1]


@pytest.mark.parametrize("derivative", [lambda f: f, jax.grad, product])
@pytest.mark.parametrize("chunk", [1, 24, 240])
def test_sums_are_the_same(chunk, derivative):
    chunked = classification(NETWORK, INPUTS, LABELS, chunk=chunk).loss
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), PARAMS)
        found, expected = (jax.jit(derivative(f))(params) for f in (chunked, WHOLE))
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert one.dtype == jnp.float64
            # Sums of 240 terms of size one in another order.
            np.testing.assert_allclose(one, other, rtol=0, atol=240 * 2.0**-52)


@pytest.mark.parametrize("derivative", [jax.grad, product])
def test_derivatives_take_less_memory(derivative):
    def temporary(f):
        compiled = jax.jit(derivative(f)).lower(PARAMS).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    chunked = classification(NETWORK, INPUTS, LABELS, chunk=12).loss
    # A twentieth of the activations, and twice the gradients at most.
    gradients = 2 * 4 * sum(leaf.size for leaf in jax.tree.leaves(PARAMS))
    assert temporary(chunked) < temporary(WHOLE) / 8 + 2 * gradients
    assert temporary(WHOLE) > EXAMPLES * 50 * 4  # the hidden layer


def test_descent_and_flow_take_chunks():
    chunked = classification(NETWORK, INPUTS, LABELS, chunk=60).loss
    study = {"step_size": 0.2, "iterations": 12, "ratios": (2,), "snapshots": 3}
    found, expected = (gf_jax.compare(f, PARAMS, **study) for f in (chunked, WHOLE))
    assert found.doubts == expected.doubts
    assert (abs(found.distance - expected.distance) <= found.resolution + expected.resolution).all()
    np.testing.assert_allclose(found.predicted, expected.predicted, rtol=1e-3)


@pytest.mark.parametrize("chunk", [0, 7, -3, 480])
def test_examples_that_cannot_be_divided_so_are_refused(chunk):
    with pytest.raises(ValueError, match=rf"chunk: got {chunk}; accepted are divisors.*240: 1, 2"):
        classification(NETWORK, INPUTS, LABELS, chunk=chunk)


def test_the_flag(invoke, tmp_path):
    runs = []
    for name, flags in (("whole", ()), ("parts", ("--chunk=20",))):
        folder = tmp_path / name
        status, _, err = invoke(*SMALL, "--ratios=2", *flags, f"--output_dir={folder}")
        assert status == 0, err
        runs.append(store.read_run(folder).metrics)
    np.testing.assert_allclose(runs[1].loss, runs[0].loss, rtol=1e-5)
    np.testing.assert_allclose(runs[1].distance_to_base, runs[0].distance_to_base, atol=1e-6)
    status, _, err = invoke(*SMALL, "--chunk=7", f"--output_dir={tmp_path / 'never'}")
    assert status == 2
    assert "--chunk: got 7; accepted are divisors of the number of examples, 60: 1, 2" in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "never").exists()
