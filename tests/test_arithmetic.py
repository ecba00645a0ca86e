import os
import subprocess
import sys
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gf_jax
from gf_jax.program.arithmetic import two_sum

STEPS = 4096


def slope(params):
    """Constant gradient of one: every update is the step size."""
    return jnp.sum(params["x"])


@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e9])
def test_what_rounding_drops_is_exact(scale, generator):
    a, b = generator.normal(size=(2, 500)).astype(np.float32)
    b = np.float32(scale) * b
    total, dropped = jax.jit(two_sum)(a, b)
    for x, y, s, e in zip(*map(np.asarray, (a, b, total, dropped)), strict=True):
        assert Fraction(float(s)) + Fraction(float(e)) == Fraction(float(x)) + Fraction(float(y))
    assert np.asarray(dropped).any()


def descend_below_an_ulp(arithmetic):
    """4096 updates of a sixteenth of an ulp each: 2^-15 in all."""
    return gf_jax.gradient_descent(
        slope,
        {"x": np.full(3, 2.0, np.float32)},
        step_size=2.0**-27,
        ratios=(2,),
        iterations=STEPS,
        arithmetic=arithmetic,
    ).metrics


def test_the_compiled_engine_keeps_updates_far_below_an_ulp():
    """Fails if a compiler ever cancels the compensation; every number is exact in binary."""
    expected = np.sqrt(3) * 2.0**-27 * np.arange(STEPS + 1)
    metrics = descend_below_an_ulp("compensated")
    # The norm is rounded a few times.
    np.testing.assert_allclose(metrics.distance_from_init[:, 0], expected, rtol=5e-7)
    np.testing.assert_allclose(metrics.distance_from_init[:, 1], expected, rtol=5e-7)
    assert not metrics.distance_to_base.any()
    np.testing.assert_allclose(
        descend_below_an_ulp("float64").distance_from_init[:, 0], expected, rtol=1e-12, atol=1e-15
    )
    assert not descend_below_an_ulp("float32").distance_from_init.any()


def test_a_compiler_that_cancels_the_compensation_is_noticed():
    program = (
        "import gf_jax, jax.numpy as jnp\n"
        "run = lambda a: gf_jax.gradient_descent(jnp.sum, jnp.ones(3), step_size=0.1, ratios=(),"
        " iterations=1, arithmetic=a)\n"
        "run('float32')\n"
        "try: run('compensated')\n"
        "except FloatingPointError as error: print(error)\n"
    )
    environment = os.environ | {"XLA_FLAGS": "--xla_cpu_enable_fast_math=true"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert "reorders additions" in done.stdout
    assert "XLA_FLAGS" in done.stdout


def test_gaps_agree_with_float64(smooth_problem):
    f, start = smooth_problem
    options = {"step_size": 0.002, "ratios": (2, 20), "iterations": 100}
    gaps = {
        arithmetic: gf_jax.gradient_descent(
            f, start, **options, arithmetic=arithmetic
        ).metrics.distance_to_base[-1, 1:]
        for arithmetic in ("compensated", "float32", "float64")
    }
    assert gaps["float64"].dtype == np.float64
    # Gradients are rounded to float32, in random directions: 1e-7 of a distance of order one
    # over gaps of order 1e-4 each.
    np.testing.assert_allclose(gaps["compensated"], gaps["float64"], rtol=1e-3)
    plain = np.abs(gaps["float32"] / gaps["float64"] - 1)
    ours = np.abs(gaps["compensated"] / gaps["float64"] - 1)
    assert plain[1] > 10 * ours[1]


def test_nothing_global_is_set(small_problem):
    f, start = small_problem
    schedule = gf_jax.Schedule(0.1, (2,), 4, segments=2)
    for _ in gf_jax.descent_segments(f, start, schedule, arithmetic="float64"):
        assert jnp.ones(1).dtype == jnp.float32  # between segments too
    gf_jax.gradient_flow(f, start, [0.1], tolerance=1e-3)
    assert jnp.ones(1).dtype == jnp.float32
    assert jax.config.jax_default_matmul_precision is None


@pytest.mark.parametrize(
    ("arithmetic", "message"),
    [
        ("half", "arithmetic: got 'half'; accepted are compensated"),
        pytest.param(
            "tf32",
            "tf32 products exist on GPUs only",
            marks=pytest.mark.skipif(jax.default_backend() != "cpu", reason="GPUs have them"),
        ),
    ],
)
def test_arithmetic_that_cannot_be_had_is_refused(arithmetic, message):
    options = {"step_size": 0.1, "ratios": (), "iterations": 1}
    with pytest.raises(ValueError, match=message):
        gf_jax.gradient_descent(slope, {"x": np.ones(2)}, **options, arithmetic=arithmetic)


@pytest.mark.parametrize(
    ("arithmetic", "precision"), [("compensated", "HIGHEST,"), ("tf32", "HIGH,")]
)
def test_products_have_the_precision_of_the_arithmetic(arithmetic, precision, small_problem):
    from gf_jax.program.arithmetic import ARITHMETICS
    from gf_jax.program.program import prepare

    f, start = small_problem
    pure, data, *_ = prepare(f, start, products=ARITHMETICS[arithmetic].products)
    program = str(jax.make_jaxpr(pure.gradient)(data, start))
    products = program.count("dot_general")
    assert products == program.count(f"precision=(Precision.{precision}") > 0
