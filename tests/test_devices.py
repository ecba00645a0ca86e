"""Runs spread over several devices and processes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.runs import store
from tests.conftest import SMALL, WITH_FLOW

ROOT = Path(__file__).parents[1]
EIGHT = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}


def start(*arguments, **environment):
    """A Python program in its own process."""
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.long
def test_eight_devices_equal_one():
    program = start("tests.eight_devices", **EIGHT)
    _, err = program.communicate(timeout=300)
    assert program.returncode == 0, err


@pytest.mark.long
def test_what_a_device_has_no_numbers_for_is_solved_on_its_host():
    two = EIGHT | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    program = start("tests.host_device", **two)
    _, err = program.communicate(timeout=300)
    assert program.returncode == 0, err


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("--seeds=8",), "8 starting points spread over 8 devices"),
        (("--seeds=3", "--mesh=4"), "60 examples spread over 4 devices"),
        (("--seeds=3",), "8 devices divide neither 3 starting points nor 60 examples: one device"),
        (("--mesh=7",), "error: --mesh=7: 7 devices divide neither 1 starting points nor 60"),
        (("--mesh=9",), "error: --mesh=9: accepted is a number of devices that are there, up to 8"),
    ],
)
@pytest.mark.long
def test_what_is_spread_is_said(flags, text, tmp_path):
    folder = f"--output_dir={tmp_path / 'run'}"
    program = start("experiments.main", *SMALL, "--ratios=2", *flags, folder, **EIGHT)
    out, err = program.communicate(timeout=300)
    assert text in out + err
    assert program.returncode == (2 if "error" in text else 0)


@pytest.mark.parametrize("flag", ["--mesh=0", "--mesh=all", "--mesh=-1"])
def test_mistakes(flag, invoke):
    status, _, err = invoke(*SMALL, flag)
    assert status == 2
    assert err == f"error: {flag}: accepted are auto, none and a positive integer\n"


@pytest.mark.parametrize(
    ("variables", "arguments", "message"),
    [
        ({"JAX_COORDINATOR_ADDRESS": "127.0.0.1:1"}, (), "environment: JAX_COORDINATOR_ADDRESS"),
        ({"SLURM_STEP_NUM_TASKS": "2"}, ("--experiment=rounding",), "runs in a single process"),
    ],
)
def test_processes_that_cannot_be_started(variables, arguments, message, invoke, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    status, _, err = invoke(*SMALL, *arguments)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1


@pytest.fixture
def two_processes():
    """Runs the same command in two processes: their exit statuses, stdouts and stderrs."""

    def call(*arguments):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        variables = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
        programs = [
            start(
                "experiments.main",
                *arguments,
                **variables,
                JAX_PROCESS_ID=str(number),
                JAX_PLATFORMS="cpu",
            )
            for number in range(2)
        ]
        outputs = [program.communicate(timeout=300) for program in programs]
        return [
            (program.returncode, *texts) for program, texts in zip(programs, outputs, strict=True)
        ]

    return call


@pytest.mark.long
def test_two_processes_equal_one(tmp_path, invoke, two_processes):
    together, alone = tmp_path / "together", tmp_path / "alone"
    arguments = (*WITH_FLOW, "--ratios=2", "--seeds=2")
    first, second = two_processes(*arguments, f"--output_dir={together}")
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert "2 starting points spread over 2 devices" in first[1]
    assert "Verdict" in first[1]
    # The second process prints nothing; what connects them says so on its own.
    assert [line for line in second[1].splitlines() if line and "Gloo" not in line] == []

    assert invoke(*arguments, f"--output_dir={alone}")[0] == 0
    names = [sorted(path.name for path in folder.iterdir()) for folder in (together, alone)]
    assert names[0] == names[1]
    ours, expected = store.read_run(together), store.read_run(alone)
    numbers = [
        jax.tree.leaves((run.metrics, run.accuracy, run.reference.predicted_to_base))
        for run in (ours, expected)
    ]
    for a, b in zip(*numbers, strict=True):
        # Stacks of other sizes may sum in another order: a few ulps in each of 24 steps.
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6)


@pytest.mark.long
def test_a_mistake_ends_both_processes(tmp_path, two_processes):
    """Only the first sees that the folder is not empty."""
    (tmp_path / "file").touch()
    first, second = two_processes(*SMALL, f"--output_dir={tmp_path}")
    assert (first[0], second[0]) == (2, 2)
    assert "never overwritten" in first[2]
    assert "error: another process of this run reports a mistake" in second[2]
