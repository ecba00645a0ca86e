"""Deep linear networks against what is known of them in closed form."""

import jax
import numpy as np
import pytest

import gf_jax

TIMES = np.linspace(0, 3, 7)


def starts(depth, generator, scale=0.3, number=3):
    """A stack of balanced starts with a scalar output, and their targets."""
    sizes = (4, *[3] * (depth - 1), 1)
    keys = jax.random.split(jax.random.key(depth), number)
    with jax.enable_x64(True):
        params = jax.vmap(lambda key: gf_jax.problems.random_balanced(key, sizes, scale=scale))(
            keys
        )
    return params, generator.normal(size=(number, 1, 4)) / 2


def unbalanced(generator, sizes=(4, 3, 3, 2)):
    return {
        f"dense_{j + 1}": {"weight": generator.normal(size=(sizes[j + 1], sizes[j])) / 2}
        for j in range(len(sizes) - 1)
    }


def test_unbalancedness(generator):
    """By its definition, along the axes of a stack, and with ten layers and more."""
    stack = jax.tree.map(lambda leaf: np.stack([leaf, 2 * leaf]), unbalanced(generator))
    w1, w2, w3 = (stack[f"dense_{j}"]["weight"][0] for j in (1, 2, 3))
    expected = [
        np.linalg.norm(w2.T @ w2 - w1 @ w1.T),
        np.linalg.norm(w3.T @ w3 - w2 @ w2.T),
    ]
    with jax.enable_x64(True):
        values = gf_jax.theory.unbalancedness(stack)
        np.testing.assert_allclose(values, [expected, 4 * np.array(expected)], rtol=1e-13)
        np.testing.assert_allclose(gf_jax.theory.end_to_end(stack)[1], 8 * w3 @ w2 @ w1, rtol=1e-12)
        deep = {f"dense_{j}": {"weight": np.eye(1) * j} for j in range(1, 12)}
        np.testing.assert_allclose(
            gf_jax.theory.unbalancedness(deep), [2 * j + 1 for j in range(1, 11)], rtol=1e-13
        )
    assert gf_jax.theory.unbalancedness({"dense_1": stack["dense_1"]}).shape == (2, 0)


def test_flow_conserves_what_descent_drifts_from(generator):
    start, target = unbalanced(generator), generator.normal(size=(2, 4))
    f = gf_jax.theory.end_to_end_loss(target)
    flow = gf_jax.gradient_flow(f, start, TIMES)
    run = gf_jax.gradient_descent(
        f, start, step_size=0.01, ratios=(2, 4), iterations=300, snapshots=1, arithmetic="float64"
    )

    def differences(params):
        weights = [np.asarray(params[f"dense_{j}"]["weight"]) for j in (1, 2, 3)]
        return [
            np.swapaxes(b, -1, -2) @ b - a @ np.swapaxes(a, -1, -2)
            for a, b in ((weights[0], weights[1]), (weights[1], weights[2]))
        ]

    before, flowing, descending = map(differences, (start, flow.params, run.snapshots))
    for initial, conserved, drifting in zip(before, flowing, descending, strict=True):
        # Weights of size one, known to the error of the flow.
        np.testing.assert_allclose(conserved, initial[None] + 0 * conserved, atol=1e-7)
        drift = np.linalg.norm(drifting[0] - initial, axis=(-2, -1))
        assert drift[0] > 1e-4
        # Step sizes whose second order is a few hundredths of the first.
        np.testing.assert_allclose(np.log2(drift[:-1] / drift[1:]), 1, atol=0.05)


@pytest.mark.parametrize(
    "depth", [1, 3, *(pytest.param(n, marks=pytest.mark.long) for n in (2, 4))]
)
def test_the_flow_of_a_balanced_network_is_that_of_its_end_to_end_vector(depth, generator):
    params, target = starts(depth, generator)
    flow = gf_jax.gradient_flow(gf_jax.theory.end_to_end_loss(target), params, TIMES)
    with jax.enable_x64(True):
        vectors = np.asarray(gf_jax.theory.end_to_end(flow.params))[..., 0, :]
    reduced = gf_jax.theory.end_to_end_flow(vectors[0], target[:, 0], TIMES, depth=depth)
    assert reduced.params.shape == (7, 3, 4)
    np.testing.assert_allclose(reduced.params, vectors, atol=1e-7)  # tolerance 1e-8 a step
    np.testing.assert_allclose(reduced.loss, flow.loss, atol=1e-7)
    assert np.abs(vectors[-1] - vectors[0]).max() > 0.1


def test_two_layers_aligned_with_the_target_follow_the_logistic_curve(generator):
    target = generator.normal(size=5)
    size, initial = np.linalg.norm(target), 0.01
    reduced = gf_jax.theory.end_to_end_flow(initial * target / size, target, TIMES, depth=2)
    expected = size / (1 + (size / initial - 1) * np.exp(-2 * size * TIMES))
    np.testing.assert_allclose(
        reduced.params, expected[:, None] * target / size, atol=1e-7
    )  # tolerance 1e-8 a step
    assert expected[-1] > 0.5 * size


@pytest.mark.parametrize("depth", [2, 3])
def test_the_opposite_start_falls_to_zero_and_zero_stays(depth, generator):
    target = generator.normal(size=5)
    start = np.stack([-0.01 * target, 0 * target])
    w = gf_jax.theory.end_to_end_flow(start, target, TIMES, depth=depth).params
    norms = np.linalg.norm(w[:, 0], axis=-1)
    assert (np.diff(norms) < 0).all()
    np.testing.assert_array_equal(w[:, 1], 0)


def test_a_depth_that_is_not_accepted():
    with pytest.raises(ValueError, match="depth: got 0"):
        gf_jax.theory.end_to_end_flow([1.0], [1.0], [1.0], depth=0)
