"""Starts that lie on a kink."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gf_jax
from gf_jax.flow import ties
from gf_jax.flow.problem import flow_problem
from tests.losses.cases import x, y

EQUAL = {"w": jnp.full((4, 3), 0.3), "v": jnp.array([0.34, 0.6, 0.06])}


def begin(f, params, last=1.0):
    problem = flow_problem(f, params, [last], None)
    return ties.start(problem), problem


def test_a_start_where_nothing_jumps_is_where_the_flow_begins():
    w = jnp.array([0.1, 1.5])
    for f in (lambda w: jnp.sum((w**2 - 1) ** 2), lambda w: jnp.abs(w[0]) + w[1] ** 2):
        start, problem = begin(f, w)
        assert start is problem.params


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_from_a_kink_the_flow_begins_on_the_side_that_descent_takes(side):
    """At the tie the derivative is 1/2, and descent leaves to that side, where it is 1 or 0."""

    def f(w):
        return jnp.maximum(-side * w[0], 0) + jnp.sum(w[1:] ** 2)

    start, _ = begin(f, jnp.array([0.0, 2.0]))
    assert side * start[0] > 0
    flow = gf_jax.gradient_flow(f, jnp.array([0.0, 2.0]), [0.5, 1.0])
    with jax.enable_x64(True):
        np.testing.assert_allclose(flow.params[:, 0], 0, atol=1e-8)
        np.testing.assert_allclose(flow.params[:, 1], 2 * np.exp([-1, -2]), rtol=1e-4)


@pytest.mark.parametrize("order", [jnp.sort, lambda h, axis: jax.lax.top_k(h, 3)[0]])
@pytest.mark.parametrize("size", [jnp.abs, jnp.square])
def test_equal_entries_that_are_sorted_have_no_one_flow(order, size):
    def f(p):
        return jnp.mean(size(order(jnp.sin(x @ p["w"]), axis=1) @ p["v"] - y))

    with pytest.raises(ValueError, match=r"^params: .*many gradient flows; accepted is"):
        gf_jax.gradient_flow(f, EQUAL, [1.0])
    found = gf_jax.compare(f, EQUAL, step_size=0.02, iterations=20, ratios=(2,))
    assert any("many gradient flows" in doubt for doubt in found.doubts)
    assert found.run.metrics.loss[-1, 0] < found.run.metrics.loss[0, 0]


def test_a_chatter_along_kinks_that_are_seen_is_no_reason():
    """Of a lasso from zeros."""
    flow = gf_jax.gradient_flow(
        lambda w: jnp.mean((x @ w - y) ** 2) + jnp.abs(w).sum(), jnp.zeros(4), [1.0]
    )
    assert np.isfinite(flow.error).all()
