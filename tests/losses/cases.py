"""What a case is: a loss in two forms, options, and what may come of it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import gf_jax
from tests.reference_flow import judged, reference

KEY = jax.random.key(7)
x = jax.random.normal(jax.random.key(0), (16, 4))
y = jnp.sin(x[:, 0])
START = jnp.array([0.3, -0.2, 0.5, 0.1])


class Loss(NamedTuple):
    """The user's f(params), and g(params, data), the same in float64 for data that are given."""

    f: Callable
    start: Any
    g: Callable
    data: Any = ()


class Case(NamedTuple):
    """A loss, options of the comparison, and the outcomes that are accepted."""

    name: str
    make: Callable[[], Loss]
    options: dict[str, Any]
    accepted: tuple[str, ...]
    long: bool


CASES: list[Case] = []
TOLD = ("right", "told")


def drawn(body, start, **sources) -> Loss:
    """Both forms of body(params, **sources); functions are called within the user's form."""

    def values():
        return {name: s() if callable(s) else s for name, s in sources.items()}

    data = jax.tree.map(lambda leaf: np.asarray(jnp.asarray(leaf)), values())
    return Loss(lambda p: body(p, **values()), start, lambda p, data: body(p, **data), data)


def case(step_size=0.05, iterations=60, accepted=("right",), long=False, name=None, **options):
    """Enters a function that makes a loss into the list."""

    def enter(make):
        chosen = {"step_size": step_size, "iterations": iterations, **options}
        entry = Case(name or make.__name__, make, chosen, accepted, long)
        assert entry.name not in {other.name for other in CASES}
        CASES.append(entry)
        return make

    return enter


def outcome(loss: Loss, options: dict[str, Any]) -> tuple[str, str]:
    """What becomes of a loss: right, told, wrong, refused or raised, and why."""
    try:
        found = gf_jax.compare(loss.f, loss.start, **options)
    except ValueError as error:
        gradients = jax.tree.leaves(jax.grad(loss.f)(loss.start))
        if "not finite" in str(error) and not all(np.isfinite(g).all() for g in gradients):
            return "right", "refused, as JAX's own gradient is not finite"
        return ("raised" if "\n" in str(error) else "refused"), str(error)
    except Exception as error:
        return "raised", f"{type(error).__name__}: {error}"
    if not found.run.arrived:
        finite = np.isfinite(known(loss, options, found.run).distance[-1]).any()
        return ("wrong" if finite else "right"), "every run diverged"
    if found.run.reference is None:
        doubts = getattr(found, "doubts", ())
        return ("told" if doubts else "wrong"), f"no flow; doubts: {doubts}"
    return judged(found, known(loss, options, found.run))


def known(loss: Loss, options: dict[str, Any], run):
    """The reference of a loss at the snapshots of a run."""
    step_size = options["step_size"]
    return reference(loss.g, loss.data, loss.start, step_size, run.snapshot_iterations, run.ratios)


def mean_square(errors):
    return jnp.mean(errors**2)
