"""One solve of the central flow, in steps whose length follows from their errors."""

from typing import NamedTuple

import numpy as np

from gf_jax.flow.central import complementarity, eigenvectors, steps
from gf_jax.flow.central.attempt import attempt
from gf_jax.flow.central.result import BUDGET, COMPLETE, CROWDED, STARTED_PAST, UNHELD
from gf_jax.flow.central.steps import Fault, Setting, Step
from gf_jax.flow.problem import Progress

FIRST = 0.5  # step, in step sizes of descent
SHORTEST = 1 / 64  # likewise: no covariance holds the sharpness if none is found then
LOCATED = 1.0  # likewise: length of the step in which an eigenvalue reaches or leaves the edge
SAFE, LEAST, MOST = 0.8, 0.2, 2.5  # of the factor between two steps
LOWEST, MOST_LOWEST = 1e-2, 60  # residual of the smallest eigenvalue over the edge, and products
PAST = 1e-3  # of the edge, by which a start may be past it


class Output(NamedTuple):
    """What is told of one time."""

    point: np.ndarray
    average_squared_gradient: float
    excess: float  # of the average loss over the loss
    lambda_max: float
    lambda_min: float
    variances: np.ndarray
    axes: np.ndarray
    held: int


class Solve(NamedTuple):
    """One solve: outputs of the times reached, events, and why it ended."""

    outputs: list[Output]
    events: list[tuple[float, int]]
    residual: float
    steps: int
    rejected: int
    evaluations: int
    ended: int


class Limits(NamedTuple):
    """What ends a solve: eigenvalues at the edge, and gradients."""

    held: int
    evaluations: float


def follow(
    times: np.ndarray,
    setting: Setting,
    first_steps: int,
    limits: Limits,
    progress: Progress | None,
) -> Solve:
    """One solve.

    Args:
      times: ascending times, none within the first steps.
      setting: what is followed, and how exactly.
      first_steps: of the optimiser, that are made before the flow begins.
      limits: of the solve.
      progress: is told the share of the time that is done.
    """
    solver = _Solver(times, setting, first_steps, limits)
    while solver.goes_on():
        solver.advance()
        if progress is not None:
            progress(solver.at.time / times[-1])
    return solver.solve()


class _Solver:
    """A solve on its way.

    Attributes:
      at: the state that was reached.
    """

    def __init__(
        self, times: np.ndarray, setting: Setting, first_steps: int, limits: Limits
    ) -> None:
        derivatives, step_size = setting.derivatives, setting.step_size
        self._times, self._setting, self._limits = times, setting, limits
        self._before = derivatives.evaluations
        start = derivatives.start
        if first_steps:
            start = derivatives.after(first_steps)
        self.at = steps.begin(setting, start, first_steps * step_size)
        self._outputs, self._events = list[Output](), list[tuple[float, int]]()
        self._length, self._taken, self._rejected = FIRST * step_size, 0, 0
        self._residual, self._ended = 0.0, COMPLETE
        self._fresh = False  # whether the step before had an event
        self._pending: float | None = None  # length of the step before the time told next
        self._bottom = np.random.default_rng(1).standard_normal((1, derivatives.size))
        past = self.at.found.values[0] > (1 + PAST) * setting.edge
        if past and not self.at.local.rate.size:  # else squares soon take it to the edge
            self._ended = STARTED_PAST
        elif self.at.near > limits.held:
            self._ended = CROWDED
        elif times[0] <= self.at.time:
            self._tell(self.at.covariance)

    def goes_on(self) -> bool:
        """Whether there is a step to take."""
        return self._ended == COMPLETE and self.at.time < self._times[-1]

    def advance(self) -> None:
        """Tries a step."""
        at, setting = self.at, self._setting
        target = self._times[len(self._outputs) + (self._pending is not None)]
        rest = target - at.time
        reaches = self._length >= rest * (1 - 1e-9)
        tried = rest if reaches else min(self._length, rest / 2)
        step = attempt(setting, at, tried)
        shorter = _shorter(setting, at, step, tried)
        if step.fault is Fault.MORE:
            self.at = steps.widened(setting, at)
        elif shorter is not None:
            self._rejected, self._length = self._rejected + 1, shorter
            if step.fault is Fault.SHORTER and shorter < SHORTEST * setting.step_size:
                self._ended = UNHELD
        else:
            self._accept(step, target if reaches else at.time + tried)
            self._pending = tried if reaches else None
            grown = tried * float(np.clip(SAFE * max(step.size, 1e-9) ** (-1 / 3), LEAST, MOST))
            grown = max(grown, self._length if reaches else 0.0)
            self._length = min(grown, steps.longest(setting))
        if self.at.near > self._limits.held:
            self._ended = CROWDED
        if setting.derivatives.evaluations - self._before > self._limits.evaluations:
            self._ended = BUDGET

    def _accept(self, step: Step, time: float) -> None:
        """Goes on from the end of a step, and tells what waited for it."""
        at, length = self.at, time - self.at.time
        self._taken, self._residual = self._taken + 1, max(self._residual, step.found.residual)
        if self._pending is not None:
            # X is that of the middle of a step, unless something happened within.
            share = self._pending / (self._pending + length)
            share = 0.0 if step.rank != at.rank else 1.0 if self._fresh else share
            self._tell(share * step.covariance + (1 - share) * at.covariance)
        self._fresh = step.rank != at.rank
        if self._fresh:
            reached = at.time + length * _share(self._setting, at, step)
            self._events.append((reached, step.rank))
        self.at = steps.following(self._setting, at, step, time)

    def solve(self) -> Solve:
        """What was found."""
        if self._pending is not None:
            self._tell(self.at.covariance)
        evaluations = self._setting.derivatives.evaluations - self._before
        return Solve(
            *(self._outputs, self._events, self._residual, self._taken, self._rejected),
            *(evaluations, self._ended),
        )

    def _tell(self, covariance: np.ndarray) -> None:
        """Notes what is told of the state that was reached."""
        setting, at = self._setting, self.at
        # The smallest eigenvalue, with its sign changed.
        found = eigenvectors.largest(
            lambda block: -setting.derivatives.products(at.point, at.local.root, block),
            *(self._bottom, 1, LOWEST * setting.edge, MOST_LOWEST),
        )
        self._bottom = found.vectors
        lowest = -float(found.values[0])
        self._outputs.append(_output(setting, at, covariance, lowest, self._limits.held))


def _shorter(setting: Setting, at: steps.State, step: Step, length: float) -> float | None:
    """The length with which a step is to be tried again; None if it is accepted."""
    if step.fault is not Fault.NONE:
        return length / 2
    if step.size > 1:
        return length * max(LEAST, SAFE * step.size ** (-1 / 3))
    located = LOCATED * setting.step_size
    if step.rank == at.rank or length <= located * (1 + 1e-9):
        return None
    share = _share(setting, at, step)
    return max(located, length * float(np.clip(share, 0.1, 0.9)))


def _share(setting: Setting, at: steps.State, step: Step) -> float:
    """The share of a step after which its event takes place, interpolated."""
    if step.rank < at.rank:
        return 0.5
    gap = max(setting.edge - float(at.found.values[at.rank]), 0.0)
    return gap / (gap + step.free) if gap + step.free > 0 else 0.0


def _output(
    setting: Setting, at: steps.State, covariance: np.ndarray, lowest: float, most: int
) -> Output:
    """What is told of a state, with the covariance of the oscillation in its vectors."""
    force = (complementarity.vector(covariance) @ at.entries.push)[: setting.derivatives.size]
    size, curvatures = setting.derivatives.size, at.found.values[: at.near]
    covariance = at.entries.scale * covariance  # of D^-½ times the oscillation
    basis, shape = np.linalg.qr((at.local.root * at.vectors).T)
    values, vectors = np.linalg.eigh(shape @ covariance @ shape.T)
    order = np.argsort(values)[::-1][:most]
    values, vectors = np.maximum(values[order], 0), vectors[:, order]
    variances, axes = np.zeros(most), np.zeros((most, size))
    kept = values > 0
    variances[: kept.sum()], axes[: kept.sum()] = values[kept], (basis @ vectors[:, kept]).T
    whole = setting.derivatives.gradient(at.point) + force
    images = curvatures[:, None] * at.vectors / at.local.root
    spread = np.einsum("ij,in,jn->", covariance, images, images)
    return Output(
        point=at.point[:size],
        average_squared_gradient=float(whole @ whole + spread),
        excess=float(np.diag(covariance) @ curvatures / 2),
        lambda_max=float(at.found.values[0]),
        lambda_min=lowest,
        variances=variances,
        axes=axes,
        held=at.rank,
    )
