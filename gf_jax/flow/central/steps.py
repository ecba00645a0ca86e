"""States of the central flow between its steps."""

import enum
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from gf_jax.flow.central import chebyshev, eigenvectors
from gf_jax.flow.central.derivatives import Block, Derivatives, Vector
from gf_jax.flow.central.eigenvectors import Eigenpairs
from gf_jax.flow.central.entries import Entries, entries
from gf_jax.flow.central.scaling import Local

NEAR = 0.01  # below the edge, as a share of it: such eigenvectors may be reached within a step
OF_MEMORY = 5.0  # by how much more, where an oscillation changes the metric and so turns them
ON_EDGE, MOST_OFF_EDGE = 0.1, 1e-3  # share of the edge over the tolerance, and at most
RESIDUAL = 1e-3  # of eigenvectors, over the edge
STIFFER = 1.2  # at most, of the mean of an optimiser that remembers, than of what alternates


class Fault(enum.Enum):
    """Why a step has to be taken again."""

    NONE = 0
    MORE = 1  # eigenvectors are near the edge
    SHORTER = 2


class Setting(NamedTuple):
    """What is followed, and how exactly.

    Attributes:
      derivatives: of the loss.
      step_size: of descent.
      corrected: whether the first order of its deviation counts, see ``central_flow``.
      tolerance: largest error of a step.
    """

    derivatives: Derivatives
    step_size: float
    corrected: bool
    tolerance: float

    @property
    def edge(self) -> float:
        """The largest stable curvature."""
        return 2 / self.step_size

    @property
    def remembers(self) -> bool:
        """Whether the optimiser does."""
        return len(self.derivatives.start) > self.derivatives.size

    @property
    def near(self) -> float:
        """How far below the edge eigenvectors are that count as near it, as a share of it."""
        return NEAR * OF_MEMORY if self.remembers else NEAR

    @property
    def on_edge(self) -> float:
        """How far from the edge an eigenvalue may be that is held, as a share of it."""
        return min(ON_EDGE * self.tolerance, MOST_OFF_EDGE)

    def stiffness(self, curvature: float) -> float:
        """Of the flow, where the largest curvature is this."""
        each = 1.05 * max(curvature, 1e-3 * self.edge)
        if self.remembers:
            each = STIFFER * max(each, self.edge / 2)  # what is remembered fades, too
        return each * (1 + self.step_size / 2 * each) if self.corrected else each


class State(NamedTuple):
    """The flow at one time.

    Attributes:
      time: the time.
      point: params as a vector, and what the optimiser remembers.
      local: what the optimiser does there.
      found: eigenpairs, of which the last is below all that are near the edge.
      near: how many are.
      entries: of X, for those near.
      covariance: X of the step before, in these, see ``entries``.
      slope: its derivative in time, by the two steps before.
      length: of the step before.
      rank: of X.
      response: by how much Newton's derivative was to be multiplied.
    """

    time: float
    point: Vector
    local: Local
    found: Eigenpairs
    near: int
    entries: Entries
    covariance: Float[np.ndarray, "near near"]
    slope: Float[np.ndarray, "near near"]
    length: float
    rank: int
    response: float

    @property
    def vectors(self) -> Block:
        """Those near the edge."""
        return self.found.vectors[: self.near]


class Step(NamedTuple):
    """A step that was tried.

    Attributes:
      fault: what is wrong with it.
      point: params at its end, and what the optimiser remembers.
      local: what it does there.
      found: eigenpairs there.
      size: of its error, in tolerances.
      covariance: X over the step, in the vectors of its beginning.
      turned: the same vectors at its end.
      entries: of X there, in these.
      rank: of X.
      free: by how much eigenvalues would lie higher without X, at most.
      response: see ``State``.
    """

    fault: Fault
    point: Vector
    local: Local
    found: Eigenpairs
    size: float
    covariance: Float[np.ndarray, "near near"]
    turned: Block
    entries: Entries
    rank: int
    free: float
    response: float


def look(
    setting: Setting, point: Vector, local: Local, near: Block, least: int
) -> tuple[Eigenpairs, int]:
    """Eigenpairs at a point, at least so many, and how many of them are near the edge."""
    derivatives = setting.derivatives
    wanted, threshold = min(max(least, 1), derivatives.size), (1 - setting.near) * setting.edge
    while True:
        found = eigenvectors.largest(
            lambda block: derivatives.products(point, local.root, block),
            *(near, wanted, RESIDUAL * setting.edge),
        )
        count = int((found.values > threshold).sum())
        if count < wanted or wanted == derivatives.size or not np.isfinite(found.values).all():
            return found, count
        near, wanted = found.vectors, wanted + 1


def begin(setting: Setting, point: Vector, time: float) -> State:
    """The state at the start."""
    derivatives = setting.derivatives
    fresh = np.random.default_rng(0).standard_normal(derivatives.size)
    local = derivatives.local(point, np.zeros(derivatives.pushed), time)
    gradient = derivatives.gradient(point)
    found, near = look(setting, point, local, np.stack([local.root * gradient, fresh]), 1)
    none = np.zeros((near, near))
    rows = entries_of(setting, point, local, found, near)
    return State(time, point, local, found, near, rows, none, none, 1.0, 0, 1.0)


def entries_of(
    setting: Setting, point: Vector, local: Local, found: Eigenpairs, near: int
) -> Entries:
    """The entries of X for eigenvectors near the edge."""
    vectors = found.vectors[:near]
    images = found.values[:near, None] * vectors
    return entries(setting.derivatives, point, vectors, images, local)


def widened(setting: Setting, at: State) -> State:
    """The same state, with one more eigenvector taken to be near the edge."""
    near = at.near + 1
    rows = entries_of(setting, at.point, at.local, at.found, near)
    share = at.entries.scale / rows.scale
    covariance, slope = (share * np.pad(each, (0, 1)) for each in (at.covariance, at.slope))
    return at._replace(near=near, entries=rows, covariance=covariance, slope=slope)


def following(setting: Setting, at: State, step: Step, time: float) -> State:
    """The state after a step that is accepted, at the time of its end."""
    near = int((step.found.values > (1 - setting.near) * setting.edge).sum())
    vectors = step.found.vectors[:near]
    turn, length = vectors @ step.turned.T, time - at.time
    slope = np.zeros_like(step.covariance)
    # What an optimiser remembers of squares is soon that of X at the end of a step: it would ring.
    if step.rank == at.rank and not step.local.rate.size:
        between = (length + at.length) / 2
        slope = (step.covariance - at.covariance) / max(between, setting.step_size)
    if near == at.near:  # the same space
        rows = step.entries.turned(turn)
    else:
        rows = entries_of(setting, step.point, step.local, step.found, near)
    turn = turn * np.sqrt(step.entries.scale / rows.scale)
    return State(
        *(time, step.point, step.local, step.found, near, rows),
        *(turn @ step.covariance @ turn.T, turn @ slope @ turn.T, length),
        *(step.rank, step.response),
    )


def longest(setting: Setting) -> float:
    """The longest step that is ever taken."""
    return chebyshev.longest_step(setting.stiffness(setting.edge))
