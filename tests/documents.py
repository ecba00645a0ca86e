"""Which files the tests of documents read."""

from pathlib import Path

ROOT = Path(__file__).parents[1]


def documents():
    """The README, the guide, the build notes and the pages, in this order."""
    first = (ROOT / "README.md", ROOT / "experiments" / "GUIDE.md", ROOT / "BUILD_NOTES.md")
    return (*first, *sorted((ROOT / "experiments" / "docs").glob("*.md")))
