"""Experiments: flags, data, run directories and figures around gf_jax."""
