"""This engine as an implementation, and the matrix products in it measured alone."""

import collections
import functools
import operator
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

import gf_jax
from experiments.benchmark.workload import STEP_SIZE, Implementation, Workload, wait
from gf_jax.problems.networks import Params
from gf_jax.program.arithmetic import ARITHMETICS

BATCHES, BATCH_SECONDS = 5, 0.02  # of calls, in which a product is measured


class Products(NamedTuple):
    """The matrix products of one base iteration of all runs.

    Attributes:
      flops: floating-point operations, an addition and a multiplication per term.
      seconds: time of all of them, each measured alone.
    """

    flops: float
    seconds: float


class Product(NamedTuple):
    """A matrix product, up to the values of its operands.

    Attributes:
      left: shape of the left operand.
      right: shape of the right operand.
      dimensions: contracting and batch dimensions, as ``lax.dot_general`` takes them.
    """

    left: tuple[int, ...]
    right: tuple[int, ...]
    dimensions: Any

    @property
    def flops(self) -> float:
        """Two operations for each pair of entries that are multiplied."""
        (_, contracted), (_, batch) = self.dimensions
        free = [n for axis, n in enumerate(self.right) if axis not in (*contracted, *batch)]
        return 2.0 * float(np.prod(self.left)) * float(np.prod(free))


def engine(workload: Workload, calls: int) -> Implementation:
    """This engine in compensated arithmetic; a unit of work is one compiled call.

    Its calls continue one run rather than start anew, at the same cost; the parameters
    returned are those after the first, of the first starting point.

    Args:
      workload: the runs.
      calls: how many may be asked for.
    """
    schedule = gf_jax.Schedule(
        STEP_SIZE,
        workload.ratios,
        iterations=workload.iterations * calls,
        snapshots=(workload.iterations,),
        segments=calls,
    )
    study = workload.study
    segments = gf_jax.descent_segments(
        study.objective.loss, study.initial_params, schedule, starts=workload.starts > 0
    )
    first = (0, 0) if workload.starts else (0,)  # snapshot, and start
    ends: list[Params] = []

    def run(_: int) -> list[Params]:
        snapshots = next(segments).snapshots
        if not ends:
            stack = study.restore(snapshots, lanes=True)
            ends.extend(
                jax.tree.map(operator.itemgetter((*first, lane)), stack)
                for lane in range(len(workload.ratios))
            )
        return ends

    return Implementation("gf_jax", 1, run)


def measure_products(workload: Workload) -> Products:
    """The products of one base iteration, with the lanes stacked as the engine has them."""
    products = products_of_iteration(workload)
    seconds = sum(uses * seconds_of(product) for product, uses in products.items())
    return Products(flops_of(products), seconds)


def flops_of(products: collections.Counter[Product]) -> float:
    """Floating-point operations of products, each taken so many times."""
    return sum(uses * product.flops for product, uses in products.items())


def products_of_iteration(workload: Workload) -> collections.Counter[Product]:
    """The products of one base iteration of all runs, and how often each is taken.

    Between two comparison times the engine evaluates the gradients of all lanes at once, then
    those of ever fewer; see ``gf_jax.descent.descent``.
    """
    steps = np.diff((0, *workload.ratios))
    found: collections.Counter[Product] = collections.Counter()
    for gone, count in enumerate(steps.tolist()):
        for product, uses in products_of_gradient(workload, len(steps) - gone).items():
            found[product] += count * uses
    return found


def products_of_gradient(workload: Workload, lanes: int) -> collections.Counter[Product]:
    """The products in one gradient of the stacked lanes, and how often each is taken."""
    stack = jax.tree.map(lambda leaf: jnp.stack([leaf] * lanes), workload.study.initial_params)
    gradients = jax.vmap(jax.value_and_grad(workload.study.objective.loss))
    return collections.Counter(_products(jax.make_jaxpr(gradients)(stack).jaxpr))


def _products(jaxpr: Any) -> Iterator[Product]:
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            left, right = (operand.aval.shape for operand in eqn.invars)
            yield Product(left, right, eqn.params["dimension_numbers"])
        for value in eqn.params.values():
            if isinstance(value, core.Jaxpr | core.ClosedJaxpr):
                yield from _products(value.jaxpr if isinstance(value, core.ClosedJaxpr) else value)


@functools.cache
def seconds_of(product: Product) -> float:
    """Median time of one call of the compiled product, in full float32."""
    generator = np.random.default_rng(0)
    left, right = (
        jnp.asarray(generator.normal(size=shape), jnp.float32)
        for shape in (product.left, product.right)
    )
    multiply = jax.jit(functools.partial(lax.dot_general, dimension_numbers=product.dimensions))

    def seconds(calls: int) -> float:
        started = time.perf_counter()
        wait([multiply(left, right) for _ in range(calls)])
        return (time.perf_counter() - started) / calls

    with ARITHMETICS["compensated"].context():
        seconds(1)
        calls = max(1, round(BATCH_SECONDS / seconds(1)))
        return float(np.median([seconds(calls) for _ in range(BATCHES)]))
