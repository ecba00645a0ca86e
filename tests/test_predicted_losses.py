"""Losses of descent: predicted where no run is made, and measured where float32 hides them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gf_jax
from gf_jax.study.record import Reference

INPUTS = jax.random.normal(jax.random.key(0), (30, 5))
TARGETS = jnp.sin(INPUTS[:, 0])
START = {
    "w": 0.5 * jax.random.normal(jax.random.key(1), (5, 6)),
    "v": 0.5 * jax.random.normal(jax.random.key(2), (6,)),
}
HEAVY_BALL = {"optimizer": functools.partial(optax.sgd, momentum=0.5)}
RMSPROP = {"optimizer": lambda h: optax.rmsprop(h, decay=1 - h, eps=0.1)}
PARTS = gf_jax.Batches(
    lambda p, part: loss_on(
        jnp.tanh, p, INPUTS.reshape(3, 10, 5)[part], TARGETS.reshape(3, 10)[part]
    ),
    3,
)


def loss_on(activation, p, inputs=INPUTS, targets=TARGETS):
    return jnp.mean((activation(inputs @ p["w"]) @ p["v"] - targets) ** 2)


SMOOTH = functools.partial(loss_on, jnp.tanh)


def left_over(step_size, **steps):
    """Measured and predicted losses of a run in float64, less the flow's, and the error told."""
    run = gf_jax.gradient_descent(
        *(SMOOTH, START),
        step_size=step_size,
        ratios=(),
        iterations=round(1.2 / step_size),
        snapshots=4,
        arithmetic="float64",
        **steps,
    )
    found = gf_jax.predict(SMOOTH, START, run.snapshot_times, run.step_sizes, **steps)
    measured = run.metrics.loss[run.snapshot_iterations, 0] - found.flow.loss
    return measured, found.loss[:, 0] - found.flow.loss, found.loss_error[:, 0]


@pytest.mark.parametrize(
    ("steps", "largest", "order"),
    [
        ({}, 0.04, 3),
        pytest.param(HEAVY_BALL, 0.01, 2, marks=pytest.mark.long),
        pytest.param(RMSPROP, 0.01, 2, marks=pytest.mark.long),
        pytest.param({"batches": PARTS}, 0.02, 2, marks=pytest.mark.long),
    ],
    ids=["descent", "heavy_ball", "rmsprop", "batches"],
)
def test_orders_of_predicted_losses(steps, largest, order):
    """What finite steps change of the loss, with all that the expansion knows of it."""
    off, step_sizes = [], largest / 2.0 ** np.arange(3)
    for step_size in step_sizes:
        measured, predicted, error = left_over(step_size, **steps)
        assert (np.abs(predicted - measured) <= error).all()
        off.append(norm(predicted - measured))
    assert off[-1] < 0.2 * norm(measured)
    slope = np.polyfit(np.log(step_sizes), np.log(off), 1)[0]
    assert order - 0.3 < slope < order + 0.5


def norm(values):
    return np.sqrt(np.square(values).sum())


def test_losses_with_kinks_are_those_of_the_runs():
    f = functools.partial(loss_on, jax.nn.relu)
    options = {"step_size": 0.02, "ratios": (2, 5), "iterations": 40, "snapshots": 4}
    run = gf_jax.gradient_descent(f, START, **options, arithmetic="float64")
    found = gf_jax.predict(f, START, run.snapshot_times, run.step_sizes)
    np.testing.assert_allclose(found.loss, run.metrics.loss[run.snapshot_iterations], rtol=1e-10)


def test_differences_below_the_digits_of_the_loss_are_measured():
    """A loss of a thousand, of which float32 tells 6e-5, as much as step sizes change of it."""

    def f(w):
        return 1000 + jnp.sum((w**2 - 1) ** 2)

    w, options = jnp.array([0.7, 1.25]), {"step_size": 1e-3, "iterations": 600, "snapshots": 6}
    found, exact = (
        gf_jax.compare(f, w, ratios=(2, 10), arithmetic=name, **options)
        for name in ("compensated", "float64")
    )
    differences = found.run.reference.loss_differences()
    foretold = found.predicted_loss_difference
    np.testing.assert_allclose(
        foretold[:, 1:] - foretold[:, :1], differences.predicted[:, 1:], rtol=1e-5
    )
    at = found.run.snapshot_iterations
    loss = exact.run.metrics.loss[at]
    true = loss[:, 1:] - loss[:, :1]
    rounded = found.run.metrics.loss[at]
    off = np.abs(rounded[:, 1:] - rounded[:, :1] - true)
    assert (off > 0.1 * np.abs(true)).mean() > 0.6  # in float32 most are rounding
    measured = np.isfinite(differences.measured[:, 1:])
    assert measured.mean() > 0.6
    np.testing.assert_allclose(differences.measured[:, 1:][measured], true[measured], rtol=0.1)
    np.testing.assert_allclose(differences.predicted[:, 1:], true, rtol=0.02)
    error = found.run.reference.run_loss_error
    assert (
        np.abs(found.run.reference.run_loss - loss) <= error + exact.run.reference.run_loss_error
    ).all()


def test_losses_that_are_equal_are_not_told_apart():
    """At the minimum in float32, where nothing but rounding is left."""
    found = gf_jax.compare(
        lambda w: jnp.sum((w**2 - 1) ** 2), jnp.array([0.5, 1.5]), step_size=0.01, iterations=400
    )
    differences = found.run.reference.loss_differences()
    assert not np.isfinite(differences.measured[-1]).any()
    assert "they differ by less than" in found.verdict


def test_older_files_know_no_losses():
    blank = dict.fromkeys(Reference.__dataclass_fields__)
    assert Reference(**blank).loss_differences() is None


@pytest.mark.filterwarnings("error")
def test_losses_of_lanes_that_diverge_are_no_matter():
    """The first overflows, the second does not; no line is printed that nobody expects."""
    found = gf_jax.compare(
        lambda w: jnp.sum((w**2 - 1) ** 2), jnp.array([3.0, 1.5]), step_size=0.2, ratios=(20,),
        iterations=20,
    )  # fmt: skip
    assert not np.isfinite(found.loss_difference[-1, 0])
    assert np.isfinite(found.loss_difference[-1, 1])
    differences = found.run.reference.loss_differences()
    assert not np.isfinite(differences.measured[-1]).any()
    assert found.plot() is not None
    assert "diverged" in str(found)
