"""What a run tells on the terminal, kept so that its page can tell the same."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

WARNING = "warning:"


class Told(NamedTuple):
    """A table with a title, or a paragraph; all of it plain text.

    Attributes:
      text: of the paragraph, or the title of the table.
      columns: heads of the table; none of a paragraph.
      rows: cells of the table.
      left: which columns are aligned to the left.
    """

    text: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    left: Sequence[bool] = ()

    @property
    def warns(self) -> bool:
        """Whether it is a warning."""
        return self.text.startswith(WARNING)


class Transcript(Console):
    """A terminal that remembers what it was told."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.told: list[Told] = []

    def print(self, *objects: Any, **options: Any) -> None:
        """Prints, and remembers tables and texts."""
        markup = options.get("markup") is not False
        self.told += (_told(each, markup) for each in objects if isinstance(each, (str, Table)))
        super().print(*objects, **options)


def _told(what: str | Table, markup: bool) -> Told:
    if isinstance(what, str):
        return Told(_plain(what) if markup else what)
    columns = what.columns
    return Told(
        text=_plain(what.title),
        columns=[_plain(column.header) for column in columns],
        rows=list(zip(*(map(_plain, column.cells) for column in columns), strict=True)),
        left=[column.justify == "left" for column in columns],
    )


def _plain(text: object) -> str:
    return "" if text is None else Text.from_markup(str(text)).plain
