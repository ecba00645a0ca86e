"""The networks, losses and starting points of the paper."""

from gf_jax.problems.convolutional import conv_adapted as conv_adapted
from gf_jax.problems.convolutional import lenet5 as lenet5
from gf_jax.problems.initialization import balanced as balanced
from gf_jax.problems.initialization import random_balanced as random_balanced
from gf_jax.problems.initialization import xavier_uniform as xavier_uniform
from gf_jax.problems.layer_norms import LayerNorms as LayerNorms
from gf_jax.problems.layer_norms import layer_norms as layer_norms
from gf_jax.problems.networks import Network as Network
from gf_jax.problems.networks import Structure as Structure
from gf_jax.problems.networks import fully_connected as fully_connected
from gf_jax.problems.objective import Classification as Classification
from gf_jax.problems.objective import RowSpace as RowSpace
from gf_jax.problems.objective import classification as classification
from gf_jax.problems.objective import row_space as row_space
