"""Losses as users write them, each with its float64 form."""

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
from tests.losses.cases import CASES as CASES
