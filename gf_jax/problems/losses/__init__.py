"""Losses by name: a new one is a file here, and a line in ``LOSSES``."""

from collections.abc import Mapping

from gf_jax.problems.losses import cross_entropy, squared
from gf_jax.problems.losses.output_loss import OutputLoss as OutputLoss

LOSSES: Mapping[str, OutputLoss] = {
    "cross_entropy": cross_entropy.LOSS,
    "squared": squared.LOSS,
}
