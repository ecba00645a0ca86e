"""The experiments of gf_jax: flags, data sets, run directories, figures."""

from experiments import environment

environment.prepare()
