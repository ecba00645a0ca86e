import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gf_jax


@pytest.fixture
def stack(generator):
    """Three snapshots of two lanes of a tree with a scalar, a vector and a matrix."""
    shapes = {"a": (), "b": {"weight": (4, 3), "bias": (4,)}}
    return jax.tree.map(
        lambda shape: generator.normal(size=(3, 2, *shape)),
        shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def flat(tree, *index):
    return np.concatenate([np.ravel(leaf[index]) for leaf in jax.tree.leaves(tree)])


def test_distance_runs_over_all_parameters_of_every_point(stack):
    base = jax.tree.map(lambda leaf: leaf[:, :1], stack)
    distances = gf_jax.distance(stack, base, stack_axes=2)
    assert distances.shape == (3, 2)
    for snapshot in range(3):
        for lane in range(2):
            expected = np.linalg.norm(flat(stack, snapshot, lane) - flat(stack, snapshot, 0))
            np.testing.assert_allclose(distances[snapshot, lane], expected, rtol=1e-6)
    assert not np.asarray(distances[:, 0]).any()


def test_distance_to_one_point_and_between_two_points(stack):
    point = jax.tree.map(lambda leaf: leaf[1, 0], stack)
    other = jax.tree.map(lambda leaf: leaf[2, 1], stack)
    distances = gf_jax.distance(stack, point, stack_axes=2)
    assert distances[1, 0] == 0
    np.testing.assert_allclose(distances[2, 1], gf_jax.distance(other, point), rtol=1e-6)


def test_float32_distance_is_accurate_for_many_parameters(generator):
    start = generator.normal(size=400_000).astype(np.float32)
    end = (start + 1e-3 * generator.normal(size=start.size)).astype(np.float32)
    exact = np.linalg.norm(end.astype(np.float64) - start)
    # Random errors of 4e5 additions grow as their root: 632 half ulps, about 4e-5.
    np.testing.assert_allclose(gf_jax.distance({"w": end}, {"w": start}), exact, rtol=4e-5)


@pytest.mark.parametrize(
    ("reference", "axes", "message"),
    [
        ({"v": jnp.zeros(3)}, 1, "differs from that of params"),
        ({"w": jnp.zeros(2)}, 1, r"reference\['w'\]: shape \(2,\) does not match \(2, 3\)"),
        ({"w": jnp.zeros(())}, 1, "does not match"),
        ({"w": jnp.zeros((5, 3))}, 1, "does not match"),
        ({"w": jnp.zeros((1, 2, 3))}, 1, "does not match"),
        ({"w": jnp.zeros((2, 1))}, 1, "does not match"),
        ({"w": jnp.zeros(3)}, 3, "has no 3 stack axes"),
    ],
)
def test_mismatched_references_are_refused(reference, axes, message):
    with pytest.raises(ValueError, match=message):
        gf_jax.distance({"w": jnp.ones((2, 3))}, reference, stack_axes=axes)
