"""The pages built from the docstrings of gf_jax."""

import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest

from experiments import api

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Builds all pages in a process of its own, as annotations are changed for it."""
    pytest.importorskip("pdoc", reason='the pages are built by pdoc: pip install -e ".[docs]"')
    folder = tmp_path_factory.mktemp("api")
    command = [sys.executable, "-W", "error", "-m", "experiments.api", str(folder)]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    names = {path: path.relative_to(folder).with_suffix("") for path in folder.rglob("*.html")}
    return {".".join(name.parts): path.read_text() for path, name in names.items()}


def section(page, name):
    """What is shown of a name: its signature, and the text below."""
    start = page.index(f'<section id="{name}"')
    following = re.search(r'<section id="[^".]*"', page[start + 1 :])
    html = page[start : start + 1 + following.start()] if following else page[start:]
    source = re.compile(r"<pre>.*?</pre>", re.DOTALL)  # which has the docstring as it is written
    return unescape(re.sub(r"<[^>]+>", "", source.sub("", html)))


@pytest.mark.long
@pytest.mark.parametrize("name", api.exported())
def test_every_exported_name_has_its_section(name, pages):
    value = api.exported()[name]
    shown = section(pages[value.__module__], value.__name__)
    first = value.__doc__.strip().splitlines()[0]
    assert re.sub(r"\W", "", first) in re.sub(r"\W", "", shown)
    for title in ("Args:\n", "Attributes:\n      "):  # as they stand where they are not understood
        assert title not in shown
    if "Args:\n" in value.__doc__:
        assert "Arguments:" in shown
    if "Raises:\n" in value.__doc__:
        assert "Raises:" in shown
    for unreadable in ("jaxtyping.", "jaxlib", "Union[", "Alias for field", "Create new instance"):
        assert unreadable not in shown
    assert f">{value.__module__}.{value.__name__}<" in pages["gf_jax"]


@pytest.mark.long
def test_shapes_are_told(pages):
    assert "times: Float[ArrayLike, 'times']" in section(pages["gf_jax.flow.flow"], "gradient_flow")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "api: accepted is one folder"),
        (["--out"], "--out: accepted is one folder"),
        (["a", "b"], "a b: accepted is one folder"),
    ],
)
def test_mistakes(given, message, capsys):
    assert api.main(given) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_without_pdoc(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "pdoc", None)
    assert api.main([str(tmp_path / "api")]) == 2
    assert 'pdoc: is not installed; use pip install -e ".[docs]"' in capsys.readouterr().err
    assert not (tmp_path / "api").exists()
