"""Run as a program on two virtual devices: one without float64, as it were, and its host."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

import gf_jax
from experiments.benchmark.measuring import fresh_executables
from gf_jax.program import arithmetic

DEVICE, HOST = jax.devices("cpu")
TIMES, SIZES = [0.1, 0.3], [0.02, 0.01]


def problem(place):
    """Losses of data that lie where ``place`` puts them, a start, and batches."""
    draws = np.random.default_rng(0).normal(size=(3, 6, 4)).astype(np.float32)
    inputs, targets, start = place(draws[0]), place(draws[1][:, 0]), place(draws[2][0] / 2)

    def f(w):
        return jnp.mean((jnp.tanh(inputs @ w) - targets) ** 2)

    def of_batch(w, index):
        return (jnp.tanh(inputs[index] @ w) - targets[index]) ** 2

    def with_kinks(w):
        return jnp.mean((jax.nn.relu(inputs @ w) - targets) ** 2)

    return f, with_kinks, start, gf_jax.Batches(of_batch, 6)


def solved(place):
    """Everything that is solved in float64, of a problem of its own."""
    f, with_kinks, start, batches = problem(place)
    stack = jnp.stack([start, 2 * start])
    found = [
        gf_jax.gradient_flow(f, start, TIMES),
        gf_jax.predict(f, start, TIMES, SIZES),
        gf_jax.predict(f, start, TIMES, SIZES, batches=batches),
        gf_jax.central_flow(f, start, TIMES, 0.02),
        gf_jax.gradient_flow(with_kinks, start, TIMES),
        gf_jax.predict(with_kinks, start, TIMES, SIZES),
        gf_jax.curvature(f, stack),
        gf_jax.theory.defects(f, stack, 0.1),
    ]
    arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(found)]
    return [array for array in arrays if array.dtype == np.float64]


def main():
    expected = solved(jnp.asarray)
    elsewhere = {"WITHOUT_FLOAT64": ("cpu",), "host": lambda: HOST}
    for place in (jnp.asarray, lambda array: jax.device_put(array, DEVICE)):
        jax.clear_caches()
        with mock.patch.multiple(arithmetic, **elsewhere), fresh_executables() as programs:
            found = solved(place)
        # The same programs on a like device: the same bits.
        assert len(found) == len(expected) > 10
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        of_float64 = [p for p in programs if "f64[" in p.hlo_modules()[0].to_string()]
        assert len(of_float64) > 10
        assert {d for program in of_float64 for d in program.local_devices()} == {HOST}
        with mock.patch.multiple(arithmetic, **elsewhere):
            f, _, start, _ = problem(place)
            schedule = gf_jax.Schedule(0.02, (2,), iterations=4)
            _, state = next(gf_jax.resumable_segments(f, start, schedule))
        assert {device for leaf in state for device in leaf.devices()} == {DEVICE}
    with mock.patch.multiple(arithmetic, WITHOUT_FLOAT64=("cpu",), host=lambda: None):
        assert arithmetic.flow_arithmetic().dtype == "float32"


if __name__ == "__main__":
    main()
