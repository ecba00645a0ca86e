"""Help tells everything that is accepted, and fits the terminal."""

import dataclasses
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from absl.flags import FlagValues
from rich.console import Console

from experiments import main, show
from experiments.benchmark import __main__ as benchmark
from experiments.benchmark.program import Settings
from experiments.cli import command_line, flags, usage
from experiments.cli.configuration import EXIT_STATUSES, EXPERIMENTS, Configuration
from gf_jax.program.arithmetic import ARITHMETICS

ROOT = Path(__file__).parents[1]
PAGES = [
    pytest.param(flags.page(), Configuration, id="main"),
    pytest.param(benchmark.page(), Settings, id="benchmark"),
    pytest.param(show.PAGE, None, id="show"),
]


def printed(page, width):
    out = io.StringIO()
    usage.show(page, Console(file=out, width=width, highlight=False))
    return out.getvalue()


@pytest.mark.oldest
@pytest.mark.parametrize(("page", "configuration"), PAGES)
@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_page_fits_the_terminal(page, configuration, width):
    examples = {example.command for example in page.examples}  # lines to copy are not broken
    for line in printed(page, width).splitlines():
        assert len(line) <= min(width, usage.WIDEST) or line.strip() in examples


@pytest.mark.parametrize(("page", "configuration"), PAGES[:2])
def test_every_field_is_told_once(page, configuration):
    told = re.findall(r"^  --(?:\[no\])?(\w+)", printed(page, 80), re.MULTILINE)
    assert sorted(told) == sorted(field.name for field in dataclasses.fields(configuration))


def test_defaults_are_those_of_the_configuration():
    text = " ".join(printed(flags.page(), 80).split())
    assert "[10000; deep_linear: 400]" in text
    assert "[2,5,10,20; deep_linear: 2,4]" in text
    assert "[50,50; near_zero: 50; deep_linear: 2]" in text


def test_choices_are_those_of_the_program():
    by_name = {flag.name: flag for group in flags.GROUPS for flag in group.flags}
    assert tuple(by_name["experiment"].choices) == EXPERIMENTS
    assert tuple(by_name["arithmetic"].choices) == tuple(ARITHMETICS)


@pytest.mark.parametrize(
    ("page", "configuration", "define"),
    [(flags.page(), Configuration, flags.GROUPS), (benchmark.page(), Settings, benchmark.GROUPS)],
    ids=["main", "benchmark"],
)
def test_examples_are_accepted(page, configuration, define):
    for example in page.examples:
        assert example.command.startswith(page.command)
        values = FlagValues()
        command_line.define(define, configuration, values)
        assert values(["program", *shlex.split(example.command)[3:]]) == ["program"]
        configuration(**command_line.values_of(configuration, values))


def test_exit_statuses_are_told_everywhere():
    readme = (ROOT / "README.md").read_text()
    (paragraph,) = re.findall(r"^Exit status: .*?\n\n", readme, re.MULTILINE | re.DOTALL)
    for text in (main.__doc__, paragraph):
        told = {int(number) for number in re.findall(r"(?<![\w.])\d+(?= )", text)}
        assert told >= set(EXIT_STATUSES)
    for text in (benchmark.__doc__, show.__doc__):
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
