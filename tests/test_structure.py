"""Imports go only downwards, and each outside library is met in one place."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What each folder of the library may import of the others; nothing in gf_jax imports experiments.
LIBRARY = {
    "records": set(),
    "stacks": set(),
    "comparison": {"records", "stacks"},
    "ensemble": {"comparison", "records"},
    "program": set(),
    "optimizers": {"program"},
    # Descent and flow never meet: both receive f, so that their agreement is evidence.
    "descent": {"comparison", "optimizers", "program", "stacks"},
    "flow": {"comparison", "ensemble", "optimizers", "program", "stacks"},
    "problems": {"descent", "program"},
    "theory": {"flow", "optimizers", "problems", "program", "records"},
    # What runs amount to; only here the library touches the world.
    "study": {
        *("comparison", "descent", "flow", "optimizers"),
        *("program", "records", "stacks", "theory"),
    },
}
# The same of experiments: each folder imports those before it. In front are those that run.
EXPERIMENTS = (
    "process",
    "cli",
    "problems",
    "output",
    "runs",
    "studies",
    "benchmark",
    "accelerator",
)
# Where each outside library is met; all that touches the world is in experiments.
OUTSIDE = {
    "diffrax": {"gf_jax.flow.smooth"},
    "matfree": {"gf_jax.theory.spectrum"},
    "absl": {
        *("experiments.cli.command_line", "experiments.main"),
        *("experiments.accelerator", "experiments.benchmark"),
    },
    "pdoc": {"experiments.api"},
    "matplotlib": {
        *("gf_jax.study.drawing", "gf_jax.study.style", "experiments.output.figures"),
        "gf_jax.study.comparison",  # names a type
        "experiments.optimizers",
    },
    "plotly": {"experiments.output.page"},
    "jinja2": {"experiments.output.page"},
    "tensorflow_datasets": {"experiments.fetch"},
    "sklearn": {
        *("experiments.problems.datasets.digits", "experiments.problems.regression"),
        "experiments.examples",
    },
    "scipy": {"gf_jax.theory.bounds", "experiments.studies.spectra"},
    "flax": {"experiments.examples"},
    "torch": {"experiments.benchmark"},
    "orbax": {"experiments.runs.checkpoints"},
    "etils": {"experiments.runs.checkpoints", "experiments.runs.sharing"},
    "fcntl": {"experiments.process.folders"},
    "signal": {"experiments.process.aborts", "experiments.process.interruption"},
}


MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("gf_jax", "experiments")
    for path in (ROOT / package).rglob("*.py")
}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in MODULES else node.module for name in names)


def folder(module):
    return ".".join(module.split(".")[:2])


@pytest.mark.parametrize("module", sorted(m for m in MODULES if m.startswith("gf_jax.")))
def test_the_library_imports_downwards(module):
    names = set(imported(MODULES[module]))
    assert not {name.split(".")[0] for name in names} & {"experiments", "absl", "rich"}
    inner = {name.split(".")[1] for name in names if name.startswith("gf_jax.")}
    own = module.split(".")[1]
    assert inner - {own} <= LIBRARY[own]


@pytest.mark.parametrize("place", EXPERIMENTS)
def test_experiments_import_downwards(place):
    lower = EXPERIMENTS[: EXPERIMENTS.index(place) + 1]
    for module, path in MODULES.items():
        if f"{module}.".startswith(f"experiments.{place}."):
            names = {n.split(".")[1] for n in imported(path) if n.startswith("experiments.")}
            assert names <= set(lower), module


# Those for types alone count too.
@pytest.mark.parametrize("unit", [str, folder], ids=["modules", "folders"])
def test_nothing_imports_in_a_circle(unit):
    graph = {}
    for module, path in MODULES.items():
        inner = {unit(name) for name in imported(path) if name in MODULES}
        graph.setdefault(unit(module), set()).update(inner - {unit(module)})
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize("library", OUTSIDE)
def test_outside_libraries_have_one_place(library):
    users = {
        module
        for module, path in MODULES.items()
        if any(name.split(".")[0] == library for name in imported(path))
    }
    assert users
    for place in OUTSIDE[library]:
        inside = {module for module in users if f"{module}.".startswith(f"{place}.")}
        assert inside, f"{place} imports no {library}"
        users -= inside
    assert not users
