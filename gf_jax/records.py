"""Records: numbers of a run that are stored and read back."""

import dataclasses
from typing import Any, TypeVar, dataclass_transform

import jax

Kind = TypeVar("Kind", bound=type)


@dataclass_transform(frozen_default=True, eq_default=False)
def record(kind: Kind) -> Kind:
    """Makes a class a frozen dataclass, which is a pytree of its fields, other records included.

    ``vars`` gives the fields by their names, and ``dataclasses.replace`` a record with others.
    Records are the same only if they are one object: arrays have no single truth.
    """
    made: Any = dataclasses.dataclass(frozen=True, eq=False)(kind)
    return jax.tree_util.register_dataclass(made)
