"""What the figures of a page show, in plain words for a newcomer; they lie in a file."""

import functools
import tomllib
from pathlib import Path


@functools.cache
def _texts() -> dict[str, dict[str, str]]:
    path = Path(__file__).with_suffix(".toml")
    return tomllib.loads(path.read_text(encoding="utf-8"))


def of_experiment(name: str) -> str:
    """What an experiment asks; "" if nothing is known of it."""
    return _texts()["experiments"].get(name, "")


def of_panel(title: str) -> str:
    """How a panel of this title is read; "" if nothing is known of it."""
    return next((text for part, text in _texts()["panels"].items() if part in title), "")
