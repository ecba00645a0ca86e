"""The result of a comparison: what it holds, prints, draws, and is saved as."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gf_jax.study import saving, summary, table
from gf_jax.study.record import Reference, Run
from gf_jax.theory.spectrum import Curvature

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PyTree = Any


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """What ``compare`` found, as NumPy arrays. It prints as a table with a verdict.

    Attributes:
      run: losses, distances and gradient norms of all runs at every base iteration, and in
        ``run.reference`` the flow's losses, distances to it, and predictions.
      snapshots: parameters of all runs, leaves of shape (snapshots, lanes, ...); of more than
        256 MiB, as the flow's, they are mapped from a temporary file.
      flow: parameters of the flow, leaves of shape (snapshots, ...); None if left out.
      curvature: of f on the flow, at the snapshots; None if left out.
      kinks: number of kinks of f; 0 means that f was taken as smooth.

    After ``load``, the pytrees are dictionaries from path names to arrays.

    Example:
      >>> def f(w):
      ...     return jnp.sum((w**2 - 1) ** 2)
      >>> w = jnp.array([0.1, 1.5])
      >>> found = gf_jax.compare(f, w, step_size=0.01, ratios=(2,), iterations=10)
      >>> found.distance.shape, float(found.order[-1].round(2))
      ((10, 2), 1.04)
      >>> figure = found.plot()  # figure.savefig("comparison.png") writes it
    """

    run: Run
    snapshots: PyTree
    flow: PyTree = None
    curvature: Curvature | None = None
    kinks: int = 0

    @property
    def times(self) -> np.ndarray:
        """Times of the snapshots, iteration * step_size."""
        return self.run.snapshot_times

    @property
    def step_sizes(self) -> np.ndarray:
        """Step size of every lane, the largest first."""
        return self.run.step_sizes

    @property
    def distance(self) -> np.ndarray:
        """Distance of every lane from the flow, shape (snapshots, lanes)."""
        return self._reference.distance_to_flow

    @property
    def resolution(self) -> np.ndarray:
        """Error of that distance, shape (snapshots, lanes)."""
        return self._reference.resolution

    @property
    def predicted(self) -> np.ndarray:
        """That distance as predicted, shape (snapshots, lanes); NaN if left out."""
        return self._reference.predicted_to_flow

    @property
    def predicted_error(self) -> np.ndarray:
        """Estimated error of the prediction, shape (snapshots, lanes); NaN where nothing tells."""
        error = self._reference.predicted_error
        return np.full_like(self.predicted, np.nan) if error is None else error

    @property
    def loss_difference(self) -> np.ndarray:
        """Loss of every lane less the flow's, in float64, shape (snapshots, lanes)."""
        return self._less_flow(self._reference.run_loss)

    @property
    def predicted_loss_difference(self) -> np.ndarray:
        """That difference as predicted, shape (snapshots, lanes); NaN if left out."""
        return self._less_flow(self._reference.predicted_loss)

    @property
    def doubts(self) -> tuple[str, ...]:
        """What is missing or doubtful, and why, in sentences; empty where nothing is."""
        return self.run.doubts

    @property
    def order(self) -> np.ndarray:
        """Slope of log distance against log step size, shape (snapshots,)."""
        return self._reference.order

    @property
    def summary(self) -> dict[str, Any]:
        """The numbers of the table at the last time, as JSON has them."""
        return summary.summarise(self.run)

    @property
    def verdict(self) -> str:
        """Whether descent stays near its flow, in words and numbers."""
        return " ".join(summary.verdict(self.summary))

    def plot(self) -> "Figure":
        """Losses, distances and predictions as a Matplotlib figure."""
        from gf_jax.study import drawing  # Matplotlib is slow to import, and seldom needed

        return drawing.draw(self.run)

    def save(self, path: str | Path) -> None:
        """Writes everything into one npz file, which ``gf_jax.load`` reads.

        Raises:
          ValueError: if the name does not end with ``.npz``.
          OSError: if it cannot be written.
        """
        saving.save(
            path, **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        )

    def __str__(self) -> str:
        return table.as_text(table.of_run(self.summary, self.kinks))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return table.as_html(table.of_run(self.summary, self.kinks))

    def _less_flow(self, losses: np.ndarray | None) -> np.ndarray:
        """Losses less the flow's; NaN where they are not known, as in older files."""
        losses = np.full_like(self.distance, np.nan) if losses is None else losses
        return losses - self._reference.loss[:, None]

    @property
    def _reference(self) -> Reference:
        if self.run.reference is None:
            raise ValueError("flow: was left out; compare with flow=True")
        return self.run.reference


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
    return Comparison(**saving.read(Path(path)))
