"""Every example runs, with fewer iterations than it would take alone, and a smaller model."""

import importlib
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "experiments" / "examples"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")
IN_DEFAULT = "regression"
SMALLER = {"million": {"width": 32}}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == IN_DEFAULT else pytest.mark.long) for n in NAMES]
)
def test_example_prints_its_comparison(name, capsys):
    if name.startswith("flax"):
        pytest.importorskip("flax", reason="flax is not installed: pip install -e '.[examples]'")
    example = importlib.import_module(f"experiments.examples.{name}")
    comparison = example.main(iterations=8, **SMALLER.get(name, {}))
    assert "Verdict: descent with step size" in capsys.readouterr().out
    assert np.isfinite(comparison.distance).all()
    # Of these models only ReLU has kinks: masks, softmax and normalisation are smooth.
    assert (comparison.kinks > 0) == (name == "flax_nnx")
    if comparison.kinks == 0:
        assert abs(comparison.order[-1] - 1) < 0.1  # first order, in steps that are small enough
