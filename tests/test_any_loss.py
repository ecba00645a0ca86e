"""Random small losses: what is claimed of each holds by an independent reference."""

import pytest

from tests.any_loss import build, outcome


def check(seeds):
    found = {seed: outcome(seed) for seed in seeds}
    failed = {seed: kind for seed, kind in found.items() if kind[0] not in ("right", "told")}
    assert not failed, "\n".join(f"{seed}: {word}, {why}" for seed, (word, why) in failed.items())


SMOOTH, KINKED = 8, 5
FOUND = (1199, 1258, 1273)  # were wrong: ties at the start, a kink crossed to and fro at once


@pytest.mark.parametrize(
    "seed",
    [
        pytest.param(n, marks=() if n in (SMOOTH, KINKED) else pytest.mark.long)
        for n in (*range(10), *FOUND)
    ],
)
def test_what_is_claimed_of_a_random_loss_holds(seed):
    check([seed])


def test_one_of_them_is_smooth_and_one_has_kinks():
    assert (build(SMOOTH).kinked, build(KINKED).kinked) == (False, True)


@pytest.mark.thorough
@pytest.mark.parametrize("first", range(10, 60, 5))
def test_what_is_claimed_of_many_random_losses_holds(first):
    check(range(first, first + 5))
