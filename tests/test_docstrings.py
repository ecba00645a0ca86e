"""Every public name has an example in its docstring, which gives what it says."""

import doctest
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gf_jax
from experiments import api

OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
PUBLIC = {name: value for name, value in api.exported().items() if callable(value)}


@pytest.mark.parametrize("name", PUBLIC)
def test_example(name):
    (test,) = doctest.DocTestFinder(recurse=False).find(
        PUBLIC[name], name, globs={"gf_jax": gf_jax, "jax": jax, "jnp": jnp, "np": np}
    )
    assert test.examples
    assert doctest.DocTestRunner(optionflags=OPTIONS).run(test).failed == 0


def test_everything_is_reached_after_one_import():
    """Without any other import, and what is of theory or problems is nowhere else."""
    names = [name for name in PUBLIC if name.startswith(("gf_jax.theory.", "gf_jax.problems."))]
    assert names
    lines = [
        "import gf_jax",
        *PUBLIC,
        *(f"assert not hasattr(gf_jax, {n.split('.')[2]!r})" for n in names),
    ]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True)
