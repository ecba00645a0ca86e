"""Imports go only downwards, and each outside library is met in one place."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What each module may import of gf_jax; nothing in gf_jax imports experiments.
LIBRARY = {
    "networks": set(),
    "initialization": {"networks"},
    "objective": {"networks", "stepping"},
    "comparison": set(),
    "arithmetic": set(),
    "facts": set(),
    "schedule": set(),
    "equations": {"facts"},
    # What f is: traced once, lifted, split from its data, gated.
    "rules": {"equations"},
    "lifting": {"equations", "rules"},
    "flattening": {"equations", "rules"},
    "identity": {"equations", "rules"},
    "kinks": {"equations", "facts"},
    "program": {"equations", "flattening", "identity", "kinks", "lifting", "rules"},
    # Descent and the flows never meet: both receive f, so that their agreement is evidence.
    "placement": {"schedule"},
    "stepping": {"arithmetic", "program", "schedule"},
    "segments": {"arithmetic", "comparison", "placement", "program", "schedule", "stepping"},
    "descent": {"placement", "program", "schedule", "segments", "stepping"},
    "momentum": set(),
    "method": {"momentum"},
    "flow_problem": {"arithmetic", "kinks", "program"},
    "smooth": {"comparison", "flow_problem"},
    "piecewise": {"flow_problem", "kinks"},
    "flow": {"comparison", "flow_problem", "piecewise", "program", "smooth"},
    "prediction": {
        *("comparison", "flow", "flow_problem", "momentum", "piecewise", "program"),
    },
    "spectrum": {"arithmetic", "program"},
    "bounds": {"arithmetic", "program"},
    "lower_bounds": set(),
    "deep_linear": {"flow", "flow_problem", "networks", "program", "smooth"},
    # What runs amount to, and the two modules of the library that touch the world.
    "record": {"comparison", "fields", "files", "method", "schedule"},
    "summary": {"comparison", "record"},
    "style": set(),
    "drawing": {"comparison", "record", "style"},
    "table": {"summary"},
    "files": set(),
    "fields": {"files"},
    "following": {
        *("arithmetic", "comparison", "descent", "flow", "flow_problem", "prediction", "program"),
        *("record", "schedule", "segments"),
    },
    "study": {
        *("arithmetic", "drawing", "flow_problem", "following", "method", "program", "record"),
        *("saving", "schedule", "segments", "spectrum", "summary", "table"),
    },
    "saving": {"fields", "files", "record", "spectrum", "study"},
}
# Where each outside library is met; all that touches the world is in experiments.
OUTSIDE = {
    "diffrax": {"smooth"},
    "matfree": {"spectrum"},
    "absl": {"command_line", "benchmark"},
    "pdoc": {"api"},
    # figures is a folder, as are benchmark and page; study only names a type.
    "matplotlib": {"drawing", "figures", "study", "style"},
    "plotly": {"page"},
    "jinja2": {"page"},
    "tensorflow_datasets": {"fetch"},
    "sklearn": {"data", "examples"},  # the latter a folder
    "flax": {"examples"},
    "torch": {"benchmark"},
    "tqdm": {"progress"},
    "orbax": {"checkpoints"},
    "etils": {"checkpoints"},
    "fcntl": {"folders"},
    "signal": {"interruption"},
}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", sorted((ROOT / "gf_jax").glob("*.py")), ids=lambda p: p.stem)
def test_library_imports(path):
    inner = {name.split(".")[1] for name in imported(path) if name.startswith("gf_jax.")}
    outer = {name.split(".")[0] for name in imported(path)}
    assert not outer & {"experiments", "absl", "rich", "tqdm"}
    if path.stem != "__init__":
        assert inner <= LIBRARY[path.stem]


@pytest.mark.parametrize("library", OUTSIDE)
def test_outside_libraries_have_one_place(library):
    users = {
        path.parent.stem if path.parent.parent.stem == "experiments" else path.stem
        for folder in ("gf_jax", "experiments")
        for path in (ROOT / folder).rglob("*.py")
        if any(name.split(".")[0] == library for name in imported(path))
    }
    assert users == OUTSIDE[library]
