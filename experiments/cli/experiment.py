"""What an experiment is to the programs that call it."""

import dataclasses
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from experiments.cli.options import Options

Told = TypeVar("Told", bound=Options)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment(Generic[Told]):
    """An experiment.

    Attributes:
      name: value of ``--experiment``.
      studies: what it does, in a line of help.
      question: what it asks, in plain words for a newcomer who reads its page.
      options: what it can be told.
      run: runs it; its result is the exit status.
      label: what its folders are called, of its options.
      on_hosts: whether it may run on several hosts at once.
      shown: whether ``experiments.show`` draws its runs again.
    """

    name: str
    studies: str
    question: str
    options: type[Told]
    run: Callable[[Told], int]
    label: Callable[[Told], str] | None = None
    on_hosts: bool = False
    shown: bool = False

    def folder(self, options: Any) -> str:
        """What a run directory is called."""
        return self.name if self.label is None else self.label(options)
