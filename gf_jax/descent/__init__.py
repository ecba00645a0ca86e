"""The engine: descent at several step sizes, all of them in one compiled call."""

from gf_jax.descent.placement import Memory as Memory
