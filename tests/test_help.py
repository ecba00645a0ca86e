"""Help tells everything that is accepted, and fits the terminal."""

import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from absl.flags import FlagValues
from rich.console import Console

from experiments import main, show, studies
from experiments.accelerator import __main__ as accelerator
from experiments.accelerator.program import Settings as AcceleratorSettings
from experiments.benchmark import __main__ as benchmark
from experiments.benchmark.program import Settings
from experiments.cli import command_line, usage
from experiments.cli.options import described
from experiments.process.mistakes import EXIT_STATUSES
from gf_jax.program.arithmetic import ARITHMETICS

ROOT = Path(__file__).parents[1]
PAGES = [
    pytest.param(main.page(), id="main"),
    pytest.param(benchmark.page(), id="benchmark"),
    pytest.param(accelerator.page(), id="accelerator"),
    pytest.param(show.PAGE, id="show"),
]


def printed(page, width):
    out = io.StringIO()
    usage.show(page, Console(file=out, width=width, highlight=False))
    return out.getvalue()


@pytest.mark.oldest
@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_page_fits_the_terminal(page, width):
    examples = {example.command for example in page.examples}  # lines to copy are not broken
    for line in printed(page, width).splitlines():
        assert len(line) <= min(width, usage.WIDEST) or line.strip() in examples


EXPERIMENTS = {name: studies.load(name).options for name in studies.MODULES}


@pytest.mark.parametrize(
    ("page", "programs"),
    [
        (main.page(), EXPERIMENTS),
        (benchmark.page(), {"benchmark": Settings}),
        (accelerator.page(), {"accelerator": AcceleratorSettings}),
    ],
    ids=["main", "benchmark", "accelerator"],
)
def test_every_option_is_told_once(page, programs):
    told = re.findall(r"^  --(?:\[no\])?(\w+)", printed(page, 80), re.MULTILINE)
    known = {name for kind in programs.values() for name in described(kind)}
    assert sorted(set(told) - {"experiment"}) == sorted(known)
    assert len(set(told)) == len(told)


def test_defaults_are_those_of_the_configuration():
    text = " ".join(printed(main.page(), 80).split())
    assert "[10000; draws: 200; edge: 1500; deep_linear: 400]" in text
    assert "[2,5,10,20; draws: 2,4; edge: 2; deep_linear: 2,4]" in text
    assert "[50,50; edge: 20,20; near_zero: 50; deep_linear: 2]" in text


def test_choices_are_those_of_the_program():
    by_name = {flag.name: flag for group in studies.flags() for flag in group.flags}
    assert tuple(by_name["experiment"].choices) == tuple(studies.MODULES)
    assert tuple(by_name["arithmetic"].choices) == tuple(ARITHMETICS)


@pytest.mark.parametrize(
    ("page", "accept"),
    [
        (main.page(), studies.chosen),
        (benchmark.page(), lambda given: Settings.of(**given)),
        (accelerator.page(), lambda given: AcceleratorSettings.of(**given)),
    ],
    ids=["main", "benchmark", "accelerator"],
)
def test_examples_are_accepted(page, accept):
    for example in page.examples:
        assert example.command.startswith(page.command)
        values = FlagValues()
        command_line.define(page.groups, values)
        assert values(["program", *shlex.split(example.command)[3:]]) == ["program"]
        accept(command_line.given(page.groups, values))


def test_exit_statuses_are_told_everywhere():
    page = (ROOT / "experiments" / "docs" / "runs.md").read_text()
    for text in (main.__doc__, page.partition("\n## Exit statuses\n")[2]):
        told = {int(number) for number in re.findall(r"(?<![\w.])\d+(?= )", text)}
        assert told >= set(EXIT_STATUSES)
    for text in (accelerator.__doc__, benchmark.__doc__, show.__doc__):
        assert "Exit status" in text


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_the_command_itself(flag):
    command = [sys.executable, "-m", "experiments.main", "--ratios=0", flag]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: python -m experiments.main")
    assert "\x1b" not in done.stdout  # it is piped
    assert "logtostderr" not in done.stdout  # absl's own


def test_showing_has_help(capsys):
    assert show.main(["--help"]) == 0
    assert "RUN_DIR" in capsys.readouterr().out
