"""Points of weight space as files.

Arrays are named ``<layer>.<kind>``: ``dense_1.weight`` of shape (outputs, inputs),
``dense_1.bias`` of shape (outputs,), ``conv_1.weight`` of shape (outputs, inputs, height,
width), ``conv_1.bias``. The same file is what ``--initial_params`` reads.
"""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.process.mistakes import UsageError, expand
from gf_jax.problems.networks import Params, Shapes
from gf_jax.study.files import Header, check_format, open_arrays, printable, write_arrays


def write_params(path: Path, params: Params) -> None:
    """Writes one point of weight space in the format described above."""
    write_arrays(path, named(params))


def read_params(path: str, shapes: Shapes) -> Params:
    """Reads a starting point written by ``write_params`` or by another program.

    Args:
      path: npz file with one floating-point array per parameter.
      shapes: the shapes wanted, ``{layer: {kind: shape}}``.

    Returns:
      The parameters as float32.

    Raises:
      UsageError: if the file is unreadable, or an array is missing, unknown, not
        floating point, not finite or of another shape.
    """
    flag = f"--initial_params={path}"
    wanted = {
        f"{layer}.{kind}": shape for layer, ks in shapes.items() for kind, shape in ks.items()
    }
    try:
        with open_arrays(expand("initial_params", path)) as archive:
            if "format" in archive.headers:  # other programs write none
                _check_header(f"{flag}: format", archive.headers["format"], (), np.integer)
                check_format(Path(path).name, archive.read("format")["format"])
            _check_names(flag, archive.headers, wanted)
            arrays = archive.read(*wanted)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{flag}: not readable ({reason(error)}); accepted is an npz file of arrays"
        ) from None
    for name, array in arrays.items():
        with np.errstate(over="ignore"):
            finite = np.isfinite(array.astype(np.float32)).all()
        if not finite:
            raise UsageError(
                f"{flag}: array {name} has entries that are not finite in float32; accepted are "
                "finite numbers"
            )
    return {
        layer: {kind: jnp.asarray(arrays[f"{layer}.{kind}"], jnp.float32) for kind in kinds}
        for layer, kinds in shapes.items()
    }


def _check_names(flag: str, headers: dict[str, Header], wanted: dict[str, tuple[int, ...]]) -> None:
    """Refuses arrays that are missing, unknown or of another shape, before they are read."""
    for name, shape in wanted.items():
        if name not in headers:
            raise UsageError(f"{flag}: array {name} is missing; accepted are {_listing(wanted)}")
        _check_header(f"{flag}: array {name}", headers[name], shape, np.floating)
    unknown = sorted(set(headers) - {*wanted, "format"})
    if unknown:
        raise UsageError(
            f"{flag}: array {unknown[0]} is not a parameter of this network; "
            f"accepted are {_listing(wanted)}"
        )


def _check_header(name: str, header: Header, shape: tuple[int, ...], kind: type) -> None:
    if header.shape != shape:
        raise UsageError(f"{name} has shape {header.shape}; accepted is {shape}")
    if not np.issubdtype(header.dtype, kind):
        accepted = "an integer" if kind is np.integer else "floating point"
        raise UsageError(f"{name} has dtype {header.dtype}; accepted is {accepted}")


def _listing(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in shapes.items())


def named(params: Params) -> dict[str, Any]:
    """The arrays of params by their names."""
    return {
        f"{layer}.{kind}": np.asarray(array)
        for layer, kinds in params.items()
        for kind, array in kinds.items()
    }


def reason(error: Exception) -> str:
    """What was wrong, in a bounded line that terminals show as it is."""
    if isinstance(error, OSError) and error.strerror:
        name = f": {Path(error.filename).name}" if error.filename else ""
        return printable(error.strerror + name, 300)
    return printable(error, 300)
