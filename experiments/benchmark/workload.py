"""What all implementations have in common: the runs to make, and how they are asked for them."""

import itertools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jaxtyping import Float, Int

from experiments.problems.problem import Problem
from gf_jax.problems.networks import Params

STEP_SIZE = 0.001  # of the base run

Ends = Sequence[Params | None]
Run = TypeVar("Run")


class Form(NamedTuple):
    """What tells the four networks apart.

    Attributes:
      rectified: whether every layer but the last is followed by ReLU.
      stride: of the convolutions.
      pool: whether 2x2 max-pooling follows each of them.
    """

    rectified: bool = True
    stride: int = 1
    pool: bool = False


FORMS = {
    "linear": Form(rectified=False),
    "relu": Form(),
    "conv_adapted": Form(stride=2),
    "lenet5": Form(pool=True),
}


class Workload(NamedTuple):
    """The runs on one network.

    Attributes:
      network: its name, one of ``FORMS``.
      study: network, objective and start, as the engine takes them.
      inputs: images, as vectors for the fully connected networks. The engine has its own,
        see ``gf_jax.problems.row_space``.
      labels: class of every example.
      ratios: one run each, ascending, the base run first.
      iterations: base iterations of one whole piece of work.
      starts: number of starting points that are stacked in the study, from each of which
        the engine makes all runs; 0 if it has a single one that is not stacked.
    """

    network: str
    study: Problem
    inputs: Float[np.ndarray, "examples ..."]
    labels: Int[np.ndarray, " examples"]
    ratios: tuple[int, ...]
    iterations: int = 1
    starts: int = 0

    @property
    def start(self) -> Params:
        """The point from which all runs start, the first of several, for the inputs as they are."""
        start = self.study.start
        return jax.tree.map(operator.itemgetter(0), start) if self.starts else start

    @property
    def step_sizes(self) -> tuple[float, ...]:
        """Step sizes of the runs."""
        return tuple(STEP_SIZE / ratio for ratio in self.ratios)

    @property
    def steps(self) -> int:
        """Steps of all runs together."""
        return self.iterations * sum(self.ratios)


class Implementation(NamedTuple):
    """One way to make the runs.

    Attributes:
      name: what the table calls it.
      whole: units of work in ``workload.iterations`` base iterations of all runs.
      run: does that many units from the start, waits until they are done and returns the
        parameters of every run, None for a run that has steps left to take.
      planned: whether JAX compiles it as a whole, so that the compiler's plan tells its memory.
    """

    name: str
    whole: int
    run: Callable[[int], Ends]
    planned: bool = True


class UnavailableError(Exception):
    """An implementation cannot be had on this machine; the text says which, and why."""


def wait(tree: Any) -> Any:
    """The same arrays, once they are computed."""
    for leaf in jax.tree.leaves(tree):
        leaf.block_until_ready()
    return tree


def of(network: str, study: Problem, ratios: tuple[int, ...], starts: int = 0) -> Workload:
    """The workload of a problem."""
    images = study.dataset.images
    dense = len(study.network.input_shape) == 1
    inputs = images.reshape(len(images), -1) if dense else study.inputs
    return Workload(network, study, inputs, study.dataset.labels, ratios, starts=starts)


def step_by_step(
    name: str,
    workload: Workload,
    begin: Callable[[], Run],
    step: Callable[[Run, int], Run],
    finish: Callable[[list[Run]], Sequence[Params]],
    *,
    planned: bool,
) -> Implementation:
    """One step after the other, base iteration after base iteration.

    A unit of work is one step of one run; the first is taken here, to be ready.

    Args:
      name: of the implementation.
      workload: the runs.
      begin: makes a run at the start.
      step: takes a run a step further, with the step size of that number.
      finish: waits for all runs and returns their parameters.
      planned: as in ``Implementation``.
    """
    order = [lane for lane, ratio in enumerate(workload.ratios) for _ in range(ratio)]
    needed = list(itertools.accumulate(workload.ratios))

    def run(units: int) -> Ends:
        runs = [begin() for _ in workload.ratios]
        for lane in itertools.islice(itertools.cycle(order), units):
            runs[lane] = step(runs[lane], lane)
        last = units - (workload.iterations - 1) * len(order)  # steps in the last iteration
        return [end if last >= n else None for end, n in zip(finish(runs), needed, strict=True)]

    run(1)
    return Implementation(name, workload.steps, run, planned)
