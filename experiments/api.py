"""The pages on gf_jax's functions, built from their docstrings.

    python -m experiments.api build/api

pdoc does it, on modules prepared for reading: annotations stand as they are written, where Python
knows only what they amount to, and every field of a named tuple is given the meaning that its
class tells of it.

Exit status: 0 done; 2 a folder that cannot be written, or pdoc is not installed; 130 interrupted.
"""

import ast
import functools
import importlib
import inspect
import pkgutil
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gf_jax
import gf_jax.descent
import gf_jax.flow
import gf_jax.problems
import gf_jax.theory
from experiments.cli import command_line, usage
from experiments.process import interruption
from experiments.process.mistakes import EXIT_INTERRUPTED, EXIT_USAGE, UsageError

COMMAND = "python -m experiments.api"
PAGE = usage.Page(
    command=COMMAND,
    takes="FOLDER",
    purpose="Builds the pages on gf_jax's functions from their docstrings.",
    examples=(usage.Example(f"{COMMAND} build/api", "Then open build/api/gf_jax.html."),),
    statuses={
        0: "done",
        EXIT_USAGE: "a folder that cannot be written, or pdoc is not installed",
        EXIT_INTERRUPTED: "interrupted; the pages are not complete",
    },
)
# Where the library's names are looked for, the first of them first.
FACES = (gf_jax, gf_jax.theory, gf_jax.problems, gf_jax.descent, gf_jax.flow)
# A field and its meaning, in the section Attributes of a docstring.
ATTRIBUTE = re.compile(r"^  (\w+): (.*(?:\n    .*)*)", re.MULTILINE)


class Written:
    """An annotation in the words of the program."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def main(arguments: list[str]) -> int:
    """Builds the pages in a folder."""
    if any(argument in usage.HELP for argument in arguments):
        usage.show(PAGE)
        return 0
    with interruption.handled():
        return interruption.exit_status(command_line.exit_status([], lambda: _main(arguments)))


def _main(arguments: list[str]) -> int:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        given = " ".join(arguments) or "api"
        raise UsageError(f"{given}: accepted is one folder, {COMMAND} FOLDER")
    try:
        interruption.call(lambda: build(Path(arguments[0])))
    except ModuleNotFoundError as error:
        raise UsageError(f'{error.name}: is not installed; use pip install -e ".[docs]"') from None
    except OSError as error:
        raise UsageError(
            f"{arguments[0]}: cannot be written ({error.strerror}); give another folder"
        ) from None
    print(f"the pages begin at {arguments[0]}/gf_jax.html")
    return 0


def build(folder: Path) -> None:
    """Writes the pages of gf_jax into a folder."""
    import pdoc  # only those who build pages have it

    for found in pkgutil.walk_packages(gf_jax.__path__, "gf_jax."):
        _prepare(importlib.import_module(found.name))
    gf_jax.__doc__ = f"{gf_jax.__doc__}\n\n{_contents()}"
    # What has no docstring is not told: constants, and the constructors of named tuples.
    pdoc.render.configure(docformat="google", include_undocumented=False)
    pdoc.pdoc("gf_jax", output_directory=folder)


def exported() -> dict[str, Any]:
    """What gf_jax gives its users, by the names that they write, such as gf_jax.theory.defects."""
    return {
        f"{face.__name__}.{name}": value
        for face in FACES
        for name, value in vars(face).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }


def _contents() -> str:
    """What is exported, by the faces, with links to where it is described."""
    by_face: dict[str, list[str]] = {}
    for name, value in exported().items():
        full_name = f"{value.__module__}.{value.__name__}"
        entry = f"* `{full_name}`: {inspect.cleandoc(value.__doc__).splitlines()[0]}"
        by_face.setdefault(name.rpartition(".")[0], []).append(entry)
    return "\n\n".join(f"### `{face}`\n" + "\n".join(entries) for face, entries in by_face.items())


def _prepare(module: types.ModuleType) -> None:
    """Makes the functions and classes of a module readable."""
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.FunctionDef):
            _annotate(getattr(module, node.name), node, module)
        elif isinstance(node, ast.ClassDef):
            described = getattr(module, node.name)
            _annotate_class(described, node, module)
            if hasattr(described, "_fields") and described.__doc__:
                _describe_fields(described)


def _annotate(function: Any, node: ast.FunctionDef, module: types.ModuleType) -> None:
    """Gives a function its annotations as they are written."""
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    written = {each.arg: each.annotation for each in arguments} | {"return": node.returns}
    inspect.unwrap(function).__annotations__ = {
        name: _written(annotation, module) for name, annotation in written.items() if annotation
    }


def _annotate_class(described: type, node: ast.ClassDef, module: types.ModuleType) -> None:
    """The same for the fields and methods of a class."""
    for part in node.body:
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
            described.__annotations__[part.target.id] = _written(part.annotation, module)
        elif isinstance(part, ast.FunctionDef):
            member = vars(described)[part.name]
            if isinstance(member, property):
                member = member.fget
            elif isinstance(member, functools.cached_property):
                member = member.func
            _annotate(member, part, module)


def _written(annotation: ast.expr, module: types.ModuleType) -> Written:
    """An annotation, in which what gf_jax defines has its full name, so that it is a link."""

    def full_name(match: re.Match[str]) -> str:
        named = getattr(module, match[0], None)
        home = getattr(named, "__module__", "")
        own = isinstance(named, type) and home.startswith("gf_jax.")
        return f"{home}.{match[0]}" if own else match[0]

    text = ast.unparse(annotation).replace("' ", "'")  # a shape of one axis begins with a blank
    return Written(re.sub(r"(?<![\w.])[A-Z]\w+", full_name, text))


def _describe_fields(described: Any) -> None:
    """Moves what a named tuple's docstring tells of its fields to these.

    Python says of each only which number it has, and of the constructor that it constructs.
    """
    text, _, attributes = inspect.cleandoc(described.__doc__).partition("Attributes:\n")
    meanings = dict(_meanings(attributes))
    for field in described._fields:
        getattr(described, field).__doc__ = meanings.get(field, "")
    described.__doc__ = text + ATTRIBUTE.sub("", attributes)
    described.__new__.__doc__ = None


def _meanings(attributes: str) -> Iterator[tuple[str, str]]:
    for field, meaning in ATTRIBUTE.findall(attributes):
        yield field, " ".join(meaning.split())


if __name__ == "__main__":
    sys.exit(interruption.leave(main(sys.argv[1:])))
