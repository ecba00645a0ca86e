"""Does gradient descent on a neural network stay near its gradient flow?

``compare`` is the whole study in one call; the other functions are its pieces. Examples take for
granted::

    import gf_jax
    import jax
    import jax.numpy as jnp
    import numpy as np
"""

from gf_jax.comparison import FlowComparison as FlowComparison
from gf_jax.comparison import Metrics as Metrics
from gf_jax.comparison import compare_with_flow as compare_with_flow
from gf_jax.comparison import distance as distance
from gf_jax.comparison import measure as measure
from gf_jax.descent.descent import descent_segments as descent_segments
from gf_jax.descent.descent import gradient_descent as gradient_descent
from gf_jax.descent.descent import join as join
from gf_jax.descent.placement import Memory as Memory
from gf_jax.descent.schedule import Schedule as Schedule
from gf_jax.descent.segments import Trajectory as Trajectory
from gf_jax.descent.segments import resumable_segments as resumable_segments
from gf_jax.descent.stepping import Batches as Batches
from gf_jax.flow.deviation import Deviation as Deviation
from gf_jax.flow.deviation import deviation as deviation
from gf_jax.flow.flow import Flow as Flow
from gf_jax.flow.flow import gradient_flow as gradient_flow
from gf_jax.flow.flow import modified_flow as modified_flow
from gf_jax.flow.prediction import Prediction as Prediction
from gf_jax.flow.prediction import predict as predict
from gf_jax.flow.problem import Statistics as Statistics
from gf_jax.optimizers.momentum import Momentum as Momentum
from gf_jax.optimizers.momentum import heavy_ball as heavy_ball
from gf_jax.optimizers.momentum import nesterov as nesterov
from gf_jax.problems.initialization import balanced as balanced
from gf_jax.problems.initialization import random_balanced as random_balanced
from gf_jax.problems.initialization import xavier_uniform as xavier_uniform
from gf_jax.problems.layer_norms import LayerNorms as LayerNorms
from gf_jax.problems.layer_norms import layer_norms as layer_norms
from gf_jax.problems.networks import Network as Network
from gf_jax.problems.networks import conv_adapted as conv_adapted
from gf_jax.problems.networks import fully_connected as fully_connected
from gf_jax.problems.networks import lenet5 as lenet5
from gf_jax.problems.objective import Classification as Classification
from gf_jax.problems.objective import RowSpace as RowSpace
from gf_jax.problems.objective import classification as classification
from gf_jax.problems.objective import row_space as row_space
from gf_jax.study.compare import compare as compare
from gf_jax.study.comparison import Comparison as Comparison
from gf_jax.study.comparison import load as load
from gf_jax.theory.bounds import AllowedStepSize as AllowedStepSize
from gf_jax.theory.bounds import a_posteriori_bound as a_posteriori_bound
from gf_jax.theory.bounds import allowed_step_size as allowed_step_size
from gf_jax.theory.bounds import defects as defects
from gf_jax.theory.deep_linear import end_to_end as end_to_end
from gf_jax.theory.deep_linear import end_to_end_flow as end_to_end_flow
from gf_jax.theory.deep_linear import end_to_end_loss as end_to_end_loss
from gf_jax.theory.deep_linear import unbalancedness as unbalancedness
from gf_jax.theory.lower_bounds import LowerBound as LowerBound
from gf_jax.theory.lower_bounds import homogeneous_network_bound as homogeneous_network_bound
from gf_jax.theory.lower_bounds import linear_network_bound as linear_network_bound
from gf_jax.theory.lower_bounds import linear_network_smoothness as linear_network_smoothness
from gf_jax.theory.spectrum import Curvature as Curvature
from gf_jax.theory.spectrum import Eigenvalue as Eigenvalue
from gf_jax.theory.spectrum import curvature as curvature

__version__ = "0.1.0"
