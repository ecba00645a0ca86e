"""What theory allows, see ``study``."""

from experiments.studies.bounds.study import EXPERIMENT as EXPERIMENT
