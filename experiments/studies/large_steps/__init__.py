"""Step sizes up to the edge of stability, see ``study``."""

from experiments.studies.large_steps.study import EXPERIMENT as EXPERIMENT
