"""Structures of what is kept of a run: pytrees whose arrays are of no account.

Checkpoints hold arrays only; what they are put together to is known here.
"""

import numpy as np

import gf_jax
from gf_jax.networks import Params
from gf_jax.segments import Trajectory

_ANY = np.zeros(0)


def trajectory(params: Params) -> Trajectory:
    """The structure of a trajectory."""
    return Trajectory(_ANY, gf_jax.Metrics(_ANY, _ANY, _ANY, _ANY), _ANY, params)


def flow(params: Params) -> gf_jax.Flow:
    """The structure of a flow."""
    return gf_jax.Flow(_ANY, params, _ANY, _ANY, gf_jax.Statistics(0, 0, 0, True, 0))


def prediction(params: Params) -> gf_jax.Prediction:
    """The structure of a prediction."""
    return gf_jax.Prediction(flow(params), *(_ANY,) * 5, slides=False, jumps=False, kinks=0)
