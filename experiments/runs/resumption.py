"""Opening the directory of a run that was cut short, so that it goes on in it."""

import dataclasses
import datetime
import importlib
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.cli.experiment import Experiment
from experiments.cli.options import fits, kinds, located
from experiments.process import folders, peers
from experiments.process.mistakes import UsageError, expand
from experiments.runs import store
from experiments.runs.journal import CHECKPOINTS
from experiments.runs.options.storage import Storage
from gf_jax.study.files import printable, read_json, write_json

# Flags that say where and how often, not what is computed: given anew, they take effect.
FREE = ("data_dir", "checkpoint_dir", "checkpoint_every")
COMPARED = ("versions", "device", "digests")
DIGESTS = {
    "data": "the training data are other than those of the run; give them by --data_dir",
    "initial_params": "the starting point is another than that of the run; give weights by "
    "--initial_params if it had some, and the same",
}


def command(directory: Path) -> str:
    """The command that resumes a run."""
    return shlex.join([sys.executable, "-m", "experiments.main", f"--resume={directory}"])


def chosen(
    given: dict[str, Any], load: Callable[[str], Experiment]
) -> tuple[Experiment, Storage] | None:
    """The experiment and the options of the run that ``--resume`` names, None if it is complete.

    Args:
      given: the flags that were given, ``resume`` among them.
      load: gives the experiment of a name.

    Raises:
      UsageError: if there is no such run, or flags differ from its own.
    """
    directory = expand("resume", given["resume"])
    experiment, saved = _saved(directory, _description(directory)["configuration"], load)
    given = located(experiment.options, given) | {"resume": str(directory)}
    _check_drift(experiment, saved, given)
    changes = {name: given[name] for name in FREE if name in given}
    weights = saved.values().get("initial_params")
    if weights is not None:
        changes["initial_params"] = _weights(directory, weights, given)
    if _complete(directory):
        if not peers.leads():
            return None
        if (directory / folders.LOCK).exists():  # killed while it removed what is left here
            folders.lock("resume", directory)
            folders.tidy(directory)
            _discard_checkpoints(saved.checkpoint_dir or str(directory / CHECKPOINTS))
        print(f"{directory}: this run is complete, nothing is left to do")
        return None
    return experiment, dataclasses.replace(saved, resume=str(directory), **changes)


def _discard_checkpoints(folder: str) -> None:
    importlib.import_module("experiments.runs.checkpoints").discard(folder)  # slow to load


def _weights(directory: Path, saved: str, given: dict[str, Any]) -> str:
    """Where the starting point is read: what is given now, else what the run has kept of it.

    Whether these are the weights that the run had is told by their digest, not by their name.

    Raises:
      UsageError: if what is given is not there.
    """
    path, kept = given.get("initial_params"), directory / "initial_params.npz"
    if path is not None and os.path.exists(path):
        return path
    if path is not None and not _same_path(path, saved):
        raise UsageError(
            f"--initial_params={path}: no such file; drop the flag, since the run has kept its "
            "starting point"
        )
    return str(kept) if kept.exists() else saved


def _same_path(path: str, other: str) -> bool:
    return os.path.realpath(path) == os.path.realpath(other)


def reopen(options: Storage, digests: dict[str, str]) -> tuple[Path, list[str]]:
    """Locks the directory of a run to be resumed and tidies it.

    Args:
      options: those of the run.
      digests: of its data and its starting point, as they are now.

    Returns:
      The directory, and lines to be shown.

    Raises:
      UsageError: if the run is another process's, or data or starting point are others.
    """
    directory = Path(options.resume or "")
    folders.lock("resume", directory)
    description = _description(directory)
    for name, text in DIGESTS.items():
        if name in digests and description["digests"].get(name) != digests[name]:
            raise UsageError(f"--resume={directory}: {text}")
    folders.tidy(directory)
    now = store.surroundings()
    differing = [
        f"{name} {printable(there, 60)} now {here}"
        for kind in ("versions", "device")
        for name, here in now[kind].items()
        if (there := description[kind].get(name)) != here
    ]
    if not differing:
        return directory, []
    return directory, [
        f"warning: {', '.join(differing)}: results are those of an undisturbed run up to "
        "rounding, not to the last bit"
    ]


def note(options: Storage) -> None:
    """Writes into the directory of a run that it is resumed, and where it now has its files."""
    directory = Path(options.resume or "")
    description = _description(directory)
    at = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    now = options.values()
    description["configuration"] |= {name: now[name] for name in FREE if name in now}
    resumed = {"at": at} | store.surroundings()
    description["resumed"] = [*description.get("resumed", []), resumed]
    write_json(directory / "configuration.json", description)


def _description(directory: Path) -> dict[str, Any]:
    """The contents of configuration.json."""
    try:
        description = store.read_description(directory)
        missing = [name for name in COMPARED if description.get(name) is None]
        if missing:
            raise ValueError(f"{missing[0]} is missing")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(
            f"--resume={directory}: holds no run that can be resumed ({printable(reason, 300)}); "
            "give the directory of a run"
        ) from None
    return description


def _saved(
    directory: Path, saved: dict[str, Any], load: Callable[[str], Experiment]
) -> tuple[Experiment, Storage]:
    """The options that were saved; their values are checked, as others may have written them.

    What was not used is null, and so is what other experiments have in older files.
    """
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in saved.items()
        if value is not None
    }
    try:
        experiment = load(str(values.pop("experiment", "")))
        known = kinds(experiment.options)
        wrong = [n for n, value in values.items() if n not in known or not fits(value, known[n])]
        if not wrong:
            return experiment, experiment.options.of(**values)
        reason = printable(wrong[0], 60)
    except UsageError as error:
        reason = printable(error, 300)
    raise UsageError(
        f"--resume={directory}: configuration.json is damaged at {reason}; accepted is what the "
        "run has written"
    )


def _check_drift(experiment: Experiment, saved: Storage, given: dict[str, Any]) -> None:
    """Refuses flags that differ from those of the run, all in one line."""
    own = {"experiment": experiment.name} | saved.values()
    free = {"resume", *FREE}
    if _same_path(given.get("output_dir", ""), given["resume"]):
        free.add("output_dir")  # the directory may have been moved
    if own.get("initial_params") is not None:
        free.add("initial_params")  # compared by its digest
    differing = [
        f"--{name} is {_text(own.get(name))} there and {_text(value)} here"
        for name, value in given.items()
        if name not in free and value != own.get(name)
    ]
    if differing:
        raise UsageError(
            f"--resume={given['resume']}: the run goes on with its own flags, and "
            f"{', '.join(differing)}; drop {'them' if len(differing) > 1 else 'it'}"
        )


def _text(value: object) -> str:
    if value is None:
        return "not given"
    return printable(",".join(map(str, value)) if isinstance(value, tuple) else value)


def _complete(directory: Path) -> bool:
    """Whether all results are written; the summary is the last of them."""
    try:
        return not read_json(directory / "summary.json").get("interrupted", False)
    except (OSError, ValueError):
        return False
