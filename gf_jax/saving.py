"""A comparison as one npz file.

Arrays are named by where they stand: ``run.metrics.loss``, ``curvature.lambda_min.value``, and
parameters by their path in the pytree, ``snapshots.dense.kernel``. Texts are UTF-8 bytes. The
file holds its ``format``; nothing is pickled, so that reading a stranger's executes nothing.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gf_jax.comparison import Metrics
from gf_jax.files import Archive, check_format, open_arrays, write_arrays
from gf_jax.method import Method
from gf_jax.record import Reference, Run, check_run, clean_label
from gf_jax.spectrum import Curvature, Eigenvalue
from gf_jax.study import Comparison

PyTree = Any

NESTED: dict[str, type] = {
    "run": Run,
    "run.metrics": Metrics,
    "run.reference": Reference,
    "run.method": Method,
    "curvature": Curvature,
    "curvature.lambda_min": Eigenvalue,
    "curvature.lambda_max": Eigenvalue,
}


def save(comparison: Comparison, path: str | Path) -> None:
    """Writes a comparison, see ``Comparison.save``."""
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"path: got {path}; accepted is a name that ends with .npz")
    arrays = _fields(comparison.run, "run.") | {"kinks": np.array(comparison.kinks)}
    if comparison.curvature is not None:
        arrays |= _fields(comparison.curvature, "curvature.")
    arrays |= _named(comparison.snapshots, "snapshots.") | _named(comparison.flow, "flow.")
    write_arrays(path, arrays)


def load(path: str | Path) -> Comparison:
    """Reads a comparison that ``Comparison.save`` wrote.

    Returns:
      The comparison. Its pytrees of parameters are dictionaries from path names, such as
      ``dense.kernel``, to arrays; everything else is as it was.

    Raises:
      OSError: if the file cannot be read.
      ValueError: if it is damaged, of another format, or holds anything else.

    Example:
      >>> def f(w):
      ...     return jnp.sum((w**2 - 1) ** 2)
      >>> w = jnp.array([0.1, 1.5])
      >>> found = gf_jax.compare(f, w, step_size=0.01, iterations=10, flow=False)
      >>> import tempfile
      >>> path = tempfile.mkdtemp() + "/found.npz"
      >>> found.save(path)
      >>> gf_jax.load(path).run.metrics.loss[-1].round(3)
      array([1.049, 1.058, 1.064, 1.065], dtype=float32)
    """
    path = Path(path)
    try:
        with open_arrays(path) as archive:
            archive.check_stored()
            check_format(path.name, archive.read("format")["format"])
            comparison = _read(archive)
        _check(comparison)
    except (KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path}: holds no comparison that can be read ({reason}); "
            "accepted is a file that Comparison.save wrote"
        ) from None
    return comparison


def _fields(record: Any, prefix: str) -> dict[str, np.ndarray]:
    """The fields of a record, and of records in it, as arrays; None and () are left out."""
    arrays: dict[str, np.ndarray] = {}
    for name in _names(type(record)):
        value = getattr(record, name)
        if prefix + name in NESTED and value is not None:
            arrays |= _fields(value, f"{prefix}{name}.")
        elif isinstance(value, str):
            arrays[prefix + name] = np.frombuffer(value.encode(), np.uint8)
        elif value is not None and not (isinstance(value, tuple) and not value):
            arrays[prefix + name] = np.asarray(value)
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


def _read(archive: Archive) -> Comparison:
    names = archive.headers
    return Comparison(
        run=_record(archive, "run"),
        snapshots=_leaves(archive, "snapshots."),
        flow=_leaves(archive, "flow.") or None,
        curvature=_record(archive, "curvature") if "curvature.products" in names else None,
        kinks=int(archive.read("kinks")["kinks"]),
    )


def _record(archive: Archive, name: str) -> Any:
    """The record of that name, with the fields that are there."""
    fields: dict[str, Any] = {}
    for field in _names(NESTED[name]):
        key = f"{name}.{field}"
        if key in archive.headers:
            fields[field] = _value(field, archive.read(key)[key])
        elif key in NESTED and any(other.startswith(f"{key}.") for other in archive.headers):
            fields[field] = _record(archive, key)
    return NESTED[name](**fields)


def _names(record: type) -> Sequence[str]:
    """The fields of a record."""
    if dataclasses.is_dataclass(record):
        return [field.name for field in dataclasses.fields(record)]
    return record._fields  # type: ignore[attr-defined]


def _value(field: str, array: np.ndarray) -> Any:
    if array.dtype == np.uint8:
        return clean_label(array.tobytes().decode())
    if field in ("ratios", "seeds"):
        return tuple(array.ravel().tolist())
    return array.item() if array.ndim == 0 else array


def _leaves(archive: Archive, prefix: str) -> dict[str, np.ndarray]:
    names = [name for name in archive.headers if name.startswith(prefix)]
    return {name.removeprefix(prefix): array for name, array in archive.read(*names).items()}


def _check(comparison: Comparison) -> None:
    """Raises ValueError or TypeError unless the arrays fit together."""
    run = comparison.run
    check_run(run)
    points = (len(run.snapshot_iterations), len(run.ratios))
    stacks = ((comparison.snapshots, points), (comparison.flow or {}, points[:1]))
    for leaves, shape in stacks:
        for name, leaf in leaves.items():
            if leaf.shape[: len(shape)] != shape:
                raise ValueError(f"{name} has shape {leaf.shape}, wanted is {shape} and more")
    if comparison.curvature is not None:
        for end in (comparison.curvature.lambda_min, comparison.curvature.lambda_max):
            if not end.value.shape == end.residual.shape == points[:1]:
                raise ValueError(f"curvature has shape {end.value.shape}, wanted is {points[:1]}")
