"""What the documents show is what the program does: every example is run.

A command is run with the very flags that are shown. If it does not say how many iterations, it is
made short by SHORTER, where it takes these and does not give them. What is run elsewhere is named
here, and what is not known fails.
"""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from absl.flags import FlagValues

from experiments import studies
from experiments.accelerator import __main__ as accelerator
from experiments.benchmark import __main__ as benchmark
from experiments.cli import command_line
from experiments.cli.options import described
from experiments.process.mistakes import EXIT_DIVERGED
from tests import test_devices
from tests.documents import documents

ROOT = Path(__file__).parents[1]
TEXTS = {path: path.read_text() for path in documents()}
BLOCKS_OF = {
    path.name: re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for path, text in TEXTS.items()
}
BLOCKS = [block for blocks in BLOCKS_OF.values() for block in blocks]

# What makes the main program's runs small.
SHORTER = {
    "dataset": "digits",
    "examples": "50",
    "iterations": "256",
    "widths": "6",
    "depths": "2,3",
}
# The same of what has a dear default in some experiments.
SHORTER_IN = {
    "curvature": {"snapshots": "4"},
    "bounds": {"snapshots": "4"},
    "deep_linear": {"seeds": "5"},
}
OF_BENCHMARK = {
    "dataset": "digits",
    "examples": "40",
    "ratios": "2",
    "rounds": "1",
    "networks": "linear",
}
OF_ACCELERATOR = {
    "dataset": "digits",
    "examples": "40",
    "ratios": "2",
    "networks": "linear",
    "quick": "true",
}
# Blocks that are no commands, by their first line: what they are, or where they are run.
OTHER_BLOCKS = {
    "@inproceedings{elkabetz2021continuous,": "the paper",
    'mesh = jax.sharding.Mesh(np.array(jax.devices()), ("devices",))': "tests/eight_devices.py",
}


def command_lines():
    """The shell's lines and those of notebooks, without comments and the environment's folder."""
    for language, block in BLOCKS:
        lines = block.replace("\\\n", " ").splitlines()
        if language == "bash" or (language == "" and lines[0] not in OTHER_BLOCKS):
            plain = (re.sub(r"\s+#.*|^!|^\.venv/bin/", "", line) for line in lines)
            yield from (line for line in plain if line)


PROGRAM = re.compile(r"^python -m experiments\.(\w+)")
LINES = list(dict.fromkeys(command_lines()))
RUN = [line for line in LINES if PROGRAM.match(line)]
SET_UP = [line for line in LINES if line.startswith("python3 -m venv .venv ")]
INSTALL = [line for line in LINES if re.match(r"pip install -q -e ", line)]
HOSTS = [line for line in LINES if re.match(r"(?:export )?JAX_\w+=", line)]


def test_there_is_a_way_to_run_every_block():
    assert set(LINES) == {*RUN, *SET_UP, *INSTALL, *HOSTS}
    first_lines = {block.splitlines()[0] for language, block in BLOCKS if language == "bibtex"}
    assert first_lines <= set(OTHER_BLOCKS)
    assert {language for language, _ in BLOCKS} <= {"bash", "python", "bibtex", "text", ""}
    assert {PROGRAM.match(line)[1] for line in RUN} <= {
        *("main", "accelerator", "benchmark", "show", "api")
    }


def test_the_python_examples_print_what_is_shown(capsys, tmp_path, monkeypatch):
    """Those of a page one after another; a second study of a loss compiles nothing."""
    monkeypatch.chdir(tmp_path)
    for page, blocks in BLOCKS_OF.items():
        names: dict = {}
        printed = ""
        for language, block in blocks:
            if language == "python":
                exec(compile(block, page, "exec"), names)
                printed = capsys.readouterr().out
            elif language == "text":
                assert_begins_with(printed, block)


def assert_begins_with(printed, shown):
    """Word by word; numbers below 1e-6 are errors and rounding, of which only the size counts."""
    for word, wanted in zip(printed.split(), shown.split(), strict=False):
        number = re.match(r"[(]?(\d[\d.,]*(?:e[+-]\d+)?)", wanted)
        if number is None:
            assert word == wanted
            continue
        found, expected = (
            float(re.sub(r"[^\d.e+-]|[.,]$", "", text)) for text in (word, number[1])
        )
        assert found == pytest.approx(expected, rel=0.01, abs=1e-6)
    assert len(printed.split()) >= len(shown.split())


def test_the_two_lines_are_run_by_every_change():
    """They make an environment and install from the network: .ci/run does it, on a clean clone."""
    assert len(SET_UP) == 2
    assert SET_UP[0].endswith("-m experiments.main --ratios=2,5,10,20")
    assert SET_UP[1].endswith("-m pytest")
    script = (ROOT / ".ci" / "run").read_text()
    for what in ("pytest", "experiments.main"):
        assert f'bash -euo pipefail -c "$(readme_line {what})"' in script


@pytest.mark.parametrize("line", INSTALL)
def test_what_is_installed_exists(line):
    """Of frameworks for other machines, and large ones, that the extra is there."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    wanted = re.findall(r'-e "\.\[(\w+)\]"$', line)
    assert wanted
    assert set(wanted) <= set(extras)


def test_several_hosts_are_two_processes():
    """The variables and the command are those that the test of two processes uses."""
    assert hasattr(test_devices, "test_two_processes_equal_one")
    variables = set(re.findall(r"(JAX_\w+)=", " ".join(HOSTS)))
    assert variables == {"JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"}
    for line in HOSTS:
        if "python" in line:
            accepted(re.sub(r"^.*?(?=python)", "", line))


def given_flags(line):
    """The flags of a command, with their values."""
    return dict(re.findall(r"--(\w+)(?:=(\S*))?", line))


def accepted(line):
    """The options that a line of the main program describes."""
    values = FlagValues()
    command_line.define(studies.flags(), values)
    assert values(["main", *shlex.split(line)[3:]]) == ["main"]
    return studies.chosen(command_line.given(studies.flags(), values))


@pytest.mark.parametrize("line", [line for line in RUN if "experiments.main" in line])
def test_the_flags_shown_are_accepted(line):
    accepted(line)
    accepted(shortened(line))


def test_flags_named_in_the_text_exist():
    pages = (*studies.flags(), *benchmark.page().groups, *accelerator.page().groups)
    known = {flag.name for group in pages for flag in group.flags}
    text = "".join(TEXTS.values())
    shown = re.findall(r"`--(?:no(?=flow|torch|corrected|weights))?([a-z_]+)", text)
    ours = {name for name in shown if not name.startswith("xla_")}  # the compiler has its own
    assert ours <= known | {"help", "helpfull"}


def shortened(line):
    """The same command with flags that make it short."""
    program, given = PROGRAM.match(line)[1], given_flags(line)
    extra = {
        "main": _shorter_run(given) if program == "main" else {},
        "benchmark": OF_BENCHMARK,
        "accelerator": OF_ACCELERATOR,
    }.get(program, {})
    added = [f"--{name}={v}" for name, v in extra.items() if name not in given]
    return " ".join(
        [PROGRAM.sub(rf"{shlex.quote(sys.executable)} -m experiments.\1", line), *added]
    )


def _shorter_run(given):
    if {"iterations", "resume"} & set(given):
        return {}
    experiment = given.get("experiment", "paper")
    used = set(described(studies.load(experiment).options))
    if given.get("network", "fully_connected") != "fully_connected":
        used.remove("widths")
    wanted = SHORTER | SHORTER_IN.get(experiment, {})
    if "batch_size" in given:
        wanted["examples"] = given["batch_size"] + "0"
    return {name: value for name, value in wanted.items() if name in used}


def runs():
    """The benchmark's takes minutes, and tests of its own run it; the README's is .ci/run's."""
    for line in RUN:
        if line not in SET_UP[0]:
            mark = pytest.mark.thorough if "benchmark" in line else pytest.mark.long
            yield pytest.param(line, marks=mark)


@pytest.mark.parametrize("line", list(runs()))
def test_a_command_runs(line, tmp_path, monkeypatch, invoke, request):
    """Those of the main program in this process."""
    program = PROGRAM.match(line)[1]
    if program == "api" and importlib.util.find_spec("pdoc") is None:
        pytest.skip('the pages are built by pdoc: pip install -e ".[docs]"')
    if named := re.search(r"\bruns/[\w*-]+", line):  # what an earlier command has made
        made, _ = request.getfixturevalue("finished_once")
        shutil.copytree(made, tmp_path / named[0].replace("*", "1"))
    monkeypatch.chdir(tmp_path)
    if program == "main":
        status, out, err = invoke(*shlex.split(shortened(line))[3:])
    else:
        variables = {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path)}
        command = ["bash", "-euo", "pipefail", "-c", shortened(line)]
        done = subprocess.run(
            command, env=os.environ | variables, check=False, capture_output=True, text=True
        )
        status, out, err = done.returncode, done.stdout, done.stderr
    assert status == (EXIT_DIVERGED if "--step_size=1 " in line else 0), err
    assert out
    assert list(tmp_path.glob("*/*/*")) or list(tmp_path.glob("build/api/*"))
