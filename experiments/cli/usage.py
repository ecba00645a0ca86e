"""What a command accepts, as data, and the page that tells it."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

HELP = ("--help", "-help", "--helpshort", "-h", "-?")
WIDEST = 110  # columns: longer lines are hard to read
INDENT, FLAG_WIDTH = 2, 24

Kind = Literal["integer", "number", "integers", "numbers", "text", "texts", "switch", "choice"]


class Flag(NamedTuple):
    """A flag.

    Attributes:
      name: without dashes, as the field that it fills.
      kind: of value.
      meaning: one or two sentences, with the unit; defaults are told by the page.
      value: what help calls the value, such as FOLDER.
      choices: of a choice, the accepted values, each with its meaning or an empty text.
    """

    name: str
    kind: Kind
    meaning: str
    value: str = ""
    choices: Mapping[str, str] = {}


class Group(NamedTuple):
    """Flags that belong together, under a title."""

    title: str
    flags: tuple[Flag, ...]


class Example(NamedTuple):
    """A command line, what it shows and how long it takes."""

    command: str
    shows: str


class Page(NamedTuple):
    """What help tells of a command.

    Attributes:
      command: how it is called, such as ``python -m experiments.main``.
      takes: what follows.
      purpose: one sentence or two.
      statuses: exit statuses and what they mean.
      examples: command lines.
      groups: of flags.
      defaults: of flags, in words; empty if there is none.
      more: a last line.
    """

    command: str
    takes: str
    purpose: str
    statuses: Mapping[int, str]
    examples: tuple[Example, ...]
    groups: tuple[Group, ...] = ()
    defaults: Mapping[str, str] = {}
    more: str = ""


def nearest(word: str, words: Iterable[str], prefix: str = "") -> str:
    """The question whether the most similar of some words was meant; empty if none is similar."""
    known = {each.lower(): each for each in words}
    asked = word.lower().replace("-", "_")
    begun = [each for each in known if asked and each.startswith(asked)]
    found = begun or difflib.get_close_matches(asked, known, n=1, cutoff=0.7)
    return f"did you mean {prefix}{known[found[0]]}? " if found else ""


def in_words(value: object) -> str:
    """A value as it would be typed."""
    if isinstance(value, tuple):
        return ",".join(map(in_words, value))
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)


def show(page: Page, console: Console | None = None) -> None:
    """Prints a page of help, in the width of the terminal."""
    console = console or Console(highlight=False)
    console = Console(file=console.file, width=min(console.width, WIDEST), highlight=False)
    console.print(Text.assemble(("Usage: ", "bold"), f"{page.command} {page.takes}"))
    console.print(f"\n{page.purpose}", markup=False)
    for group in page.groups:
        _heading(console, group.title)
        _columns(console, [row for flag in group.flags for row in _rows(flag, page.defaults)])
    if page.examples:
        _heading(console, "Examples")
    for example in page.examples:
        console.print(Text(f"{' ' * INDENT}{example.command}", "cyan"), soft_wrap=True)
        console.print(Padding(Text(example.shows), (0, 0, 0, 3 * INDENT)))
    _heading(console, "Exit status")
    _columns(console, [(str(status), text) for status, text in page.statuses.items()], width=5)
    if page.more:
        console.print(f"\n{page.more}", markup=False)


def _rows(flag: Flag, defaults: Mapping[str, str]) -> list[tuple[str, str]]:
    """A flag and what it does; then its choices, if they need words."""
    meaning = flag.meaning
    explained = any(flag.choices.values())
    if flag.choices and not explained:
        meaning += f" Accepted: {', '.join(flag.choices)}."
    if defaults.get(flag.name):
        meaning += f" [{defaults[flag.name]}]"
    rows = [(form(flag), meaning)]
    if explained:
        rows += [(f"    {choice}", text) for choice, text in flag.choices.items()]
    return rows


def form(flag: Flag) -> str:
    """How a flag is written."""
    if flag.kind == "switch":
        return f"--[no]{flag.name}"
    values = {
        "integer": "N",
        "number": "X",
        "integers": "N,N,...",
        "numbers": "X,X,...",
        "choice": "NAME",
    }
    return f"--{flag.name}={flag.value or values[flag.kind]}"


def _heading(console: Console, title: str) -> None:
    console.print(Text(f"\n{title}", "bold"))


def _columns(console: Console, rows: Iterable[tuple[str, str]], width: int = FLAG_WIDTH) -> None:
    """Two columns, of which the second is wrapped."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(width=width, no_wrap=True, overflow="fold", style="cyan")
    grid.add_column(overflow="fold")
    for left, right in rows:
        grid.add_row(Text(left), Text(right))
    console.print(Padding(grid, (0, 0, 0, INDENT)))
