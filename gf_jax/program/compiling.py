"""How fast a program is compiled, and how fast it then runs: a small loss is computed in a moment.

XLA spends most of the time of a small problem on making its program fast. On a CPU it may be told
not to, which compiles twice as fast and runs at half the speed, or a quarter.

Told to do nothing at all, it computes one value twice in slightly different ways, with a fused
multiply-add or without. So no entry may be equal to the largest of them, and the derivative of
``jnp.max`` is 0/0. Losses that hold such a comparison are compiled with the first level of its
optimisations, at which none was found to differ, and less is saved.

Every program takes some mappings of memory, of which Linux allows a process some 65,000. A process
that has no more of them crashes, so JAX gives up what it compiled before.
"""

import enum
import functools
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

CHEAP, SMALL = 20_000, 10_000  # so many gradients of a loss with so many numbers take a second
SLOWER = 4  # times as slow is what is compiled quickly, at worst
MAPPINGS, MOST_MAPPINGS = Path("/proc/self/maps"), Path("/proc/sys/vm/max_map_count")
CROWDED = 0.4  # share of the mappings a process may have, of which other libraries take some


class Speed(enum.IntEnum):
    """How fast a program is compiled; the faster, the slower it runs."""

    FULL = 0  # as JAX does
    QUICK = 1
    QUICKEST = 2  # where no value is compared with itself


# One by one, those that the installed XLA knows. Kernels by its older emitter compile faster.
OPTIONS: dict[Speed, dict[str, Any]] = {
    Speed.FULL: {},
    Speed.QUICK: {
        "xla_backend_optimization_level": 1,
        "xla_llvm_disable_expensive_passes": True,
        "xla_cpu_use_fusion_emitters": False,
    },
    Speed.QUICKEST: {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False},
}
# Operations that compare a value with what is made of it, or whose derivatives do.
EQUATING = {
    *("reduce_max", "reduce_min", "argmax", "argmin", "cummax", "cummin", "sort", "top_k"),
    *("reduce_window_max", "reduce_window_min", "eq", "ne"),
}


def cheap(numbers: int) -> int:
    """Gradients of a loss with so many numbers that cost next to nothing beside compiling."""
    return int(CHEAP / max(1, numbers / SMALL))


def jit(function: Callable, *, speed: Speed, **options: Any) -> Callable:
    """As ``jax.jit``.

    Args:
      function: what is compiled.
      speed: with which it is, if all that it will ever compute is done in a moment.
      **options: of ``jax.jit``.
    """
    chosen = _known(jax.default_backend(), speed) if speed else None
    return jax.jit(function, compiler_options=chosen, **options)


@functools.cache
def _known(platform: str, speed: Speed) -> dict[str, Any] | None:
    """Those of the options that this XLA knows; versions differ."""
    if platform != "cpu":
        return None
    known = {}
    for name, value in OPTIONS[speed].items():
        try:
            jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
        except jax.errors.JaxRuntimeError:
            continue
        known[name] = value
    return known


def make_room() -> None:
    """Has JAX give up all that it compiled, where the process has many mappings of memory.

    What is needed again is compiled again. JAX keeps programs for as long as their functions
    live, and libraries keep functions of theirs for good.
    """
    try:
        most = int(MOST_MAPPINGS.read_text())
        used = MAPPINGS.read_bytes().count(b"\n")
    except (OSError, ValueError):  # on other systems than Linux
        return
    if used > CROWDED * most:
        jax.clear_caches()
        gc.collect()
