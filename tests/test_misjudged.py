"""What misjudged kinks do to runs in float32, as chance has it, against runs in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gf_jax
from gf_jax.comparison import precise_distance, precision_of
from gf_jax.flow.misjudged import misjudged
from gf_jax.flow.problem import flow_problem
from gf_jax.study.following import prepare
from gf_jax.study.rounding import _of_others

STEP = 1e-3


def both(f, params, ratios, iterations, snapshots):
    """Snapshots in compensated float32, and in float64."""
    return [
        jax.tree.map(
            np.asarray,
            gf_jax.gradient_descent(
                *(f, params),
                step_size=STEP,
                ratios=ratios,
                iterations=iterations,
                snapshots=snapshots,
                arithmetic=arithmetic,
            ).snapshots,
        )
        for arithmetic in ("compensated", "float64")
    ]


def test_thousands_of_kinks_that_are_misjudged_one_by_one(generator):
    """Each is passed once, and its variable is known to the spacing of numbers near 1000."""
    number, speed, jump, iterations = 4000, 1.0, 0.1, 500
    start = jnp.asarray(generator.uniform(0.05, 0.45, number), jnp.float32)

    far = jnp.full(number, 1000.0)  # of data the compiler does not know that it cancels
    near = jnp.asarray(generator.uniform(0, 0.01, number), jnp.float32)

    def f(w):
        return jnp.sum(speed * w + jump * jax.nn.relu((w + far) - far - near))

    narrow, wide = both(f, start, (4,), iterations, 50)
    true = precise_distance(narrow, wide, 2)[-1]
    problem = flow_problem(prepare(f, start), start, STEP * np.arange(10, iterations + 1, 10), None)
    shares = []
    told = misjudged(problem, wide[:, 0], narrow, STEP, shares.append).moved[-1]
    assert len(shares) == len(problem.times)
    np.testing.assert_allclose(np.diff(shares), 1 / len(shares))
    assert shares[-1] == 1
    # Rounding to a spacing of 2^-14 is off by a quarter of that in the mean.
    chance = 2.0**-16 / (STEP * (speed + jump / 2))
    np.testing.assert_allclose(told, STEP * jump * np.sqrt(number * chance), rtol=0.1)
    # Some sixty of them, by three times their standard deviation; with a quarter of the step size
    # four times as many are off by a quarter.
    np.testing.assert_allclose(true, told / np.sqrt([1, 4]), rtol=0.2)


def losses(problem, stack):
    """Of all snapshots and lanes, in float64."""
    with problem.numbers.context():
        points = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), stack)
        return problem.losses(points, stack_axes=2)


@pytest.mark.long
def test_what_is_told_of_runs_that_were_not_made_again(digits):
    """Of six small networks and fifty times each; most runs meet no kink so near, and some do."""
    ratios, images = np.array([1.0, 2.0, 5.0, 10.0, 20.0]), digits.images.reshape(-1, 64)
    network = gf_jax.problems.fully_connected((64, 20, 20, 10), "relu")
    f = gf_jax.problems.classification(network, images, digits.labels).loss
    shares, expected, found = [], [], []
    for seed in range(6):
        start = gf_jax.problems.xavier_uniform(jax.random.key(seed), network.shapes)
        narrow, wide = both(f, start, (2, 5, 10, 20), 500, 50)
        true, least = precise_distance(narrow, wide, 2), precision_of(narrow)
        times = STEP * np.arange(10, 501, 10)
        problem = flow_problem(prepare(f, start), start, times, None)
        first = jax.tree.map(lambda leaf: leaf[:, 0], wide)
        chance = misjudged(problem, first, narrow, STEP)
        told = _of_others(true[:, 0], chance.moved, least[:, 1:], np.sqrt(ratios[1:]))
        shares.append(told / true[:, 1:])
        expected.append([chance.moved[-1], chance.loss[-1]])
        of_loss = np.abs(np.subtract(*(losses(problem, each)[-1] for each in (narrow, wide))))
        moved = np.sqrt(np.maximum(true**2 - least**2, 0)[-1])
        found.append(np.sqrt(ratios) * [moved, of_loss])
    assert np.mean(np.array(shares) < 1) < 0.05
    expected = np.sqrt(np.mean(np.square(expected), axis=0))
    found = np.sqrt(np.mean(np.square(found), axis=(0, 2)))
    assert (expected / 3 < found).all()
    assert (found < 3 * expected).all()
