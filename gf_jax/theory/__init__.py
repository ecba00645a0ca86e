"""Why descent stays near its flow: curvature, bounds, deep linear networks."""

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
from gf_jax.theory.spectrum import Eigenvalue as Eigenvalue
