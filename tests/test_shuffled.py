"""Batches shuffled within epochs: how runs spread, and what is predicted of them."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

import gf_jax
from gf_jax.descent.batches import SHUFFLED

SIGMAS = 4.0  # a comparison of ten numbers fails once in two thousand seeds, and these are fixed
BEGIN, END = 1.2, 1.0  # weight at first, and time


def exact_variances(curvature, size, offsets, steps):
    """After each step on ½ λ x² + aₙ x: gradients of an epoch of n have correlation -1/(n - 1)."""
    epochs, found = np.arange(steps) // len(offsets), []
    covariance = np.where(epochs[:, None] == epochs, -1 / (len(offsets) - 1), 0.0)
    np.fill_diagonal(covariance, 1.0)
    for number in range(1, steps + 1):
        decay = size * (1 - size * curvature) ** np.arange(number)[::-1]
        found.append(offsets.var() * decay @ covariance[:number, :number] @ decay)
    return np.array(found)


def tilted(curvature, offsets):
    """½ λ x², and the loss of an example that adds aₙ x."""

    def loss(x, index):
        return 0.5 * curvature * x**2 + jnp.asarray(offsets)[index] * x

    return lambda x: 0.5 * curvature * x**2, loss


def test_shuffled_variance():
    offsets = np.array([-2.0, -1.0, 0.0, 3.0])
    f, loss = tilted(0.7, offsets)
    batches = gf_jax.Batches(loss, 4, SHUFFLED, seed=6)
    options = {"step_size": 0.5, "ratios": (), "iterations": 10, "draws": 4000}
    run = gf_jax.gradient_descent(
        f, jnp.array(0.0), batches=batches, arithmetic="float64", **options
    )
    squares = run.snapshots[..., 0] ** 2
    errors = squares.std(axis=1, ddof=1) / np.sqrt(options["draws"])
    exact = exact_variances(0.7, 0.5, offsets, 10)
    assert (np.abs(squares.mean(axis=1) - exact) < SIGMAS * errors).all()


@pytest.mark.parametrize("epoch", [8, 120])
def test_shuffled_variance_is_predicted(epoch):
    """Of short epochs and long ones: λ times their length is 0.24 and 3.6."""
    offsets, size = np.random.default_rng(1).normal(size=epoch), 0.02
    offsets -= offsets.mean()
    f, loss = tilted(1.5, offsets)
    steps = np.array([3, 8, 50, 119, 120, 130, 235])
    found = gf_jax.predict_ensemble(
        *(f, jnp.array(0.0), size * steps, [size]),
        batches=gf_jax.Batches(loss, epoch, SHUFFLED),
        samples=4000,
    ).ensemble.spread
    exact = np.sqrt(exact_variances(1.5, size, offsets, 235))[steps - 1]
    off = np.abs(found.value[:, 0] - exact)
    assert (off < found.within(SIGMAS)[:, 0]).all()
    assert (found.within(SIGMAS)[:, 0] < 0.25 * exact).all()
    assert (off < 0.08 * exact).all()


THREE = np.array([1.5, 0.7, 1.0]), np.array([-0.5, 0.8, 0.3])  # rates, and what is wanted


def of_three(x, index):
    rate, wanted = (jnp.asarray(each)[index] for each in THREE)
    return 0.5 * (jnp.tanh(rate * x) - wanted) ** 2


def all_orders(epochs, steps, size):
    """Mean and deviation after so many epochs and steps, over every order of three examples."""
    x = np.array([BEGIN])
    for taken in (*[3] * epochs, steps):
        found = []
        for order in itertools.permutations(range(3)):
            moved = x
            for index in order[:taken]:
                rate, wanted = THREE[0][index], THREE[1][index]
                t = np.tanh(rate * moved)
                moved = moved - size * (t - wanted) * (1 - t**2) * rate
            found.append(moved)
        x = np.concatenate(found)
    return x.mean(), x.std()


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_shuffled_epochs_are_predicted(steps):
    """At the end of epochs and within: what is left out, as a share, falls with the step size."""
    shares = []
    for epochs in (1, 2, 4):
        size = END / (3 * epochs + steps)
        exact = all_orders(epochs, steps, size)
        told = gf_jax.predict_ensemble(
            *(lambda x: sum(of_three(x, index) for index in range(3)) / 3, jnp.array(BEGIN)),
            *([END], [size]),
            batches=gf_jax.Batches(of_three, 3, SHUFFLED),
            samples=5_000,
        )
        wanted = abs(exact[0] - told.flow.params[0]), exact[1]
        for name, value in zip(("mean_to_flow", "spread"), wanted, strict=True):
            estimate = getattr(told.ensemble, name)
            off = abs(estimate.value - value)
            assert off < estimate.within(SIGMAS), name
            shares.append(float((off / value).item()))
    shares = np.array(shares).reshape(3, 2)
    assert (shares[2] < 0.08).all()
    assert (shares[2] < 0.7 * shares[0]).all()
