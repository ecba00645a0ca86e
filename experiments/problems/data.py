"""Training sets: MNIST in its original file order, or scikit-learn's digits.

Selection rule. N examples are taken evenly from a pool in file order: example i
is number floor(i P / N) of a pool of P. For MNIST the pool is the first 50,000
training images if N <= 50,000, else all 60,000; so the default N = 1,000 is every
50th of the first 50,000, the paper's subset. For digits it is all 1,797 images.

Pixels are scaled to [0, 1] and standardised: (x - mean) / std, with 0.1307 and
0.3081 for MNIST, and for digits with mean and standard deviation of the whole
pool in the form given to the network.
"""

import gzip
import hashlib
import math
import os
import subprocess
import sys
import tempfile
import threading
import urllib.request
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from experiments.process import interruption
from experiments.process.mistakes import UsageError, expand

PROBE_SECONDS = 5.0
PATIENCE_SECONDS, PATIENCE_BYTES = 15.0, 50_000  # a download is slower than that, or given up
MNIST_URL = "https://storage.googleapis.com/cvdf-datasets/mnist/"
MNIST_MEAN, MNIST_STD = 0.1307, 0.3081

# Shape, and SHA-256 of the uncompressed file: gzip headers may differ, contents may not.
MNIST_FILES = {
    "train-images-idx3-ubyte": (
        (60_000, 28, 28),
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    "train-labels-idx1-ubyte": (
        (60_000,),
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    "t10k-images-idx3-ubyte": (
        (10_000, 28, 28),
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    "t10k-labels-idx1-ubyte": (
        (10_000,),
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
}


class Dataset(NamedTuple):
    """A training set.

    Attributes:
      images: standardised float32 images (examples, height, width).
      labels: classes 0 to 9 as int32.
      label: what every output calls the data, for example "MNIST, 1,000 images".
      source: where the data came from.
      mean: subtracted from pixels in [0, 1].
      std: then divided by.
      warning: what the user must be told about the choice of data, or "".
    """

    images: Float[np.ndarray, "examples height width"]
    labels: Int[np.ndarray, " examples"]
    label: str
    source: str
    mean: float
    std: float
    warning: str = ""


class UnreachableError(Exception):
    """MNIST cannot be had from the network now."""


def load(dataset: str, data_dir: str | None, examples: int, *, enlarge: bool = False) -> Dataset:
    """Loads a training set.

    Args:
      dataset: "mnist", "digits", or "auto": MNIST if it is given, cached or
        reachable, else digits with a warning.
      data_dir: folder that holds the IDX files of MNIST, gzipped or not.
      examples: number of training examples.
      enlarge: give digits as 28x28 images, as the convolutional networks need:
        bilinearly enlarged to 20x20 and centred on background, MNIST's own format.

    Raises:
      UsageError: if the data asked for cannot be had, or a file is damaged.
    """
    if dataset == "digits":
        return _digits(examples, enlarge)
    if data_dir is not None:
        return _mnist(expand("data_dir", data_dir), examples)
    try:
        return _mnist(_cached_mnist(), examples)
    except UnreachableError as error:
        if dataset == "mnist":
            raise UsageError(
                f"--dataset=mnist: {error}; give a folder with the four IDX files by "
                "--data_dir, or use --dataset=digits"
            ) from None
        return _digits(examples, enlarge)._replace(
            warning=f"{error}."
            " This run uses scikit-learn's handwritten digits instead, so its numbers are NOT "
            "those of MNIST or of the paper. For MNIST, give a folder with the four IDX files "
            "by --data_dir, or run where the network is reachable."
        )


def _select(pool: int, examples: int) -> Int[np.ndarray, " examples"]:
    return np.arange(examples) * pool // examples


def _check_examples(examples: int, available: int, name: str) -> None:
    if examples > available:
        raise UsageError(f"--examples={examples}: {name} holds {available}; accepted is up to that")


def _digits(examples: int, enlarge: bool) -> Dataset:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = digits.images / 16.0
    _check_examples(examples, len(pixels), "scikit-learn's digits data set")
    if enlarge:
        pixels = _enlarge(pixels)
    mean, std = float(pixels.mean()), float(pixels.std())
    chosen = _select(len(pixels), examples)
    form = " enlarged to 28x28" if enlarge else ""
    return Dataset(
        images=((pixels[chosen] - mean) / std).astype(np.float32),
        labels=digits.target[chosen].astype(np.int32),
        label=f"scikit-learn digits{form}, {examples:,} images",
        source="scikit-learn, sklearn.datasets.load_digits",
        mean=mean,
        std=std,
    )


def _enlarge(images: Float[np.ndarray, "n 8 8"]) -> Float[np.ndarray, "n 28 28"]:
    """Bilinear interpolation from 8x8 pixels to 20x20, centred on 28x28 background."""
    centres = np.clip((np.arange(20) + 0.5) * 8 / 20 - 0.5, 0, 7)
    weights = np.stack([np.interp(centres, np.arange(8), row) for row in np.eye(8)], axis=1)
    return np.pad(weights @ images @ weights.T, ((0, 0), (4, 4), (4, 4)))


def _mnist(folder: Path, examples: int) -> Dataset:
    _check_examples(examples, 60_000, "MNIST's training set")
    contents = {name: _read_idx(path) for name, path in _mnist_paths(folder).items()}
    pixels, labels = contents["train-images-idx3-ubyte"], contents["train-labels-idx1-ubyte"]
    chosen = _select(50_000 if examples <= 50_000 else 60_000, examples)
    scaled = pixels[chosen].astype(np.float32) / np.float32(255)
    return Dataset(
        images=(scaled - np.float32(MNIST_MEAN)) / np.float32(MNIST_STD),
        labels=labels[chosen].astype(np.int32),
        label=f"MNIST, {examples:,} images",
        source=str(folder),
        mean=MNIST_MEAN,
        std=MNIST_STD,
    )


def _mnist_paths(folder: Path) -> dict[str, Path]:
    """The files of MNIST that a folder holds, under any of their usual names.

    Raises:
      UsageError: if the folder or a training file is missing.
    """
    if not os.path.isdir(folder):  # which raises nothing
        raise UsageError(f"--data_dir={folder}: no such folder; give one with the four IDX files")
    found = {}
    for name in MNIST_FILES:
        dotted = name.replace("-idx", ".idx")
        candidates = [folder / (stem + end) for stem in (name, dotted) for end in (".gz", "")]
        present = [path for path in candidates if path.is_file()]
        if present:
            found[name] = present[0]
        elif name.startswith("train"):
            raise UsageError(
                f"--data_dir={folder}: {name} is missing; "
                f"accepted are {name}.gz and {name}, as MNIST is distributed"
            )
    return found


def _read_idx(path: Path) -> np.ndarray:
    """Reads an IDX file of MNIST after comparing it with the published one.

    Raises:
      UsageError: if it is unreadable, truncated or altered; the text names it.
    """
    name = path.name.removesuffix(".gz").replace(".idx", "-idx")
    shape, digest = MNIST_FILES[name]
    header = 4 + 4 * len(shape)
    size = header + math.prod(shape)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(size + 1)  # no more, whatever the file unpacks to
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UsageError(f"{path}: not readable, {error}; replace or delete this file") from None
    if len(content) != size:
        state = f"truncated at {len(content):,} of" if len(content) < size else "longer than its"
        raise UsageError(f"{path}: {state} {size:,} bytes; replace or delete this file")
    if hashlib.sha256(content).hexdigest() != digest:
        raise UsageError(f"{path}: altered, not MNIST's own {name}; replace or delete this file")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(root) if root else Path.home() / ".cache") / "gf_jax" / "mnist"
    except RuntimeError as error:  # a user without a home
        raise UnreachableError(f"MNIST has no cache folder ({error})") from None


def _cached_mnist() -> Path:
    """Folder with the four files, downloaded if they are not there.

    Raises:
      UnreachableError: if they are not there and cannot be had.
    """
    folder = _cache()
    missing = [name for name in MNIST_FILES if not os.path.isfile(folder / f"{name}.gz")]
    if missing:
        _probe(MNIST_URL + missing[0] + ".gz")
        _download(missing, folder)
    return folder


def _probe(url: str) -> None:
    """Raises UnreachableError unless the server answers within PROBE_SECONDS."""
    failure: list[str] = ["no answer within five seconds"]

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            with urllib.request.urlopen(request, timeout=PROBE_SECONDS):
                failure.clear()
        except Exception as error:  # whatever keeps us from MNIST is a reason, none is a bug
            reason = getattr(error, "reason", error)
            failure[:] = [getattr(reason, "strerror", None) or str(reason)]

    # In a thread, since looking up a host's name obeys no time limit.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    interruption.call(lambda: thread.join(PROBE_SECONDS))
    if failure:
        raise UnreachableError(f"MNIST is not reachable ({failure[0]})")


def _download(names: list[str], folder: Path) -> None:
    """Downloads files of MNIST into the cache, each once its contents are verified.

    Raises:
      UnreachableError: if they cannot be had, or come too slowly; the cache is then as it was.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix="downloads-") as temporary:
            _fetch([f"{MNIST_URL}{name}.gz" for name in names], Path(temporary))
            for name in names:
                _read_idx(Path(temporary, f"{name}.gz"))
            for name in names:
                Path(temporary, f"{name}.gz").replace(folder / f"{name}.gz")
    except OSError as error:
        raise UnreachableError(f"MNIST could not be kept ({error})") from None
    except UsageError as error:
        reason = str(error).removesuffix("; replace or delete this file")
        raise UnreachableError(f"MNIST could not be downloaded ({reason})") from None


def _fetch(urls: list[str], folder: Path) -> None:
    """Downloads files into a folder, in a process that is ended if they come too slowly.

    Raises:
      UnreachableError: with the reason.
    """
    command = [sys.executable, "-m", "experiments.fetch", str(folder), *urls]
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "text": True, "errors": "replace"}
    # In a session of its own an interrupt reaches this process alone, which then ends the other.
    with subprocess.Popen(command, start_new_session=True, **options) as fetching:
        try:
            reason = _watch(fetching, folder)
        finally:
            fetching.kill()
    if reason:
        raise UnreachableError(f"MNIST could not be downloaded ({reason})")


def _watch(fetching: "subprocess.Popen[str]", folder: Path) -> str:
    """Waits for the files, which show progress; returns why they do not come, or nothing."""
    before = 0
    while True:
        try:
            told, _ = interruption.call(lambda: fetching.communicate(timeout=PATIENCE_SECONDS))
            return told.strip() if fetching.returncode else ""
        except subprocess.TimeoutExpired:
            now = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            if now - before < PATIENCE_BYTES:
                return f"{now - before:,} bytes came in {PATIENCE_SECONDS:g} seconds"
            before = now
