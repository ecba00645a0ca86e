"""A saddle that needs exponentially small steps, see ``study``."""

from experiments.studies.necessity.study import EXPERIMENT as EXPERIMENT
