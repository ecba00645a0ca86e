"""Run directories: what they hold, written and read.

    configuration.json   resolved configuration, data, versions, device, command
    initial_params.npz   the starting point, one array per parameter
    metrics.npz          per base iteration and lane: losses and distances
    snapshots.npz        per snapshot and lane: training accuracy and all parameters
    flow.npz             gradient flow at the snapshots' times, distances to it, prediction
                         (of several starting points, all of these with an axis of seeds)
    depth_<n>.npz        of deep_linear: what became of every start of n layers
    saddle.npz           of necessity: gaps, and largest step sizes
    summary.json         the numbers of the final table; of the benchmark, all of them
    figure.png, .pdf     the figure

Parameter arrays are named ``<layer>.<kind>``: ``dense_1.weight`` of shape
(outputs, inputs), ``dense_1.bias`` of shape (outputs,), ``conv_1.weight`` of shape
(outputs, inputs, height, width), ``conv_1.bias``. The same file is what
``--initial_params`` reads. Nothing is pickled.
"""

import dataclasses
import datetime
import importlib.metadata
import itertools
import json
import platform
import sys
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

import gf_jax
from experiments.configuration import UsageError
from experiments.data import Dataset
from experiments.records import Reference, Run
from gf_jax.comparison import Metrics
from gf_jax.networks import Params, Shapes

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

FORMAT = 1
LIBRARIES = ("jax", "jaxlib", "diffrax", "numpy", "optax", "scikit-learn", "matplotlib")


def create(output_dir: str | None, name: str) -> Path:
    """Creates an empty run directory.

    Args:
      output_dir: where; None makes ``runs/<name>-<date>-<time>``, numbered on if
        that is taken.
      name: what the run is about, for the default.

    Raises:
      UsageError: if the directory has contents or cannot be written.
    """
    stem = f"{name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    directory = Path("runs", stem) if output_dir is None else Path(output_dir).expanduser()
    try:
        if output_dir is None:
            directory = _make_new(directory)
        else:
            directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise UsageError(
                f"--output_dir={directory}: is not empty, and results are never overwritten; "
                "give a new or an empty folder"
            )
        probe = directory / "writable"
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise UsageError(
            f"--output_dir={directory}: cannot be written ({error.strerror}); "
            "give a folder that can"
        ) from None
    return directory


def _make_new(directory: Path) -> Path:
    """Makes the directory, numbered on if it is there, also by another program just now."""
    numbered = (directory.with_name(f"{directory.name}-{n}") for n in itertools.count(2))
    for candidate in itertools.chain([directory], numbered):
        try:
            candidate.mkdir(parents=True)
        except FileExistsError:
            continue
        return candidate
    raise AssertionError("there are infinitely many candidates")


def discard(directory: Path) -> None:
    """Removes the directory of a run that is not made after all; one with results stays."""
    if any(directory.glob("metrics*.npz")):
        return
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()


def write_configuration(
    directory: Path, config: "DataclassInstance", dataset: Dataset | None, network_label: str
) -> None:
    """Writes what is needed to repeat the run."""
    device = jax.devices()[0]
    _write_json(
        directory / "configuration.json",
        {
            "configuration": dataclasses.asdict(config),
            "network": network_label,
            "data": dataset
            and {field: getattr(dataset, field) for field in ("label", "source", "mean", "std")},
            "device": {
                "platform": device.platform,
                "kind": device.device_kind,
                "count": jax.device_count(),
            },
            "versions": {"python": platform.python_version(), "gf_jax": gf_jax.__version__}
            | {library: importlib.metadata.version(library) for library in LIBRARIES},
            "command": sys.argv,
            "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        },
    )


def write_metrics(directory: Path, run: Run, name: str = "metrics") -> None:
    """Writes losses and distances of every base iteration."""
    np.savez(
        directory / f"{name}.npz",
        format=np.array(FORMAT),
        ratio=np.array(run.ratios),
        step_size=run.step_sizes,
        iteration=run.iterations,
        time=run.times,
        **_seeds(run),
        **run.metrics._asdict(),
    )


def write_snapshots(directory: Path, run: Run, snapshots: Params) -> None:
    """Writes accuracy and parameters, leaves of shape (snapshots, [seeds,] lanes, ...)."""
    arrays = {f"params.{name}": array for name, array in _named(snapshots).items()}
    np.savez(
        directory / "snapshots.npz",
        format=np.array(FORMAT),
        ratio=np.array(run.ratios),
        iteration=run.snapshot_iterations,
        accuracy=run.accuracy,
        **_seeds(run),
        **arrays,
    )


def write_flow(directory: Path, run: Run, params: Params) -> None:
    """Writes the reference and the flow's parameters, leaves of shape (snapshots, [seeds,] ...)."""
    assert run.reference is not None
    arrays = {f"params.{name}": array for name, array in _named(params).items()}
    np.savez(
        directory / "flow.npz",
        format=np.array(FORMAT),
        time=run.snapshot_times,
        **run.reference._asdict(),
        **_seeds(run),
        **arrays,
    )


def _seeds(run: Run) -> dict[str, Any]:
    """Seeds of the starting points, which arrays have an axis for if there are several."""
    return {"seed": np.array(run.seeds)} if run.seeds else {}


def write_record(directory: Path, name: str, record: Any) -> None:
    """Writes the fields of a record as one npz file; those of a record in it as ``a.b``."""
    np.savez(directory / f"{name}.npz", format=np.array(FORMAT), **_fields(record))


def _fields(record: Any, prefix: str = "") -> dict[str, Any]:
    arrays: dict[str, Any] = {}
    for name, value in record._asdict().items():
        if hasattr(value, "_asdict"):
            arrays |= _fields(value, f"{prefix}{name}.")
        elif value is not None:
            arrays[prefix + name] = value
    return arrays


def write_summary(directory: Path, summary: dict[str, Any]) -> None:
    """Writes the summary."""
    _write_json(directory / "summary.json", summary)


def read_run(directory: Path) -> Run:
    """Reads the numbers of a saved run.

    Raises:
      UsageError: if the folder holds no complete run; the text names the file.
    """
    try:
        description = json.loads((directory / "configuration.json").read_text())
        saved = _read_archive(directory / "metrics.npz")
        kept = _read_archive(directory / "snapshots.npz", ("format", "iteration", "accuracy"))
        _check_format(description, saved, kept)
        reference = None
        if (directory / "flow.npz").exists():
            flow = _read_archive(directory / "flow.npz", ("format", *Reference._fields))
            _check_format(flow)
            reference = Reference(**{field: flow[field] for field in Reference._fields})
        return Run(
            network_label=description["network"],
            data_label=description["data"]["label"],
            step_size=description["configuration"]["step_size"],
            ratios=tuple(saved["ratio"].tolist()),
            iterations=saved["iteration"],
            metrics=Metrics(**{field: saved[field] for field in Metrics._fields}),
            snapshot_iterations=kept["iteration"],
            accuracy=kept["accuracy"],
            reference=reference,
            seeds=tuple(saved["seed"].tolist()) if "seed" in saved else (),
        )
    except KeyError as error:
        reason = f"{error} is missing"
    except (OSError, TypeError, ValueError) as error:
        reason = _reason(error)
    raise UsageError(f"{directory}: holds no run that can be read ({reason}); give another folder")


def _check_format(*archives: dict[str, Any]) -> None:
    for archive in archives:
        if archive["format"] != FORMAT:
            raise ValueError(f"format {archive['format']}; this version reads {FORMAT}")


def write_params(path: Path, params: Params) -> None:
    """Writes one point of weight space in the format described above."""
    np.savez(path, **_named(params))


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
    try:
        arrays = _read_archive(Path(path).expanduser())
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{flag}: not readable ({_reason(error)}); accepted is an npz file of arrays"
        ) from None
    wanted = {
        f"{layer}.{kind}": shape for layer, ks in shapes.items() for kind, shape in ks.items()
    }
    for name, shape in wanted.items():
        if name not in arrays:
            raise UsageError(f"{flag}: array {name} is missing; accepted are {_listing(wanted)}")
        _check_array(f"{flag}: array {name}", arrays[name], shape)
    unknown = sorted(set(arrays) - set(wanted))
    if unknown:
        raise UsageError(
            f"{flag}: array {unknown[0]} is not a parameter of this network; "
            f"accepted are {_listing(wanted)}"
        )
    return {
        layer: {kind: jnp.asarray(arrays[f"{layer}.{kind}"], jnp.float32) for kind in kinds}
        for layer, kinds in shapes.items()
    }


def _read_archive(path: Path, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Reads arrays, all if no names are given, of an npz file; nothing is unpickled.

    Raises:
      OSError: if the file cannot be read.
      ValueError: if it is damaged or not an npz file of arrays.
    """
    with path.open("rb") as file:
        try:
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise ValueError("a single array")
            return {name: archive[name] for name in names or archive.files}
        except (EOFError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{path.name}: {error}") from None


def _check_array(name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise UsageError(f"{name} has shape {array.shape}; accepted is {shape}")
    if not np.issubdtype(array.dtype, np.floating):
        raise UsageError(f"{name} has dtype {array.dtype}; accepted is floating point")
    with np.errstate(over="ignore"):
        finite = np.isfinite(array.astype(np.float32)).all()
    if not finite:
        raise UsageError(f"{name} has entries that are not finite float32 numbers")


def _listing(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in shapes.items())


def _named(params: Params) -> dict[str, Any]:
    return {
        f"{layer}.{kind}": np.asarray(array)
        for layer, kinds in params.items()
        for kind, array in kinds.items()
    }


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return (
            f"{error.strerror}: {Path(error.filename).name}" if error.filename else error.strerror
        )
    return " ".join(str(error).split())


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps({"format": FORMAT} | content, indent=2, allow_nan=False) + "\n")
