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


def lanes_at(distances, start):
    """Snapshots of lanes at given distances from a flow that stays at ``start``."""
    directions = np.eye(start.size)[: len(distances[0])]
    return {"w": start + np.array(distances)[..., None] * directions}


def test_comparison_with_a_flow():
    step_sizes = np.array([0.4, 0.2, 0.1])
    distances = [step_sizes, 3 * step_sizes**2]
    start = np.array([1.0, -2.0, 0.5, 8.0])
    flow = {"w": np.stack([start, start])}
    compared = gf_jax.compare_with_flow(
        lanes_at(distances, start), flow, np.array([1e-6, 0.0]), step_sizes
    )
    np.testing.assert_allclose(compared.distance, distances, rtol=1e-12)
    np.testing.assert_allclose(compared.order, [1, 2], rtol=1e-12)
    assert compared.measured.all()
    np.testing.assert_allclose(compared.resolution[0], 1e-6, rtol=1e-6)


def test_a_distance_near_the_error_of_the_flow_is_not_measured():
    start = np.array([1.0, -2.0, 0.5, 8.0])
    flow = {"w": start[None]}
    snapshots = lanes_at([[0.4, 0.2, 0.1]], start)
    compared = gf_jax.compare_with_flow(snapshots, flow, np.array([0.015]), [0.4, 0.2, 0.1])
    assert compared.measured.tolist() == [[True, True, False]]
    np.testing.assert_allclose(compared.order, [1.0], rtol=1e-12)
    one = gf_jax.compare_with_flow(snapshots, flow, np.array([0.03]), [0.4, 0.2, 0.1])
    assert one.measured.tolist() == [[True, False, False]]
    assert np.isnan(one.order).all()
    unknown = gf_jax.compare_with_flow(snapshots, flow, np.array([np.nan]), [0.4, 0.2, 0.1])
    assert not unknown.measured.any()


def test_rounding_of_snapshots_counts_as_an_error(generator):
    exact = generator.normal(size=(1, 2, 50_000))
    snapshots = {"w": exact.astype(np.float32)}
    true = np.linalg.norm(exact - snapshots["w"], axis=-1)
    compared = gf_jax.compare_with_flow(snapshots, {"w": exact[:, 0]}, np.zeros(1), [0.2, 0.1])
    # The root mean square of 50,000 roundings is known to a percent.
    np.testing.assert_allclose(compared.resolution, true, rtol=0.02)
    assert compared.measured.tolist() == [[False, True]]
    diverged = {"w": np.where(np.arange(2)[:, None] == 1, np.nan, snapshots["w"])}
    compared = gf_jax.compare_with_flow(diverged, {"w": exact[:, 0]}, np.zeros(1), [0.2, 0.1])
    assert not compared.measured[0, 1]
