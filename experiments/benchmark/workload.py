"""What all implementations have in common: the runs to make, and how they are asked for them."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from experiments.problem import Problem
from gf_jax.networks import Params

STEP_SIZE = 0.001  # of the base run


Ends = Sequence[Params | None]


class Workload(NamedTuple):
    """The runs on one network.

    Attributes:
      network: its name, one of ``textbook.FORMS``.
      study: network, objective and start, as the engine takes them.
      inputs: images, as vectors for the fully connected networks. The engine has its own,
        see ``gf_jax.row_space``.
      labels: class of every example.
      ratios: one run each, ascending, the base run first.
      iterations: base iterations of one whole piece of work.
    """

    network: str
    study: Problem
    inputs: Float[np.ndarray, "examples ..."]
    labels: Int[np.ndarray, " examples"]
    ratios: tuple[int, ...]
    iterations: int = 1

    @property
    def start(self) -> Params:
        """The point from which all runs start, for the inputs as they are."""
        return self.study.start

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


def of(network: str, study: Problem, ratios: tuple[int, ...]) -> Workload:
    """The workload of a problem."""
    images = study.dataset.images
    dense = len(study.network.input_shape) == 1
    inputs = images.reshape(len(images), -1) if dense else study.inputs
    return Workload(network, study, inputs, study.dataset.labels, ratios)


def steps_in_order(workload: Workload, steps: int) -> Iterator[int]:
    """The run that takes each of a number of steps: base iteration after base iteration."""
    order = [lane for lane, ratio in enumerate(workload.ratios) for _ in range(ratio)]
    return itertools.islice(itertools.cycle(order), steps)


def arrived(workload: Workload, ends: Sequence[Params], steps: int) -> Ends:
    """The runs that have no step left after the first steps in that order."""
    last = steps - (workload.iterations - 1) * sum(workload.ratios)
    needed = itertools.accumulate(workload.ratios)
    return [end if last >= n else None for end, n in zip(ends, needed, strict=True)]
