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
    "tracing": set(),
    "kinks": set(),
    "schedule": set(),
    # Descent and the flows never meet: both receive f, so that their agreement is evidence.
    "placement": {"schedule"},
    "stepping": {"arithmetic", "schedule", "tracing"},
    "descent": {"arithmetic", "comparison", "placement", "schedule", "stepping", "tracing"},
    "momentum": set(),
    "method": {"momentum"},
    "flow_problem": {"arithmetic", "kinks", "tracing"},
    "smooth": {"comparison", "flow_problem"},
    "piecewise": {"flow_problem", "kinks"},
    "flow": {"comparison", "flow_problem", "kinks", "piecewise", "smooth", "tracing"},
    "prediction": {"flow", "flow_problem", "kinks", "momentum", "piecewise", "tracing"},
    "curvature": {"arithmetic", "tracing"},
    "bounds": {"arithmetic", "tracing"},
    "deep_linear": {"flow", "flow_problem", "networks", "smooth", "tracing"},
}
# Where each outside library is met; all that touches the world is in experiments.
OUTSIDE = {
    "diffrax": {"smooth"},
    "matfree": {"curvature"},
    "absl": {"main", "benchmark"},
    "matplotlib": {"figures"},  # a folder, as is benchmark
    "tensorflow_datasets": {"fetch"},
    "sklearn": {"data"},
    "torch": {"benchmark"},
    "tqdm": {"harness"},
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
    assert not outer & {"experiments", "absl", "matplotlib", "rich", "tqdm"}
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
