"""Kinks that part trajectories, of a parabola that grazes one whose sides lead apart."""

import jax
import numpy as np
import pytest

import gf_jax
from gf_jax.flow import sides, through_kinks
from gf_jax.flow.problem import flow_problem

TIMES = np.linspace(0.0, 1.0, 21)[1:]
DRIVE = 0.5


def parabola(p):
    """u = (t - 1/2)² + depth; where that is negative, u is driven on at speed DRIVE."""
    u, w = p
    return -2 * jax.lax.stop_gradient(w - 0.5) * u - w - DRIVE * jax.nn.relu(-u)


def held_parabola(p):
    """The same, but that u is driven back where it is negative: it slides."""
    u, w = p
    return -2 * jax.lax.stop_gradient(w - 0.5) * u - w + 3 * jax.nn.relu(-u)


def exact(depth, times=TIMES):
    """The flow of ``parabola`` from u = 1/4 + depth."""
    u = (times - 0.5) ** 2 + depth
    crossed = 0.5 - np.sqrt(max(-depth, 0.0))
    # Driven on until it would come back: by then the time is up.
    beyond = u - DRIVE * (times - crossed)
    return np.stack([np.where((depth < 0) & (times > crossed), beyond, u), times], axis=1)


def problem_of(f, depth=0.01):
    return flow_problem(f, np.array([0.25 + depth, 0.0]), TIMES, None)


@pytest.mark.parametrize("depth", [0.003, -0.003])
def test_the_flow_takes_the_side_that_it_has_to(depth):
    flow = gf_jax.gradient_flow(parabola, np.array([0.25 + depth, 0.0]), TIMES)
    off = np.linalg.norm(flow.params - exact(depth), axis=1)
    # A parabola is followed but for rounding, and the time at which it crosses is told.
    assert (off <= 2 * flow.error + 1e-9).all()
    assert flow.error.max() < 1e-5  # the default tolerance


def test_a_kink_whose_sides_lead_apart_parts():
    (found,) = sides.partings(problem_of(parabola), exact(-0.001), exact(0.002))
    before = 0.5 - np.sqrt(0.001) > TIMES
    assert found.time == TIMES[found.slot] == TIMES[~before][0]
    assert (found.array, found.place) == (0, ())
    assert found.jump == pytest.approx(DRIVE, rel=1e-12)
    assert found.effect == pytest.approx(DRIVE * (1 - found.time), rel=1e-12)


def test_nothing_parts_that_only_crosses_later():
    """Both sides lead the same way, and the two are on different sides at four times."""

    def f(w):
        return -w + 0.5 * jax.nn.relu(w)

    problem = flow_problem(f, np.array(-0.35), TIMES, None)
    late, early = (np.minimum(TIMES - t, (TIMES - t) / 2) for t in (0.55, 0.35))
    assert not sides.partings(problem, late, early)


def test_nothing_parts_where_both_slide():
    flows = [
        gf_jax.gradient_flow(held_parabola, np.array([0.25 + depth, 0.0]), TIMES).params
        for depth in (-1e-3, -1.1e-3)
    ]
    assert not sides.partings(problem_of(held_parabola), *flows)


@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize("spare", [3.0, 0.3])
def test_the_error_is_that_of_the_solutions_on_the_same_side(side, spare):
    """Known is the side if the finest solution has more to spare than twice what it is off."""
    off = 1e-4
    fine, middle, coarse = (
        exact(side * depth) for depth in (2 * spare * off, (2 * spare + 1) * off, -2e-3)
    )
    error = error_of(parabola, [coarse, middle, fine])
    parted = TIMES >= 0.55
    assert (np.diff(error) >= 0).all()
    # Off by a constant in u, and a solution that has gone on parts at half the speed and faster.
    change = 2 * np.linalg.norm(fine - middle, axis=1)
    apart = np.linalg.norm(coarse - middle, axis=1)[parted] / 2
    if spare > 1:
        assert (error >= np.maximum.accumulate(change)).all()
        assert (error[parted] < apart).all()
        assert error[-1] < 0.02 * apart[-1]
    else:
        assert (error[parted] >= apart).all()


def test_a_comparison_says_which_runs_are_on_the_other_side():
    """Descent with step size s comes down to depth - s/2 or so, where u goes on if that is < 0."""
    start = np.array([0.255, 0.0], np.float32)
    found = gf_jax.compare(parabola, start, step_size=0.05, ratios=(10, 50), iterations=20)
    (said,) = (doubt for doubt in found.doubts if "other side of a kink" in doubt)
    assert "the run with step size 0.05 is" in said
    assert "entry () of array 1" in said
    assert (found.distance[-1] > 10 * found.resolution[-1]).all()


def test_two_that_part_are_no_estimate():
    """However the coarsest goes."""
    for coarse in (-3e-3, 3e-3):
        solutions = [exact(depth) for depth in (coarse, -1e-3, 1e-3)]
        error = error_of(parabola, solutions)
        assert error[-1] >= 2 * np.linalg.norm(solutions[1][-1] - solutions[2][-1])


def error_of(f, solutions):
    problem = problem_of(f)

    def follow_on(point, times):
        return gf_jax.gradient_flow(f, point, times).params

    return through_kinks._error(problem, solutions, follow_on)
