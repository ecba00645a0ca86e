"""Descent at its edge of stability beside its central flow, see ``study``."""

from experiments.studies.edge.study import EXPERIMENT as EXPERIMENT
