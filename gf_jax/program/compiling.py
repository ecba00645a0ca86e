"""How fast a program is compiled, and how fast it then runs: a small loss is computed in a moment.

XLA spends most of the time of a small problem on making its program fast. On a CPU it may be told
not to, which compiles twice as fast and runs at half the speed, or a quarter.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax

CHEAP, SMALL = 20_000, 10_000  # so many gradients of a loss with so many numbers take a second
# One by one, those that the installed XLA knows. Kernels by its older emitter compile faster.
SLOWER = 4  # times as slow is what is compiled quickly, at worst
QUICKLY = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}


def cheap(numbers: int) -> int:
    """Gradients of a loss with so many numbers that cost next to nothing beside compiling."""
    return int(CHEAP / max(1, numbers / SMALL))


def jit(function: Callable, *, quickly: bool, **options: Any) -> Callable:
    """As ``jax.jit``.

    Args:
      function: what is compiled.
      quickly: whether all that it will ever compute is done in a moment.
      **options: of ``jax.jit``.
    """
    chosen = _known(jax.default_backend()) if quickly else None
    return jax.jit(function, compiler_options=chosen, **options)


@functools.cache
def _known(platform: str) -> dict[str, Any] | None:
    """Those of the options that this XLA knows; versions differ."""
    if platform != "cpu":
        return None
    known = {}
    for name, value in QUICKLY.items():
        try:
            jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
        except jax.errors.JaxRuntimeError:
            continue
        known[name] = value
    return known
