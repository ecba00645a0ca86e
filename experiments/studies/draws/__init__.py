"""Descent in batches drawn at random, see ``study``."""

from experiments.studies.draws.study import EXPERIMENT as EXPERIMENT
