"""Random small losses: what is claimed of each holds by an independent reference."""

import pytest

from tests.any_loss import outcome


def check(seeds):
    found = {seed: outcome(seed) for seed in seeds}
    failed = {seed: kind for seed, kind in found.items() if kind[0] not in ("right", "told")}
    assert not failed, "\n".join(f"{seed}: {word}, {why}" for seed, (word, why) in failed.items())


@pytest.mark.parametrize("first", range(0, 10, 2))
def test_what_is_claimed_of_a_random_loss_holds(first):
    check(range(first, first + 2))


@pytest.mark.thorough
@pytest.mark.parametrize("first", range(10, 60, 5))
def test_what_is_claimed_of_many_random_losses_holds(first):
    check(range(first, first + 5))
