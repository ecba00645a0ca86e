"""Image data sets that are published as four IDX files, as MNIST is.

Selection rule. N examples are taken evenly from a pool in file order: example i is number
floor(i P / N) of a pool of P, the first 50,000 training images if N <= 50,000, else all 60,000.
Pixels are scaled to [0, 1] and standardised.

A file is compared with the published one, so that no data set is taken for another whose files
have the same names.
"""

import dataclasses
import gzip
import hashlib
import math
import os
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from experiments.problems.datasets import download
from experiments.problems.datasets.dataset import (
    Dataset,
    DatasetKind,
    UnreachableError,
    check_examples,
    select,
)
from experiments.process.mistakes import UsageError, expand

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
SHAPES: Mapping[str, tuple[int, ...]] = {
    IMAGES: (60_000, 28, 28),
    LABELS: (60_000,),
    "t10k-images-idx3-ubyte": (10_000, 28, 28),
    "t10k-labels-idx1-ubyte": (10_000,),
}
POOL = 50_000  # of so many the examples are, unless there are more
ADVICE = "; replace or delete this file"

# Which data set a file is of, by the SHA-256 of its contents.
_known: dict[str, "Published"] = {}


@dataclasses.dataclass(frozen=True)
class Published:
    """A data set in four IDX files.

    Attributes:
      name: what outputs and messages call it.
      flag: what ``--dataset`` calls it; also the name of its folder in the cache.
      url: address of the gzipped files, up to their names.
      mean, std: of its pixels in [0, 1], by which they are standardised.
      digests: SHA-256 of every file, unpacked: gzip headers may differ, contents may not.
      digits: as in ``Dataset``.
      shapes: of the array in every file.
    """

    name: str
    flag: str
    url: str
    mean: float
    std: float
    digests: Mapping[str, str]
    digits: bool = True
    shapes: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=lambda: SHAPES)

    def kind(self, meaning: str) -> DatasetKind:
        """The data set as it is offered by name, with the meaning that help tells."""
        _known.update(dict.fromkeys(self.digests.values(), self))

        def load(data_dir: str | None, examples: int, enlarge: bool) -> Dataset:
            try:
                return self.load(data_dir, examples)
            except UnreachableError as error:
                raise UsageError(
                    f"--dataset={self.flag}: {error}; give a folder with the four IDX files by "
                    "--data_dir, or use --dataset=digits"
                ) from None

        return DatasetKind(meaning, load)

    def load(self, data_dir: str | None, examples: int) -> Dataset:
        """So many examples, of the folder given, else of the cache, else of the network.

        Raises:
          UsageError: if the folder does not hold the files, or one is not as published.
          UnreachableError: if no folder is given and the files cannot be had.
        """
        folder = self.cached() if data_dir is None else expand("data_dir", data_dir)
        available, *_ = self.shapes[IMAGES]
        check_examples(examples, available, f"{self.name}'s training set")
        contents = {name: self.read(path) for name, path in self._paths(folder).items()}
        chosen = select(min(POOL, available) if examples <= POOL else available, examples)
        scaled = contents[IMAGES][chosen].astype(np.float32) / np.float32(255)
        return Dataset(
            images=(scaled - np.float32(self.mean)) / np.float32(self.std),
            labels=contents[LABELS][chosen].astype(np.int32),
            label=f"{self.name}, {examples:,} images",
            source=str(folder),
            mean=self.mean,
            std=self.std,
            digits=self.digits,
        )

    def _paths(self, folder: Path) -> dict[str, Path]:
        """The files that a folder holds, under any of their usual names.

        Raises:
          UsageError: if the folder or a training file is missing.
        """
        if not os.path.isdir(folder):  # which raises nothing
            raise UsageError(
                f"--data_dir={folder}: no such folder; give one with the four IDX files"
            )
        found = {}
        for name in self.digests:
            dotted = name.replace("-idx", ".idx")
            candidates = [folder / (stem + end) for stem in (name, dotted) for end in (".gz", "")]
            present = [path for path in candidates if path.is_file()]
            if present:
                found[name] = present[0]
            elif name.startswith("train"):
                raise UsageError(
                    f"--data_dir={folder}: {name} is missing; "
                    f"accepted are {name}.gz and {name}, as {self.name} is distributed"
                )
        return found

    def read(self, path: Path) -> np.ndarray:
        """The array in a file, which is compared with the published one.

        Raises:
          UsageError: if it is unreadable, truncated, altered or of another data set; the text
            names it.
        """
        name = path.name.removesuffix(".gz").replace(".idx", "-idx")
        shape = self.shapes[name]
        header = 4 + 4 * len(shape)
        size = header + math.prod(shape)
        try:
            with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
                content = file.read(size + 1)  # no more, whatever the file unpacks to
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise UsageError(f"{path}: not readable, {error}{ADVICE}") from None
        if len(content) != size:
            short = len(content) < size
            state = f"truncated at {len(content):,} of" if short else "longer than its"
            raise UsageError(f"{path}: {state} {size:,} bytes{ADVICE}")
        self._compare(path, name, hashlib.sha256(content).hexdigest())
        return np.frombuffer(content, np.uint8, offset=header).reshape(shape)

    def _compare(self, path: Path, name: str, digest: str) -> None:
        if digest == self.digests[name]:
            return
        other = _known.get(digest)
        if other is None or other is self:  # or another file of the same data set
            raise UsageError(f"{path}: altered, not {self.name}'s own {name}{ADVICE}")
        raise UsageError(
            f"{path}: is of {other.name}, not {self.name}'s own {name}; use "
            f"--dataset={other.flag}, or give a folder with {self.name}'s files"
        )

    def cache(self) -> Path:
        """Folder in which the files are kept once they are downloaded.

        Raises:
          UnreachableError: if there is no place for it.
        """
        root = os.environ.get("XDG_CACHE_HOME")
        try:
            return (Path(root) if root else Path.home() / ".cache") / "gf_jax" / self.flag
        except RuntimeError as error:  # a user without a home
            raise UnreachableError(f"{self.name} has no cache folder ({error})") from None

    def cached(self) -> Path:
        """That folder, with the four files, downloaded if they are not there.

        Raises:
          UnreachableError: if they are not there and cannot be had.
        """
        folder = self.cache()
        missing = [name for name in self.digests if not os.path.isfile(folder / f"{name}.gz")]
        if missing:
            urls = [f"{self.url}{name}.gz" for name in missing]
            download.probe(self.name, urls[0])
            download.into(folder, self.name, urls, self._verify)
        return folder

    def _verify(self, path: Path) -> None:
        """Raises UnreachableError if a file that was downloaded is not the published one."""
        try:
            self.read(path)
        except UsageError as error:
            reason = str(error).removesuffix(ADVICE)
            raise UnreachableError(f"{self.name} could not be downloaded ({reason})") from None
