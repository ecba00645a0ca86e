"""Losses as users write them, each with its float64 form; importing enters them into CASES."""

from tests.losses import (
    conditioning,
    guards,
    models,
    networks,
    random_draws,
    selection,
    sliding,
    stopped,
    ties,
    transformations,
)
from tests.losses.cases import CASES

__all__ = [
    "CASES",
    "conditioning",
    "guards",
    "models",
    "networks",
    "random_draws",
    "selection",
    "sliding",
    "stopped",
    "ties",
    "transformations",
]
