"""The page on flags, made of what each experiment says of its own."""

from collections import Counter
from collections.abc import Mapping, Sequence

from experiments.docs.described import Described, Row

HEAD = """\
# Flags of the experiments

<!-- Written by `python -m experiments.docs`: change what flags say of themselves instead. -->

`python -m experiments.main --help` shows the same in a terminal, with examples. A mistyped flag or
value is answered by the nearest one that there is. A flag that says nothing about an experiment is
refused, with the names of those that take it. Exit statuses are told on the
[page on runs](runs.md#exit-statuses).
"""
ALL = """
## All flags

A default that some experiments have for themselves stands after their names.

| flag | default | meaning |
| --- | --- | --- |
"""
EACH = """
## The flags of each experiment

Every experiment takes """


def text(experiments: Mapping[str, Described]) -> str:
    """The page, in Markdown."""
    found = {name: described.rows for name, described in experiments.items()}
    table = "".join(_line(row, *_defaults(row, found)) for row in _distinct(found))
    names = [[row.flag for row in rows] for rows in found.values()]
    common = [name for name in names[0] if all(name in others for others in names)]
    sections = (_section(name, each, common) for name, each in experiments.items())
    return HEAD + ALL + table + EACH + _listed(common) + ".\n" + "".join(sections)


def _distinct(found: Mapping[str, Sequence[Row]]) -> list[Row]:
    """One row of each flag; another for each further value or meaning that it has elsewhere."""
    order: dict[str, dict[Row, None]] = {}
    for rows in found.values():
        for row in rows:
            order.setdefault(row.flag, {})[row._replace(default="")] = None
    return [row for same_flag in order.values() for row in same_flag]


def _defaults(row: Row, found: Mapping[str, Sequence[Row]]) -> tuple[str, str]:
    """The default of a row in words, and the experiments that it is limited to, if it is."""
    defaults = {
        name: other.default
        for name, rows in found.items()
        for other in rows
        if other._replace(default="") == row
    }
    usual = Counter(defaults.values()).most_common(1)[0][0]
    own = [f"{name}: {value}" for name, value in defaults.items() if value not in ("", usual)]
    others = {name for name, rows in found.items() for other in rows if other.flag == row.flag}
    only = "" if others == set(defaults) else f"In {', '.join(defaults)}: "
    return "; ".join([usual, *own] if usual else own), only


def _line(row: Row, default: str, only: str) -> str:
    shown = f"{row.flag}={row.value}" if row.value else row.flag
    cells = (f"`{shown}`", default, only + row.meaning)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


def _section(name: str, described: Described, common: Sequence[str]) -> str:
    question = described.question[:1].upper() + described.question[1:]
    own = [row.flag for row in described.rows if row.flag not in common]
    return f"\n### {name}\n\n{question}: {_listed(own)}.\n"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
