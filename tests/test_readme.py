"""What the README shows is what the program does."""

import dataclasses
import re
from pathlib import Path

from experiments.configuration import Configuration

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_every_flag_is_in_the_table():
    listed = re.findall(r"^\| `--(\w+)` \|", README, re.MULTILINE)
    flags = [field.name for field in dataclasses.fields(Configuration)]
    assert sorted(set(listed) - {"network"}) == sorted(set(flags) - {"network"})
    assert listed.count("network") == 2  # the flag, and the head of the table of networks


def test_the_library_examples_run_one_after_another(capsys):
    examples = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    names = {}
    for example in examples:
        exec(compile(example, "README.md", "exec"), names)
    assert "(100, 3)" in capsys.readouterr().out


def test_the_two_lines_are_there():
    lines = re.findall(r"^python3 -m venv .*$", README, re.MULTILINE)
    assert len(lines) == 2
    assert lines[0].endswith("-m experiments.main --ratios=2,5,10,20")
    assert lines[1].endswith("-m pytest")
