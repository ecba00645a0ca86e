"""Run as a program on eight virtual devices: spread runs equal those on a single device."""

import re

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import gf_jax
from gf_jax.program.program import prepare

SCHEDULE = gf_jax.Schedule(0.1, (2,), 6, snapshots=3, segments=2)
# Sums over examples are taken in another order: a few ulps of a gradient of size one, times
# step size 0.1, in each of at most 12 steps.
TOLERANCE = {"rtol": 1e-5, "atol": 2e-6}
PROGRAMS = []


def keep_programs(compile_ahead):
    """Keeps the text of every program that is compiled ahead of its run."""

    def compile_and_keep(lowered, *arguments, **options):
        compiled = compile_ahead(lowered, *arguments, **options)
        PROGRAMS.append(compiled.as_text())
        return compiled

    return compile_and_keep


def run(f, params, **options):
    """The trajectory, what it needs, and the operations between devices in its program."""
    needed = []
    parts = gf_jax.descent_segments(f, params, SCHEDULE, check_memory=needed.append, **options)
    trajectory = gf_jax.join(list(parts))
    return trajectory, needed[0], set(re.findall(r" (all-\w+|collective-\w+)\(", PROGRAMS[-1]))


def assert_close(ours, expected):
    for a, b in ((ours.metrics, expected.metrics), (ours.snapshots, expected.snapshots)):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **TOLERANCE), a, b)


def main():
    assert jax.device_count() == 8
    jax.stages.Lowered.compile = keep_programs(jax.stages.Lowered.compile)
    mesh = Mesh(np.array(jax.devices()), ("devices",))
    split = NamedSharding(mesh, PartitionSpec("devices"))
    everywhere = NamedSharding(mesh, PartitionSpec())

    network = gf_jax.problems.fully_connected((64, 12, 8, 10), "relu")
    generator = np.random.default_rng(7)
    inputs = generator.normal(size=(48, 64)).astype(np.float32)
    labels = generator.integers(0, 10, 48)
    f = gf_jax.problems.classification(network, inputs, labels).loss
    points = [
        gf_jax.problems.xavier_uniform(jax.random.key(seed), network.shapes) for seed in range(8)
    ]
    starts = jax.tree.map(lambda *leaves: np.stack(leaves), *points)
    single, on_one, _ = run(f, starts, starts=True)

    by_starts, on_each, between = run(f, starts, starts=True, sharding=split)
    assert_close(by_starts, single)
    assert between == set()  # starts never meet
    assert (on_one.devices, on_each.devices) == (1, 8)
    assert on_each.device < on_one.device / 4  # an eighth, and the whole of the data

    placed = (jax.device_put(array, split) for array in (inputs, labels))
    spread = gf_jax.problems.classification(network, *placed).loss
    by_examples, _, between = run(spread, points[0], sharding=everywhere)
    first = jax.tree.map(lambda leaf: leaf[:, 0], (single.metrics, single.snapshots))
    assert_close(by_examples, single._replace(metrics=first[0], snapshots=first[1]))
    assert between == {"all-reduce"}  # of gradients; the data are never gathered
    constants = prepare(spread, points[0]).data
    whole = [c for c in constants if c.addressable_shards[0].data.size == c.size]
    # What f itself makes of nothing, such as the numbers of the examples, is everywhere.
    assert len(whole) < len(constants)
    assert all(constant.size <= len(labels) for constant in whole)

    three = jax.tree.map(lambda leaf: leaf[:3], starts)
    with pytest.raises(ValueError, match=r"sharding: .* does not divide a parameter"):
        run(f, three, starts=True, sharding=split)


if __name__ == "__main__":
    main()
