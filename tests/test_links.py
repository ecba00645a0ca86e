"""What the documents point to is there: pages, sections, pictures, modules and names."""

import importlib
import re

import pytest

from tests.documents import ROOT, documents

PAGES = [pytest.param(path, id=path.name) for path in documents()]
README_BYTES = 8_000  # what a newcomer reads in one go


def prose(path):
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(path):
    """The sections of a page by the names that GitHub gives them."""
    headings = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        found = (page.parent / file).resolve() if file else page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


@pytest.mark.parametrize("page", PAGES)
def test_a_section_has_a_name_of_its_own(page):
    assert len(anchors(page)) == len(set(anchors(page)))


@pytest.mark.parametrize("page", PAGES)
def test_files_named_are_there(page):
    for name in re.findall(r"`((?:gf_jax|experiments|tests)/[\w/.]*)`", prose(page)):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", PAGES)
def test_names_of_python_are_there(page):
    for name in re.findall(r"`((?:gf_jax|experiments|tests)\.[\w.]*\w)\b", prose(page)):
        module, *rest = name.split(".")
        found = importlib.import_module(module)
        for part in rest:
            module = f"{module}.{part}"
            if not hasattr(found, part):
                importlib.import_module(module)
            found = getattr(found, part)


def test_the_readme_is_short_and_names_every_page():
    text = (ROOT / "README.md").read_text()
    assert len(text.encode()) <= README_BYTES
    for page in documents()[1:]:
        assert f"]({page.relative_to(ROOT)})" in text
