"""A comparison as one npz file.

Arrays are named by where they stand: ``run.metrics.loss``, ``curvature.lambda_min.value``, and
parameters by their path in the pytree, ``snapshots.dense.kernel``. Texts are UTF-8 bytes. The
file holds its ``format``; nothing is pickled, so that reading a stranger's executes nothing.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from gf_jax.study.fields import (
    INTEGERS,
    MOST,
    Numbers,
    Record,
    Sizes,
    build,
    check_numbers,
    declare,
    encode,
)
from gf_jax.study.files import Archive, check_format, open_arrays, printable, write_arrays
from gf_jax.study.record import RUN, Run, build_run
from gf_jax.theory.spectrum import Curvature, Eigenvalue

PyTree = Any

_EIGENVALUE = declare(
    Eigenvalue,
    value=Numbers(("snapshots",), unknown=True),
    residual=Numbers(("snapshots",), least=0, unknown=True),
)
CURVATURE = declare(
    Curvature,
    lambda_min=_EIGENVALUE,
    lambda_max=_EIGENVALUE,
    products=Numbers((), INTEGERS, least=0, most=MOST),
)
_KINKS = Numbers((), INTEGERS, least=0, most=MOST)
_SNAPSHOTS = Numbers(("snapshots", "lanes", ...), unknown=True)
_FLOW = Numbers(("snapshots", ...), unknown=True)


def save(
    path: str | Path,
    *,
    run: Run,
    snapshots: PyTree,
    flow: PyTree,
    curvature: Curvature | None,
    kinks: int,
) -> None:
    """Writes the parts of a comparison, see ``Comparison.save``."""
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"path: got {path}; accepted is a name that ends with .npz")
    arrays = _arrays(run, RUN, "run.") | {"kinks": np.array(kinks)}
    if curvature is not None:
        arrays |= _arrays(curvature, CURVATURE, "curvature.")
    arrays |= _named(snapshots, "snapshots.") | _named(flow, "flow.")
    write_arrays(path, arrays)


def read(path: Path) -> dict[str, Any]:
    """The parts of a comparison that ``save`` wrote, by their names, see ``load``."""
    try:
        with open_arrays(path) as archive:
            archive.check_stored()
            check_format(path.name, archive.read("format")["format"])
            return _read(archive)
    except ValueError as error:
        raise ValueError(
            f"{path}: holds no comparison that can be read ({printable(error, 300)}); "
            "accepted is a file that Comparison.save wrote"
        ) from None


def _arrays(record: Any, declared: Record, prefix: str) -> dict[str, np.ndarray]:
    """The fields of a record, and of records in it, as arrays; None and () are left out."""
    arrays: dict[str, np.ndarray] = {}
    for name, kind in declared.fields.items():
        value = getattr(record, name)
        if value is None or (isinstance(value, tuple) and not value):
            continue
        if isinstance(kind, Record):
            arrays |= _arrays(value, kind, f"{prefix}{name}.")
        elif isinstance(kind, Numbers):
            arrays[prefix + name] = np.asarray(value)
        else:
            arrays[prefix + name] = encode(value)
    return arrays


def _named(tree: PyTree, prefix: str) -> dict[str, np.ndarray]:
    """The leaves of a pytree by their paths."""
    leaves = jax.tree.leaves_with_path(tree)
    arrays = {
        prefix + jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf)
        for path, leaf in leaves
    }
    if len(arrays) < len(leaves):
        raise ValueError("params: two paths in the pytree have the same name; rename a key")
    return arrays


def _read(archive: Archive) -> dict[str, Any]:
    sizes: Sizes = {"seeds": None}  # a comparison is of one starting point
    run = build_run(_found(archive, RUN, "run."), sizes)
    curvature = _found(archive, CURVATURE, "curvature.")
    (kinks,) = archive.read("kinks").values()
    check_numbers("kinks", kinks, _KINKS, sizes)
    return {
        "run": run,
        "snapshots": _leaves(archive, "snapshots.", _SNAPSHOTS, sizes),
        "flow": _leaves(archive, "flow.", _FLOW, sizes) or None,
        "curvature": build(CURVATURE, curvature, sizes, "curvature.") if curvature else None,
        "kinks": kinks.item(),
    }


def _found(archive: Archive, declared: Record, prefix: str) -> dict[str, Any]:
    """What there is of the fields of a record, and of the records in it."""
    found: dict[str, Any] = {}
    for name, kind in declared.fields.items():
        key = prefix + name
        if isinstance(kind, Record):
            found[name] = _found(archive, kind, f"{key}.") or None
        elif key in archive.headers:
            found[name] = archive.read(key)[key]
    return {name: value for name, value in found.items() if value is not None}


def _leaves(
    archive: Archive, prefix: str, declared: Numbers, sizes: Sizes
) -> dict[str, np.ndarray]:
    """The leaves of a pytree by their paths."""
    names = [name for name in archive.headers if name.startswith(prefix)]
    for name, array in (arrays := archive.read(*names)).items():
        check_numbers(printable(name, 60), array, declared, sizes)
    return {name.removeprefix(prefix): array for name, array in arrays.items()}
