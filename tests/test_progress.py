"""Progress at a terminal and in a file: what is shown, and that it never ends a run."""

import io
import pty
import re
import sys
import termios

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gf_jax
from experiments.runs import progress
from gf_jax.flow.problem import BetweenSolves, tells_meanwhile
from gf_jax.program.program import prepare

LINE = re.compile(r"solve: (\d+)%, \d:\d\d:\d\d elapsed(, about \d:\d\d:\d\d left)?")
SHARES = st.lists(st.floats(0, 1), max_size=30)


def shown(shares, stream):
    """What a solver shows that tells these shares."""

    def solver(tell):
        for share in shares:
            tell(share)
        return "solution"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        assert progress.solve("solve", solver) == "solution"


def written(shares):
    """What is then in a file."""
    stream = io.StringIO()
    shown(shares, stream)
    return stream.getvalue()


@given(SHARES)
def test_a_file_has_a_line_for_every_tenth(shares):
    first, *lines = written(shares).splitlines()
    assert first == "solve: compiling"
    percentages = [int(LINE.fullmatch(line)[1]) for line in lines]
    assert percentages[-1] == 100
    assert len(percentages) <= 10
    assert percentages == sorted(set(percentages))


def test_every_tenth_is_told():
    lines = written([number / 1000 for number in range(1, 1001)]).splitlines()
    assert [LINE.fullmatch(line)[1] for line in lines[1:]] == [str(10 * n) for n in range(1, 11)]


@pytest.mark.parametrize(
    ("columns", "kind", "bar"),
    [(80, "xterm", True), (20, "xterm", True), (0, "xterm", False), (80, "dumb", False)],
)
def test_a_terminal_has_a_bar(columns, kind, bar, monkeypatch):
    monkeypatch.setenv("TERM", kind)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("COLUMNS", raising=False)
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, columns))
    with open(slave, "w") as stream:
        shown([0.2, 0.7], stream)
        print("over", file=stream)
    with open(master, encoding="utf-8", newline="") as screen:
        text = "".join(iter(screen.readline, "over\r\n"))
    if bar:
        drawn = [line.strip() for line in re.split("\r(?:\x1b\\[2K)?", text)]
        assert drawn[0].startswith("solve: co")
        assert drawn[-2].startswith("solve: 100%")
        assert max(map(len, drawn)) <= columns, drawn
        assert text.count("\n") == 1
    else:
        assert text.startswith("solve: compiling\r\nsolve: 20%,")


def test_silence_is_broken(monkeypatch):
    """Before anything is computed, and between tenths; ever less often."""
    stream, now = io.StringIO(), [0.0]
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    lines = progress._Lines("solve")
    for second in range(1, 601):
        now[0] = float(second)
        if second == 200:
            lines.tell(0.05)
        lines.tick()
    assert stream.getvalue().splitlines() == [
        "solve: compiling",
        "solve: compiling, 0:01:00 elapsed",
        "solve: compiling, 0:03:00 elapsed",
        "solve: 5%, 0:07:00 elapsed",
    ]
    lines.close()
    lines.tell(1.0)
    assert "100%" not in stream.getvalue()


class Broken(io.StringIO):
    """A log on a full disk."""

    def write(self, _):
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("stream", [Broken(), None])
def test_where_nothing_can_be_shown_the_run_goes_on(stream):
    shown([0.3, 0.6], stream)


def test_closed():
    stream = io.StringIO()
    stream.close()
    shown([0.5], stream)


def test_segments_are_told_from_where_they_are_resumed(monkeypatch):
    schedule = gf_jax.Schedule(0.1, (2,), 10, segments=5)

    def told(resume_from=None):
        stream = io.StringIO()
        monkeypatch.setattr(sys, "stderr", stream)
        parts = progress.segments(square, np.ones(2), schedule, "float32", resume_from=resume_from)
        states = [[np.array(leaf) for leaf in state] for _, state in parts]
        return states, [line.split(",")[0] for line in stream.getvalue().splitlines()]

    states, lines = told()
    tenths = [f"descent: {percentage}%" for percentage in (20, 40, 60, 80, 100)]
    assert lines == ["descent: compiling", *tenths]
    _, lines = told((4, states[1]))
    assert lines == ["descent: compiling", *tenths[1:]]


def square(w):
    return w @ w


@pytest.mark.parametrize(("numbers", "meanwhile"), [(10, False), (100_000, True)])
def test_small_problems_call_back_to_nobody_but_a_bar(numbers, meanwhile):
    """So that JAX's cache keeps their programs; shares are told between solves."""
    told, data = [], np.ones(numbers, np.float32)
    program = prepare(lambda w: (data @ (data * w[0])) / numbers + square(w), np.ones(2))
    brief = BetweenSolves(told.append)
    assert tells_meanwhile(brief, program) == meanwhile
    assert tells_meanwhile(told.append, program)
    assert not tells_meanwhile(None, program)
    if not meanwhile:
        gf_jax.gradient_flow(program, np.ones(2), [0.1], progress=brief)
        assert told == [0.5, 1.0]
