"""What many runs in drawn batches amount to: how they spread, their mean, their loss.

Runs with step size s stand apart from each other, and from their flow, by about √s, and their
mean from the flow by about s. So what is compared with the flow is the mean.
"""

from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float

from gf_jax.comparison import precision_of
from gf_jax.records import record

PyTree = Any

ULPS = 8.0  # that a loss is off by
SIGMAS = 3.0  # standard errors of which what is measured has more


@record
class Estimate:
    """Numbers found from a sample, at every time and of every step size.

    Attributes:
      value: the numbers.
      standard_error: of the sample.
      error: what they may be off by besides, as far as it is known.

    Example:
      >>> found = gf_jax.Estimate(np.array([[1.0]]), np.array([[0.25]]), np.array([[0.5]]))
      >>> found.within(2)
      array([[1.]])
    """

    value: Float[np.ndarray, "times lanes"]
    standard_error: Float[np.ndarray, "times lanes"]
    error: Float[np.ndarray, "times lanes"]

    def within(self, sigmas: float) -> Float[np.ndarray, "times lanes"]:
        """So many standard errors, and the error."""
        return sigmas * self.standard_error + self.error

    @property
    def measured(self) -> Bool[np.ndarray, "times lanes"]:
        """Whether a number is more than three of its standard errors and the error above 0."""
        return np.isfinite(self.value) & (self.value > self.within(SIGMAS))

    def order(
        self, step_sizes: Float[np.ndarray, " lanes"]
    ) -> tuple[Float[np.ndarray, " times"], Float[np.ndarray, " times"]]:
        """Slope of its logarithm against that of the step size, and its standard error.

        Over the step sizes with a number that is measured; NaN with fewer than two of them.
        """
        kept = self.measured
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.broadcast_to(np.log(step_sizes), kept.shape)
            centre = (logs * kept).sum(axis=1, keepdims=True) / kept.sum(axis=1, keepdims=True)
            x = np.where(kept, logs - centre, 0.0)
            weights = x / np.square(x).sum(axis=1, keepdims=True)
            y = np.log(np.where(kept, self.value, 1.0))
            shares = np.where(kept, self.standard_error / self.value, 0.0)
            error = np.sqrt(np.square(weights * shares).sum(axis=1))
            enough = kept.sum(axis=1) > 1
            slope = np.where(enough, (weights * y).sum(axis=1), np.nan)
            return slope, np.where(enough, error, np.nan)


@record
class Ensemble:
    """Many runs with every step size beside the flow, measured or predicted.

    Attributes:
      spread: root mean square distance of a run from the mean run.
      mean_to_flow: distance of the mean run from the flow.
      loss_difference: mean loss of the runs, less that of the flow.

    Example:
      >>> def f(w):
      ...     return 0.5 * jnp.sum(w**2)
      >>> w = np.array([[[[1.0]], [[3.0]]]])  # one time, two draws, one step size, one weight
      >>> found = gf_jax.measure_ensemble(
      ...     w, jax.vmap(jax.vmap(f))(w[0])[None], np.array([[2.0]]), np.array([2.0]), np.zeros(1))
      >>> found.spread.value.round(4), found.mean_to_flow.value, found.loss_difference.value
      (array([[1.4142]]), array([[0.]]), array([[0.5]]))
    """

    spread: Estimate
    mean_to_flow: Estimate
    loss_difference: Estimate


def measure_ensemble(
    snapshots: PyTree,
    losses: Float[np.ndarray, "times draws lanes"],
    flow_params: PyTree,
    flow_loss: Float[np.ndarray, " times"],
    flow_error: Float[np.ndarray, " times"],
) -> Ensemble:
    """What many runs of every step size amount to, with the errors of so few of them.

    The distance of the mean of D runs from the flow is larger than that of the mean of all runs,
    since E‖mean of D − z‖² = ‖mean − z‖² + spread²/D. That is taken off, and so is the bias of
    the spread.

    Args:
      snapshots: stacked parameters, leaves of shape (times, draws, lanes, ...), as those of
        ``gradient_descent`` with draws.
      losses: f there.
      flow_params: the flow at the same times, leaves of shape (times, ...).
      flow_loss: f there.
      flow_error: Euclidean error of the flow there.

    Returns:
      The ensemble. Standard errors are of the draws, errors those of the flow and of the rounding
      of snapshots and losses. A square that comes out negative is 0, and its standard error
      tells below what it is.

    Raises:
      ValueError: if there are fewer than two draws.

    Example:
      >>> def f(w):
      ...     return 0.5 * w**2
      >>> def loss(w, index):
      ...     return 0.5 * w**2 + w * (2 * index - 1)
      >>> run = gf_jax.gradient_descent(
      ...     f, jnp.array(1.0), step_size=0.1, ratios=(2,), iterations=30, snapshots=3, draws=500,
      ...     batches=gf_jax.Batches(loss, 2, order="replacement"))
      >>> flow = gf_jax.gradient_flow(f, jnp.array(1.0), run.snapshot_times)
      >>> found = gf_jax.measure_ensemble(
      ...     run.snapshots, run.metrics.loss[run.snapshot_iterations],
      ...     flow.params, flow.loss, flow.error)
      >>> bool((abs(found.spread.value[-1] - [0.23, 0.16]) < 0.02).all())
      True
    """
    draws = jax.tree.leaves(snapshots)[0].shape[1]
    if draws < 2:
        raise ValueError(f"snapshots: of {draws} draw; accepted are two draws or more")
    with np.errstate(invalid="ignore", over="ignore"):  # of runs that diverged
        rows = [
            _at_one_time(jax.tree.map(lambda leaf, at=at: leaf[at], (snapshots, flow_params)))
            for at in range(len(flow_loss))
        ]
        apart, off = (np.stack(each) for each in zip(*rows, strict=True))
        rounding = precision_of(jax.tree.map(lambda leaf: leaf[:, 0], snapshots))
        above = np.asarray(losses, np.float64) - np.asarray(flow_loss)[:, None, None]
        of_loss = ULPS * np.spacing(np.abs(losses)).max(axis=1)
    zeros = np.zeros_like(rounding)
    return Ensemble(
        spread=root_of(*_mean(apart), rounding),
        mean_to_flow=root_of(*_mean(off, 2.0), rounding + np.asarray(flow_error)[:, None]),
        loss_difference=Estimate(*_mean(above), zeros + of_loss),
    )


def root_of(square: np.ndarray, standard_error: np.ndarray, error: np.ndarray) -> Estimate:
    """The root of an estimated square, of which the error is given; that of the square is not."""
    positive = np.maximum(square, 0)
    value = np.sqrt(positive)
    return Estimate(value, np.sqrt(positive + standard_error) - value, error)


def _mean(values: np.ndarray, factor: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the axis of draws, and so many times its standard error."""
    draws = values.shape[1]
    return values.mean(axis=1), factor * values.std(axis=1, ddof=1) / np.sqrt(draws)


def _at_one_time(pair: tuple[PyTree, PyTree]) -> tuple[np.ndarray, np.ndarray]:
    """Of every draw and lane what the squared spread is the mean of, and the squared distance.

    The latter is the mean of x·x' over pairs of different draws, x as seen from the flow: half of
    its standard error is that of what each draw gives with all others.
    """
    apart, off = 0.0, 0.0
    for leaf, of_flow in zip(*map(jax.tree.leaves, pair), strict=True):
        seen = (np.asarray(leaf, np.float64) - np.asarray(of_flow, np.float64)).reshape(
            *leaf.shape[:2], -1
        )
        draws, mean = len(seen), seen.mean(axis=0)
        apart = apart + np.square(seen - mean).sum(axis=-1) * draws / (draws - 1)
        others = (draws * mean - seen) / (draws - 1)
        off = off + (seen * others).sum(axis=-1)
    return np.asarray(apart), np.asarray(off)
