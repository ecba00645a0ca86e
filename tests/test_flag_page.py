"""The page on flags is what the command writes, and tells every flag of every experiment."""

import re

import pytest

from experiments.docs import __main__ as command
from experiments.docs import flag_page
from experiments.docs.described import Described, Row, experiments


def test_the_page_is_the_one_that_the_command_writes():
    assert command.FLAGS.read_text() == flag_page.text(experiments())


def test_the_command_writes_what_has_changed(tmp_path, monkeypatch, capsys):
    page = tmp_path / "flags.md"
    monkeypatch.setattr(command, "FLAGS", page)
    for told in ("was written", "is as it should be"):
        assert command.main([]) == 0
        assert told in capsys.readouterr().out
    assert page.read_text() == flag_page.text(experiments())


def test_a_mistake_is_one_line(tmp_path, monkeypatch, capsys):
    assert command.main(["flags.md"]) == 2
    monkeypatch.setattr(command, "FLAGS", tmp_path / "missing" / "flags.md")
    assert command.main([]) == 2
    assert [line[:6] for line in capsys.readouterr().err.splitlines()] == ["error:"] * 2


@pytest.mark.parametrize("name", experiments())
def test_every_flag_of_an_experiment_is_told(name):
    page = flag_page.text(experiments())
    common = page.partition("Every experiment takes ")[2].partition("\n")[0]
    section = page.partition(f"\n### {name}\n")[2].partition("\n### ")[0]
    taken = re.findall(r"`(--[^`]+)`", common + section)
    assert sorted(taken) == sorted(row.flag for row in experiments()[name].rows)


def test_one_meaning_is_told_once_and_another_with_its_experiments():
    accuracy = Row("--epsilon", "X", "0.1", "Distance.")
    common = Row("--seed", "N", "0", "Of the start.")
    described = {
        "first": Described("one", (accuracy, common)),
        "second": Described("two", (accuracy._replace(default="0.2"), common)),
        "third": Described("three", (accuracy._replace(meaning="Loss."), common)),
    }
    rows = [line for line in flag_page.text(described).splitlines() if line.startswith("| `--")]
    assert rows == [
        "| `--epsilon=X` | 0.1; second: 0.2 | In first, second: Distance. |",
        "| `--epsilon=X` | 0.1 | In third: Loss. |",
        "| `--seed=N` | 0 | Of the start. |",
    ]
