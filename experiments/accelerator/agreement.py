"""Whether numbers of the device are right: products, sums, gradients, gaps, flows."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

import gf_jax
from experiments.accelerator.bench import Bench, Place, place
from experiments.accelerator.rows import MEASURED, Row, at_most, left_out
from experiments.benchmark.workload import FORMS, STEP_SIZE
from gf_jax.program.arithmetic import ARITHMETICS, Arithmetic
from gf_jax.program.program import prepare

# Relative errors, in Euclidean norm. Sums of 1,024 terms in float32 are off by 8e-7 at most if
# they are added one by one; products of three bfloat16 parts, the nearest worse, by 6e-6.
PRODUCT = 2e-6
DOUBLE = 1e-13  # likewise in float64, with room; products of float32 parts are off by 1e-7
GRADIENT = 2e-5  # a tenth of what TF32 does to a single product
SUM = 1e-6  # an ulp or two of each weight's movement; what is lost without compensation is all
GAP = 1e-3  # ten times what float32 gradients have cost on CPUs
BITS = {"TF32": 11, "bfloat16": 8}  # of a significand, the leading one included
TIMES = 100 * STEP_SIZE * np.array([0.1, 0.3, 1.0])  # of the flow
STEPS, FRACTION = 4096, 2.0**-27  # updates, each a sixteenth of an ulp of weights just above 1


def products(bench: Bench) -> Iterator[Row]:
    """The error of a matrix product, in every arithmetic."""
    size = bench.limits.product
    yield product_row("full float32", multiply(ARITHMETICS["compensated"]), size)
    named = "the same as full: no TF32 here" if bench.on_cpu else "of --arithmetic=tf32"
    for name, numbers, note in (
        ("tf32", ARITHMETICS["tf32"], named),
        ("as JAX takes it by default", Arithmetic("float32", products="default"), ""),
    ):
        error = product_error(multiply(numbers), size)
        yield Row(f"product, {name}", error, note=note)


def product_row(name: str, product: Callable[[Any, Any], Any], size: int) -> Row:
    """The row of a product that is to be in full float32, beside those of fewer digits."""
    others = [
        f"{other} {product_error(lambda a, b, n=n: rounded(a, n) @ rounded(b, n), size):.0e}"  # type: ignore[misc]
        for other, n in BITS.items()
    ]
    return at_most(
        f"product, {name}", product_error(product, size), PRODUCT, "others: " + ", ".join(others)
    )


def product_error(product: Callable[[Any, Any], Any], size: int, dtype: type = np.float32) -> float:
    """How far a product of two square matrices is from float64, relative, in Frobenius norm."""
    left, right = np.random.default_rng(0).normal(size=(2, size, size)).astype(dtype)
    exact = left.astype(np.float64) @ right.astype(np.float64)
    return off(np.asarray(product(left, right), np.float64), exact)


def off(found: Any, exact: Any) -> float:
    """Euclidean distance of two trees over the norm of the second."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True)
    apart = np.sqrt(sum(np.sum(np.square(np.asarray(a, np.float64) - b)) for a, b in pairs))
    return float(apart / np.sqrt(sum(np.sum(np.square(b)) for b in jax.tree.leaves(exact))))


def rounded(array: Float[np.ndarray, "..."], bits: int) -> Float[np.ndarray, "..."]:
    """Numbers with so many bits, in float64."""
    significand, exponent = np.frexp(array.astype(np.float64))
    return np.ldexp(np.round(significand * 2.0**bits), exponent - bits)


def multiply(numbers: Arithmetic) -> Callable[[Any, Any], Any]:
    """The product on the default device in an arithmetic."""

    def product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        with numbers.context():
            return np.asarray(jax.jit(jnp.matmul)(left, right))

    return product


def compensation(bench: Bench) -> Iterator[Row]:
    """Whether the compiled engine keeps updates that are far below an ulp; exact in binary."""
    for name in ("compensated", "float32"):
        run = gf_jax.gradient_descent(
            jnp.sum,
            np.full(3, 2.0, np.float32),
            step_size=FRACTION,
            ratios=(),
            iterations=STEPS,
            arithmetic=name,
        )
        exact = np.sqrt(3) * FRACTION * STEPS
        error = abs(float(run.metrics.distance_from_init[-1, 0]) / exact - 1)
        label = f"sum of {STEPS:,} updates of 1/16 ulp, {name}"
        if name == "compensated":
            yield at_most(label, error, SUM)
        else:
            yield Row(label, error, note="1 is: all are lost")


def gradients(bench: Bench) -> Iterator[Row]:
    """The gradient at the start of every network, against float64 on the CPU."""
    for network in bench.settings.networks:
        study = bench.workload(network).study
        exact = gradient(place(study, bench.cpu), "float64")
        found = gradient(place(study, bench.device), "compensated")
        yield at_most(f"gradient, {network}", off(found, exact), GRADIENT)


def gradient(there: Place, arithmetic: str) -> Any:
    """The gradient at the start in an arithmetic, as NumPy arrays."""
    numbers = ARITHMETICS[arithmetic]
    with jax.default_device(there.device):
        program = prepare(there.f, there.params, products=numbers.products)
        with numbers.context():
            found = jax.jit(program.pure.gradient)(program.data, numbers.cast(there.params))
            return jax.tree.map(np.asarray, found)


def gaps(bench: Bench) -> Iterator[Row]:
    """Gaps of the first network, against float64 on the CPU."""
    exact, where = bench.exact, bench.settings.networks[0]
    done, note = bench.gaps(bench.device, "compensated", len(exact)), "float64 on the CPU"
    yield gap_row(where, "", done, exact, note)
    if not bench.on_cpu:
        on_cpu = bench.gaps(bench.cpu, "compensated", len(exact))
        yield gap_row(where, ", on the CPU", on_cpu, exact, note)
        yield gap_row(where, ", device against CPU", done, on_cpu, "both compensated")


def gap_row(network: str, what: str, found: np.ndarray, exact: np.ndarray, note: str) -> Row:
    """The row of the largest relative error of gaps, as far as both are known.

    Kinks magnify rounding without a limit that is known, so a network that has some is not judged.
    """
    error, iterations = gap_error(found, exact)
    name, note = f"gaps, {network}{what}", f"{iterations:,} base iterations, against {note}"
    if FORMS[network].rectified:
        return Row(name, error, note=f"{note}; kinks magnify rounding")
    return at_most(name, error, GAP, note)


def gap_error(found: np.ndarray, exact: np.ndarray) -> tuple[float, int]:
    """The largest relative error of gaps, and of how many base iterations."""
    both = min(len(found), len(exact))
    wrong = np.abs(found[:both, 1:] / exact[:both, 1:] - 1)
    return (float(wrong.max()) if wrong.size else 0.0), both


def rounding(bench: Bench) -> Iterator[Row]:
    """How far gaps are off in plain float32, and with TF32 products."""
    where, exact = bench.settings.networks[0], bench.exact
    for name in ("float32", "tf32"):
        label = f"gaps, {where}, {name}"
        if name == "tf32" and bench.device.platform in ("cpu", "tpu"):
            yield left_out(label, f"no TF32 on a {bench.device.platform}: the same as float32")
            continue
        error, done = gap_error(bench.gaps(bench.device, name, len(exact)), exact)
        yield Row(label, error, state=MEASURED, note=f"the largest error in {done:,} iterations")


def float64(bench: Bench) -> Iterator[Row]:
    """Whether float64 is float64 on the device, and flows are those of the CPU."""
    if bench.device.platform == "tpu":
        yield left_out("product, float64", "a TPU has none")
    else:
        numbers, size = ARITHMETICS["float64"], bench.limits.product
        yield at_most(
            "product, float64", product_error(multiply(numbers), size, np.float64), DOUBLE
        )
    where, study = bench.settings.networks[0], bench.first.study
    found = flow(place(study, bench.device), None)
    exact = flow(place(study, bench.cpu), 1e-10)
    distances = np.sqrt(
        sum(
            np.sum(np.square(a - b).reshape(len(a), -1), axis=1)
            for a, b in zip(*map(jax.tree.leaves, (found.params, exact.params)), strict=True)
        )
    )
    told = found.error + exact.error
    yield at_most(
        f"flow, {where}, distance over the error that is told",
        float((distances / told).max()),
        1.0,
        note=f"against the CPU with a tolerance of 1e-10; told are {told.max():.1e}",
    )


def flow(there: Place, tolerance: float | None) -> gf_jax.Flow:
    """Gradient flow on a device."""
    with jax.default_device(there.device):
        return gf_jax.gradient_flow(there.f, there.params, TIMES, tolerance=tolerance)
