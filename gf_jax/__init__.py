"""Does gradient descent on a neural network stay near its gradient flow?

``compare`` is the whole study in one call; the other functions are its pieces. ``gf_jax.theory``
holds what explains the answer: bounds, guarantees, deep linear networks. ``gf_jax.problems``
holds networks, losses and starting points to try it on. Examples take for granted::

    import gf_jax
    import jax
    import jax.numpy as jnp
    import numpy as np
"""

from gf_jax import problems as problems
from gf_jax import theory as theory
from gf_jax.comparison import FlowComparison as FlowComparison
from gf_jax.comparison import Metrics as Metrics
from gf_jax.comparison import compare_with_flow as compare_with_flow
from gf_jax.comparison import distance as distance
from gf_jax.descent.batches import Batches as Batches
from gf_jax.descent.descent import descent_segments as descent_segments
from gf_jax.descent.descent import gradient_descent as gradient_descent
from gf_jax.descent.gathering import join as join
from gf_jax.descent.schedule import Schedule as Schedule
from gf_jax.descent.segments import Trajectory as Trajectory
from gf_jax.descent.segments import resumable_segments as resumable_segments
from gf_jax.ensemble import Ensemble as Ensemble
from gf_jax.ensemble import Estimate as Estimate
from gf_jax.ensemble import measure_ensemble as measure_ensemble
from gf_jax.flow.central.central_flow import central_flow as central_flow
from gf_jax.flow.central.result import CentralFlow as CentralFlow
from gf_jax.flow.deviation import Deviation as Deviation
from gf_jax.flow.deviation import deviation as deviation
from gf_jax.flow.ensemble import EnsemblePrediction as EnsemblePrediction
from gf_jax.flow.ensemble import predict_ensemble as predict_ensemble
from gf_jax.flow.flow import Flow as Flow
from gf_jax.flow.flow import gradient_flow as gradient_flow
from gf_jax.flow.limit_flow import limit_flow as limit_flow
from gf_jax.flow.modified import modified_flow as modified_flow
from gf_jax.flow.prediction import Prediction as Prediction
from gf_jax.flow.prediction import predict as predict
from gf_jax.optimizers.momentum import Momentum as Momentum
from gf_jax.optimizers.momentum import heavy_ball as heavy_ball
from gf_jax.optimizers.momentum import nesterov as nesterov
from gf_jax.program.program import Program as Program
from gf_jax.program.program import prepare as prepare
from gf_jax.study.compare import compare as compare
from gf_jax.study.comparison import Comparison as Comparison
from gf_jax.study.comparison import load as load
from gf_jax.theory.edge import Edge as Edge
from gf_jax.theory.edge import edge_of_stability as edge_of_stability
from gf_jax.theory.spectrum import Curvature as Curvature
from gf_jax.theory.spectrum import curvature as curvature

__version__ = "0.1.0"
