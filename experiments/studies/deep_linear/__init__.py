"""Deep linear networks from many random balanced starts, see ``study``."""

from experiments.studies.deep_linear.study import EXPERIMENT as EXPERIMENT
