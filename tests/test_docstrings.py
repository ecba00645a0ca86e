"""Every public name has an example in its docstring, which gives what it says."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gf_jax

OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
NAMES = [name for name, value in vars(gf_jax).items() if getattr(value, "__doc__", None)]
PUBLIC = [name for name in NAMES if not name.startswith("_") and callable(getattr(gf_jax, name))]


@pytest.mark.parametrize("name", PUBLIC)
def test_example(name):
    (test,) = doctest.DocTestFinder(recurse=False).find(
        getattr(gf_jax, name), name, globs={"gf_jax": gf_jax, "jax": jax, "jnp": jnp, "np": np}
    )
    assert test.examples
    assert doctest.DocTestRunner(optionflags=OPTIONS).run(test).failed == 0
