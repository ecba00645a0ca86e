"""Run directories: what they hold, written and read.

    configuration.json   resolved configuration, data, versions, device, command
    initial_params.npz   the starting point, one array per parameter
    metrics.npz          per base iteration and lane: losses and distances; momentum, nesterov,
                         batch_size if the run is not plain descent on all examples;
                         doubts, as UTF-8 lines, if there are any
    snapshots.npz        per snapshot and lane: training accuracy and, if kept, all parameters
    flow.npz             gradient flow at the snapshots' times, distances to it, prediction;
                         doubts once more, with those of the flow
                         (of several starting points, all of these with an axis of seeds)
    <record>.npz         the numbers of another experiment, see its module
    summary.json         the numbers of the final table; of the benchmark, all of them
    figure.png, .pdf     the figure
    unsaid.txt           what the terminal did not take, if there was any
    report.html          the page: verdict, figures that can be zoomed, tables, configuration

Parameter arrays are named ``<layer>.<kind>``, see ``weights``. Every npz and JSON file holds its
``format``. Nothing is pickled.
"""

import dataclasses
import datetime
import importlib.metadata
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import gf_jax
from experiments.problems.data import Dataset
from experiments.problems.weights import named, reason
from experiments.process.mistakes import LARGEST, SMALLEST, UsageError
from gf_jax.problems.losses import LOSSES
from gf_jax.problems.networks import Params
from gf_jax.study.fields import encode, optional
from gf_jax.study.files import (
    check_format,
    open_arrays,
    printable,
    read_json,
    write_arrays,
    write_json,
)
from gf_jax.study.record import METHOD, METRICS, REFERENCE, Reference, Run, build_run

# Parts of configuration.json, and what they are in JSON.
DESCRIPTION: dict[str, tuple[type, ...]] = {
    "configuration": (dict,),
    "network": (str,),
    "data": (dict, type(None)),
    "device": (dict, type(None)),
    "versions": (dict, type(None)),
    "digests": (dict, type(None)),
    "resumed": (list, type(None)),
}
OPTIONAL = ("seed", "doubts", *METHOD.fields)  # of metrics.npz
LIBRARIES = ("jax", "jaxlib", "diffrax", "numpy", "optax", "scikit-learn", "matplotlib")


def write_configuration(
    directory: Path,
    configuration: dict[str, Any],
    dataset: Dataset | None,
    network_label: str,
    digests: dict[str, str] | None = None,
) -> None:
    """Writes what is needed to repeat the run, and what it is compared by when it is resumed.

    Args:
      directory: the run directory.
      configuration: experiment and options by name.
      dataset: the training set, if there is one.
      network_label: what every output calls the network.
      digests: of data and starting point.
    """
    write_json(
        directory / "configuration.json",
        {
            "configuration": configuration,
            "network": network_label,
            "data": dataset
            and {field: getattr(dataset, field) for field in ("label", "source", "mean", "std")},
            **surroundings(),
            "digests": digests or {},
            "command": sys.argv,
            "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        },
    )


def change_configuration(directory: Path, changes: dict[str, Any]) -> None:
    """Writes other values of options, which the experiment has found."""
    description = read_json(directory / "configuration.json")
    description["configuration"] |= changes
    write_json(directory / "configuration.json", description)


def surroundings() -> dict[str, dict[str, Any]]:
    """The device and the versions of libraries that a run is made by."""
    device = jax.devices()[0]
    return {
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
        },
        "versions": {"python": platform.python_version(), "gf_jax": gf_jax.__version__}
        | {library: importlib.metadata.version(library) for library in LIBRARIES},
    }


def write_metrics(directory: Path, run: Run, name: str = "metrics") -> None:
    """Writes losses and distances of every base iteration."""
    arrays = {
        "ratio": np.array(run.ratios),
        "step_size": run.step_sizes,
        "iteration": run.iterations,
        "time": run.times,
    }
    arrays |= _seeds(run) | _method(run) | _doubts(run) | vars(run.metrics)
    write_arrays(directory / f"{name}.npz", arrays)


def write_snapshots(directory: Path, run: Run, snapshots: Params | None) -> None:
    """Writes accuracy and, if given, parameters, of shape (snapshots, [seeds,] lanes, ...)."""
    arrays = {
        "ratio": np.array(run.ratios),
        "iteration": run.snapshot_iterations,
        "accuracy": run.accuracy,
    }
    write_arrays(directory / "snapshots.npz", arrays | _seeds(run) | _params(snapshots))


def write_flow(directory: Path, run: Run, params: Params | None) -> None:
    """Writes the reference and, if given, the flow's parameters, (snapshots, [seeds,] ...)."""
    assert run.reference is not None
    known = {name: each for name, each in vars(run.reference).items() if each is not None}
    arrays = {"time": run.snapshot_times} | known | _seeds(run) | _doubts(run)
    write_arrays(directory / "flow.npz", arrays | _params(params))


def _params(stack: Params | None) -> dict[str, Any]:
    if stack is None:
        return {}
    return {f"params.{name}": array for name, array in named(stack).items()}


def _seeds(run: Run) -> dict[str, Any]:
    """Seeds of the starting points, which arrays have an axis for if there are several."""
    return {"seed": np.array(run.seeds)} if run.seeds else {}


def _method(run: Run) -> dict[str, Any]:
    """How steps are made, if not by plain descent on all examples."""
    fields = dataclasses.asdict(run.method)
    return {
        name: encode(value) if isinstance(value, str) else np.array(value)
        for name, value in fields.items()
        if value
    }


def _doubts(run: Run) -> dict[str, Any]:
    """What is doubtful, if anything is; UTF-8 bytes, a line for each sentence."""
    return {"doubts": encode(run.doubts)} if run.doubts else {}


def write_record(directory: Path, name: str, record: Any) -> None:
    """Writes the fields of a record as one npz file; those of a record in it as ``a.b``."""
    write_arrays(directory / f"{name}.npz", _fields(record))


def _fields(record: Any, prefix: str = "") -> dict[str, Any]:
    arrays: dict[str, Any] = {}
    for name, value in vars(record).items():
        if dataclasses.is_dataclass(value):
            arrays |= _fields(value, f"{prefix}{name}.")
        elif value is not None:
            arrays[prefix + name] = value
    return arrays


def write_summary(directory: Path, summary: dict[str, Any]) -> None:
    """Writes the summary."""
    write_json(directory / "summary.json", summary)


def read_description(directory: Path) -> dict[str, Any]:
    """Reads configuration.json, which may be a stranger's, as far as the kinds of its parts go.

    Raises:
      OSError: if it cannot be read.
      ValueError: if it is damaged.
    """
    description = read_json(directory / "configuration.json")
    for name, kinds in DESCRIPTION.items():
        if name not in description and type(None) not in kinds:
            raise ValueError(f"{name} is missing")
        if not isinstance(description.get(name), kinds):
            raise ValueError(f"configuration.json is damaged at {name}")
    return description


def read_run(directory: Path) -> Run:
    """Reads the numbers of a saved run.

    Raises:
      UsageError: if the folder holds no complete run; the text names the file.
    """
    try:
        return _read_run(directory, read_description(directory))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{directory}: holds no run that can be read ({reason(error)}); give another folder"
        ) from None


def _read_run(directory: Path, description: dict[str, Any]) -> Run:
    """The run, of what its files hold by the names that fields have there."""
    saved = _read("metrics", directory, ("ratio", "iteration", *METRICS.fields), OPTIONAL)
    kept = _read("snapshots", directory, ("iteration", "accuracy"))
    flow: dict[str, np.ndarray] = {}
    if (directory / "flow.npz").exists():
        later = tuple(optional(Reference))  # which older files do not have
        wanted = [name for name in REFERENCE.fields if name not in later]
        flow = _read("flow", directory, wanted, (*later, "doubts"))
    step_size = description["configuration"].get("step_size")
    if type(step_size) not in (int, float) or not SMALLEST <= step_size <= LARGEST:
        raise ValueError(f"step_size is {printable(step_size, 20)}")
    found = {
        "network_label": description["network"],
        "data_label": (description.get("data") or {}).get("label"),
        "step_size": float(step_size),
        "ratios": saved["ratio"],
        "iterations": saved["iteration"],
        "metrics": {name: saved[name] for name in METRICS.fields},
        "snapshot_iterations": kept["iteration"],
        "accuracy": kept["accuracy"],
        "reference": {name: flow[name] for name in REFERENCE.fields if name in flow} or None,
        "seeds": saved.get("seed"),
        "method": {name: saved[name] for name in METHOD.fields if name in saved},
        "loss_unit": _loss_unit(description["configuration"].get("loss")),
        "doubts": flow.get("doubts", saved.get("doubts")),
    }
    seeds = saved["seed"].size if "seed" in saved else None
    return build_run(found, {"seeds": seeds})


def _loss_unit(loss: object) -> str | None:
    """The unit of a loss by its name; None of one that is not known, or not told."""
    return LOSSES[loss].unit if isinstance(loss, str) and loss in LOSSES else None


def _read(
    name: str, directory: Path, fields: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """Named arrays of a file of a run, and optional ones if they are there.

    Raises:
      OSError, ValueError: as ``files.open_arrays``, or if it is of another format.
    """
    with open_arrays(directory / f"{name}.npz") as archive:
        archive.check_stored()
        check_format(f"{name}.npz", archive.read("format")["format"])
        return archive.read(*fields, *(name for name in optional if name in archive.headers))
