"""The page of a run, made of its figure, what it told and its configuration."""

import base64
import functools
import gzip
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from experiments.output import figures
from experiments.output.figures import Figure, Panel
from experiments.output.page import explanations, plots
from experiments.output.page.transcript import WARNING, Told
from gf_jax.study.files import atomically, printable, read_json

FILE = "report.html"
PROGRAM = "python -m experiments.main"
LONGEST = 1_000  # letters of a value of the configuration
NO_VERDICT = (
    "No verdict: there is no flow to compare with. Figures and tables tell how far the runs stand "
    "from each other."
)


@figures.plain
def write(
    directory: Path, summary: dict[str, Any], figure: Figure | None, told: Sequence[Told]
) -> Path:
    """Writes the page of a run into its folder, where configuration and figure lie.

    Args:
      directory: the run directory.
      summary: the numbers of the run, of which its verdict is taken.
      figure: as it was drawn and saved; None if it could not be.
      told: what was told on the terminal.

    Returns:
      The path written.

    Raises:
      OSError, ValueError: if configuration or figure cannot be read, or the page not written.
    """
    description = read_json(directory / "configuration.json")
    drawn = [] if figure is None else figures.panels(figure)
    title, lines = _title(figure, description), _verdict(summary)
    environment = Environment(
        loader=PackageLoader("experiments.output", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("page.html").render(
        title=title,
        plain_title=title.striptags(),
        verdict=[_sentence(line) for line in lines],
        warnings=[each.text.removeprefix(WARNING).strip() for each in told if each.warns],
        interrupted=summary.get("interrupted") is True,
        told=[each for each in told if not each.warns and each.text not in lines],
        panels=[_panel(panel) for panel in drawn],
        plots=[plots.plot(panel) for panel in drawn],
        names=list(_names(drawn)),
        again=f"python -m experiments.show {shlex.quote(str(directory))}",
        static=_encoded((directory / "figure.png").read_bytes()) if drawn else "",
        library=_library() if drawn else "",
        **_facts(description),
    )
    path = directory / FILE
    with atomically(path) as temporary:
        # Paths may hold bytes that are no letters.
        temporary.write_text(text, encoding="utf-8", errors="replace")
    return path


def _title(figure: Figure | None, description: dict[str, Any]) -> Markup:
    """That of the figure as HTML; else what was studied."""
    if figure is None:
        return Markup.escape(_words(description.get("network")))
    return Markup(figures.title(figure))


def _verdict(summary: dict[str, Any]) -> list[str]:
    found = summary.get("verdict") or summary.get("flow", {}).get("verdict") or NO_VERDICT
    return [*([found] if isinstance(found, str) else found), *summary.get("doubts", ())]


def _sentence(line: str) -> str:
    """A line of the verdict, under a heading that says so."""
    text = line.removeprefix("Verdict: ")
    return text[:1].upper() + text[1:] if text[:1].isascii() else text  # λ is no Λ


def _panel(panel: Panel) -> dict[str, Any]:
    title = Markup(panel.title)
    return {"title": title, "reading": explanations.of_panel(title.striptags())}


def _names(drawn: Sequence[Panel]) -> Iterator[Markup]:
    """Of everything that can be hidden and shown, in the order of its appearance."""
    names = (each.of for panel in drawn for each in panel.series)
    return (Markup(name) for name in dict.fromkeys(names) if name)


def _facts(description: dict[str, Any]) -> dict[str, Any]:
    """What the configuration says, which may be a stranger's and of any form."""

    def pairs(name: str) -> list[tuple[str, str]]:
        found = description.get(name)
        items = found.items() if isinstance(found, dict) else ()
        return [(_words(key), _words(value)) for key, value in items if value is not None]

    data, command = dict(pairs("data")), description.get("command")
    if data:
        data = {"label": "", "source": ""} | data
    configuration = dict(pairs("configuration"))
    return {
        "experiment": configuration.get("experiment", ""),
        "question": explanations.of_experiment(configuration.get("experiment", "")),
        "network": _words(description.get("network")),
        "data": data,
        "is_mnist": not data or data.get("label", "").startswith("MNIST"),
        "flags": configuration,
        "versions": pairs("versions"),
        "device": pairs("device"),
        "started": _words(description.get("started")),
        "command": _command(command if isinstance(command, list) else []),
    }


def _words(value: object) -> str:
    return printable(",".join(map(str, value)) if isinstance(value, list) else value, LONGEST)


def _command(arguments: list[object]) -> str:
    """What repeats the run; into a new folder, since results are never overwritten."""
    flags = [printable(argument, LONGEST) for argument in arguments[1:]]
    kept = [flag for flag in flags if not flag.lstrip("-").startswith("output_dir")]
    return f"{PROGRAM} {shlex.join(kept)}".strip()


def _encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


@functools.cache
def _library() -> str:
    """Plotly's program, compressed: 2 MB of text instead of 5."""
    from plotly.offline import get_plotlyjs  # slow to load

    return _encoded(gzip.compress(get_plotlyjs().encode(), 6, mtime=0))
