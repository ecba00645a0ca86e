"""Stacks that are too large for memory, and studies of which the snapshots are."""

import errno
import mmap
import os
import tempfile
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gf_jax
from gf_jax import stacks
from gf_jax.comparison import precise_distance, precision_of
from gf_jax.descent.gathering import Gathering

MIB = 2**20
POINT = {"a": np.zeros((3, 2), np.float32), "b": np.zeros((), np.float64)}


def on_disk(tree):
    return all(isinstance(leaf.base, mmap.mmap) for leaf in jax.tree.leaves(tree))


@pytest.fixture
def small(monkeypatch):
    """Every stack is large, and a block is of one time."""
    monkeypatch.setattr(stacks, "LARGE", 0)
    monkeypatch.setattr(stacks, "BLOCK", 1)


def random_stack(times, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "a": rng.normal(size=(times, 4, 5, 3)).astype(np.float32),
        "b": rng.normal(size=(times, 4)),
    }


def test_a_large_stack_lies_in_a_file_without_a_name(small, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    stack = stacks.empty(POINT, 4)
    assert on_disk(stack)
    assert not any(tmp_path.iterdir())
    values = {"a": np.arange(12.0).reshape(2, 3, 2), "b": np.array([5.0, 6.0])}
    stacks.put(stack, slice(1, 3), values)
    np.testing.assert_array_equal(stack["a"][1:3], values["a"])
    np.testing.assert_array_equal(stack["b"], [0, 5, 6, 0])


def test_a_small_stack_lies_in_memory():
    stack = stacks.empty(POINT, 4)
    assert [leaf.base for leaf in jax.tree.leaves(stack)] == [None, None]
    assert stack["a"].shape == (4, 3, 2)
    assert stack["b"].dtype == np.float64


def test_of_no_times_there_is_an_empty_block():
    """As of runs that diverge before the first snapshot."""
    found = stacks.along(lambda stack: {"c": 2 * stack["a"]}, random_stack(0))
    assert found["c"].shape == (0, 4, 5, 3)
    assert precise_distance(random_stack(0), random_stack(0), 2).shape == (0, 4)


def test_a_full_disk_is_told_in_one_line(small, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"GiB of snapshots have no room in .* TMPDIR"):
        stacks.empty(POINT, 4)


def references(stack):
    full = jax.tree.map(lambda leaf: np.roll(leaf, 1, axis=0), stack)
    yield full
    yield jax.tree.map(lambda leaf: leaf[:, :1], full)
    yield jax.tree.map(lambda leaf: leaf[:1], full)
    yield jax.tree.map(lambda leaf: leaf[0], full)
    yield jax.tree.map(lambda leaf: leaf[0, 0], full)


@pytest.mark.parametrize("length", [1, 3, 7])
def test_distances_in_blocks_are_the_same_to_the_last_bit(length, monkeypatch):
    stack = random_stack(7)
    whole = [precise_distance(stack, other, 2) for other in references(stack)]
    rounding = precision_of(stack)
    # Of the stack and a reference that is repeated at all times.
    monkeypatch.setattr(stacks, "BLOCK", length * 2 * (4 * 15 * 4 + 4 * 8))
    for other, expected in zip(references(stack), whole, strict=True):
        np.testing.assert_array_equal(precise_distance(stack, other, 2), expected)
    np.testing.assert_array_equal(precision_of(stack), rounding)


def test_a_distance_takes_the_memory_of_few_blocks(monkeypatch):
    monkeypatch.setattr(stacks, "LARGE", MIB)
    monkeypatch.setattr(stacks, "BLOCK", MIB)
    stack = stacks.empty({"w": np.zeros(2**15, np.float32)}, 256)  # 32 MiB
    assert on_disk(stack)
    stack["w"][...] = 1.0
    tracemalloc.start()
    found = precise_distance(stack, {"w": np.zeros(2**15, np.float32)}, 1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_array_equal(found, np.full(256, 2**7.5))
    # A block is half of both stacks; in float64 it is twice as large, as are a difference,
    # its square and the other's copy.
    assert peak < 5 * MIB


def f(params):
    hidden = jnp.tanh(params["a"] @ jnp.linspace(-1, 1, 3))
    return jnp.sum((hidden - jnp.array([0.3, -0.5])) ** 2) + 0.1 * jnp.sum(params["b"] ** 4)


START = {
    "a": np.array([[0.5, -1.0, 0.3], [0.2, 0.4, -0.7]], np.float32),
    "b": np.array([0.8, -0.6], np.float32),
}
STUDY = {"step_size": 0.1, "iterations": 24, "ratios": (2, 4), "snapshots": 6}


def test_segments_are_gathered_as_they_are_joined(small):
    schedule = gf_jax.Schedule(0.1, (2,), 24, snapshots=6, segments=12)
    parts = list(gf_jax.descent_segments(f, START, schedule))
    joined, gathered = gf_jax.join(parts), Gathering(schedule, parts).trajectory()
    assert on_disk(gathered.snapshots)
    for one, other in zip(jax.tree.leaves(joined), jax.tree.leaves(gathered), strict=True):
        np.testing.assert_array_equal(one, other)
    cut = Gathering(schedule, parts[:5]).trajectory()
    assert cut.snapshot_iterations.tolist() == [4, 8]
    np.testing.assert_array_equal(cut.snapshots["a"], joined.snapshots["a"][:2])


def test_a_study_on_the_disk_is_the_study_in_memory(monkeypatch):
    here = gf_jax.compare(f, START, **STUDY)
    monkeypatch.setattr(stacks, "LARGE", 0)
    monkeypatch.setattr(stacks, "BLOCK", 1)
    there = gf_jax.compare(f, START, **STUDY)
    assert on_disk((there.snapshots, there.flow))
    for one, other in zip(
        jax.tree.leaves((here.run.metrics, here.snapshots)),
        jax.tree.leaves((there.run.metrics, there.snapshots)),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    # Flows are solved in other steps, and differ by no more than both say.
    error = here.run.reference.flow_error + there.run.reference.flow_error
    assert (precise_distance(here.flow, there.flow, 1) <= error).all()
    assert (abs(here.distance - there.distance) <= here.resolution + there.resolution).all()
    assert (abs(here.predicted - there.predicted) <= here.predicted_error).all()
    assert (there.run.reference.flow_error > 0).all()


def test_a_flow_in_blocks_takes_the_steps_of_one_call(monkeypatch):
    """Blocks may be shorter than any step; cut at their ends, two tolerances would tell nothing."""
    at, data = np.linspace(0, 3, 9), jnp.array([0.125, 1.0, 5.0])
    flows = []
    for block in (stacks.BLOCK, 1):
        monkeypatch.setattr(stacks, "BLOCK", block)
        flows.append(gf_jax.gradient_flow(lambda w: w @ (data * w) / 2, np.ones(3), at))
    exact = np.exp(-np.outer(at, data))
    for flow in flows:
        np.testing.assert_allclose(flow.params, exact, atol=flow.error.max(), rtol=0)
        # The same steps: what is left is the rounding of some fifty stages.
        np.testing.assert_allclose(flow.params, flows[0].params, atol=1e-14, rtol=0)
        np.testing.assert_allclose(flow.error, flows[0].error, atol=1e-14, rtol=0)
    whole, blocks = (flow.statistics.steps for flow in flows)
    assert whole < blocks <= whole + len(at)  # one is taken again at every seam


def test_a_flow_in_blocks_that_ends_early_is_no_number(small):
    flow = gf_jax.gradient_flow(lambda w: -jnp.sum(w**4), np.ones(2), [0.05, 0.1, 0.5, 1.0])
    assert not flow.statistics.complete  # w is infinite at time 1/8
    reached = np.isfinite(flow.params).all(axis=1)
    assert reached.tolist() == [True, True, False, False]
    np.testing.assert_allclose(flow.params[:2, 0], (1 - 8 * flow.times[:2]) ** -0.5, rtol=1e-6)
