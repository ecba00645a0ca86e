"""The continuous limit of descent, its deviation from it, and the distances that they predict."""

from gf_jax.flow.problem import Statistics as Statistics
