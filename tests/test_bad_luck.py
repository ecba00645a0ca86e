"""Signals, streams that take no more, and settings of others: results come first."""

import contextlib
import dataclasses
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gf_jax
from experiments import show
from experiments.output import report
from experiments.problems import problem
from experiments.process import environment, interruption, memory, streams
from experiments.process.mistakes import UsageError
from experiments.runs import effort, store
from experiments.studies import paper
from gf_jax.comparison import WELL_BELOW
from gf_jax.descent.placement import Memory
from gf_jax.study import summary as summaries
from tests.conftest import SMALL

ROOT = Path(__file__).parents[1]
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
OF_COMMANDS = [
    *(("experiments.main", number) for number in SIGNALS),
    *(
        (f"experiments.{name}", signal.SIGINT)
        for name in ("show", "api", "benchmark", "accelerator")
    ),
]


def shell(command, **variables):
    """A command line of bash, in which ``$PYTHON`` is this interpreter."""
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        cwd=ROOT,
        env={**os.environ, "PYTHON": sys.executable, **variables},
        check=False,
        capture_output=True,
        text=True,
    )


# Signals.


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_a_callback_swallows_is_not_lost(number):
    with interruption.handled():
        with contextlib.suppress(BaseException):  # as those that call back from compiled code do
            signal.raise_signal(number)
        with pytest.raises(KeyboardInterrupt):
            interruption.check()
        interruption.check()  # it is raised once
        assert interruption.exit_status(130) == 128 + number


def test_the_wait_for_what_takes_long_ends_at_a_signal():
    release, left = threading.Event(), []

    def work():
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        left.append(release.wait(60))

    with interruption.handled(), pytest.raises(KeyboardInterrupt):
        interruption.call(work)
    assert not left
    release.set()


def test_what_is_made_in_time_or_fails_is_handed_on():
    def fail():
        raise TimeoutError("its own")

    with interruption.handled():
        assert interruption.call(lambda: threading.current_thread()) is not threading.main_thread()
        with pytest.raises(TimeoutError, match="its own"):
            interruption.call(fail)


def test_a_shield_holds_a_signal_back():
    with interruption.handled():
        with interruption.shielded():
            signal.raise_signal(signal.SIGTERM)
            interruption.check()
        with pytest.raises(KeyboardInterrupt):
            interruption.call(lambda: None)


def test_after_the_run_a_signal_ends_the_process_with_its_status(monkeypatch):
    ends = []
    monkeypatch.setattr(os, "_exit", ends.append)
    monkeypatch.setattr(interruption._Process, "status", None)
    monkeypatch.setattr(interruption._Process, "worker", None)
    assert interruption.leave(3) == 3
    interruption._handle(signal.SIGINT, None)
    assert ends == [3]


def test_the_second_signal_ends_all_but_a_terminal_may_close_twice(monkeypatch):
    ends = []
    monkeypatch.setattr(os, "_exit", ends.append)
    with interruption.handled():
        for number in (signal.SIGHUP, signal.SIGHUP):
            signal.raise_signal(number)
        assert not ends
        signal.raise_signal(signal.SIGINT)
        assert ends == [130]


@pytest.mark.parametrize(("module", "number"), OF_COMMANDS)
def test_a_signal_while_modules_are_imported_is_one_line(module, number, tmp_path):
    """The first slow import is JAX's; in its place is a module that sends the signal."""
    (tmp_path / "jax.py").write_text(f"import os, time\nos.kill(os.getpid(), {int(number)})\n")
    done = shell(f"$PYTHON -m {module} --help", PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", "interrupted\n")


@pytest.mark.parametrize(
    "seed",
    [pytest.param(n, marks=pytest.mark.long if n < 3 else pytest.mark.thorough) for n in range(8)],
)
def test_a_signal_at_any_moment(seed, tmp_path):
    """It ends the run within seconds, in a line or two, or comes too late."""
    chance, folder = np.random.default_rng(seed), tmp_path / "run"
    flags = (*SMALL, "--ratios=2", "--checkpoint_every=0", f"--output_dir={folder}")
    with subprocess.Popen(
        [sys.executable, "-m", "experiments.main", *flags],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        time.sleep(chance.uniform(0.2, 10))
        number = SIGNALS[chance.integers(3)]
        process.send_signal(number)
        out, _ = process.communicate(timeout=120)
    assert "Traceback" not in out
    assert "ignored" not in out
    # Before the module is found, and after Python has begun to end, the system answers itself.
    assert process.returncode in (0, 128 + number, -number)
    if process.returncode > 0:
        assert out.count("interrupted") == 1
        if (folder / "checkpoints").exists():
            assert f"--resume={folder}\n" in out


# Streams.


def test_a_pipe_without_a_reader_takes_everything(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    raw = streams._Raw(writer, closed=False)
    assert raw.write(b"lost") == 4
    assert raw.write(memoryview(b" too")) == 4
    assert raw.missed == b"lost too"
    os.close(writer)


BROKEN = {
    "head": "| head -1",
    "closed output": ">&-",
    "closed errors": "2>&-",
    "full errors": "2>/dev/full",
    "full output": ">/dev/full",
    "nothing": "<&- >&- 2>&-",
}


@pytest.mark.parametrize(
    "broken",
    [pytest.param(v, marks=pytest.mark.long, id=k) for k, v in BROKEN.items() if k != "nothing"]
    + [pytest.param(BROKEN["nothing"], id="nothing")],
)
def test_a_run_outlives_its_streams(broken, tmp_path):
    folder = tmp_path / "run"
    done = shell(
        f"$PYTHON -m experiments.main {' '.join(SMALL)} --ratios=2 --output_dir={folder} {broken}"
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    names = {path.name for path in folder.iterdir()}
    assert {"metrics.npz", "figure.png", "report.html", "summary.json", "unsaid.txt"} <= names
    # No file that was opened in the place of a closed stream was written into.
    store.read_run(folder)
    unsaid = (folder / "unsaid.txt").read_text()
    assert ("descent: 100%" in unsaid) == ("2>" in broken)
    assert ("from start" in unsaid) == (broken not in ("2>&-", "2>/dev/full"))
    assert "\r" not in unsaid
    assert "\x1b" not in unsaid


@pytest.mark.long
@pytest.mark.parametrize("broken", ["| head -1", ">&- 2>/dev/full"])
def test_help_outlives_its_streams(broken):
    done = shell(f"$PYTHON -m experiments.show --help {broken}")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.long
def test_where_no_file_can_be_written(tmp_path):
    folder = tmp_path / "run"
    flags = f"{' '.join(SMALL)} --output_dir={folder}"
    done = shell(f"(ulimit -f 0; $PYTHON -m experiments.main {flags} 2>&1) | cat")
    assert done.returncode == 4
    assert done.stdout.splitlines()[-1] == (
        f"error: {folder}: cannot be written (File too large); give a folder that can by "
        "--output_dir"
    )
    assert not folder.exists()


# Figures and settings.


def test_a_matplotlibrc_of_the_users_changes_no_figure(finished):
    folder, _ = finished
    assert show.main([str(folder)]) == 0
    expected = (folder / "figure.png").read_bytes()
    with mpl.rc_context({"text.usetex": True, "font.size": 30, "axes.facecolor": "red"}):
        assert show.main([str(folder)]) == 0
        assert mpl.rcParams["font.size"] == 30
    assert (folder / "figure.png").read_bytes() == expected


def test_a_figure_that_cannot_be_drawn_costs_nothing_else(invoke, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("no\nfont")

    monkeypatch.setattr(report, "draw_run", fail)
    folder = tmp_path / "run"
    status, out, _ = invoke(*SMALL, "--ratios=2", f"--output_dir={folder}")
    assert status == 0
    assert "warning: the figure could not be drawn (no font)" in out
    assert {"metrics.npz", "summary.json"} <= {path.name for path in folder.iterdir()}
    page = (folder / "report.html").read_text()
    assert "The figure could not be drawn; the tables below hold the numbers." in page
    assert "<script" not in page


@given(
    name=st.sampled_from([*environment.NUMBERS, "TQDM_NCOLS"]), text=st.text("019.-x²", max_size=9)
)
def test_variables_without_a_meaning_are_dropped(name, text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(name, text)
        environment._drop_variables()
        kept = os.environ.get(name)
        assert kept in (None, text)
        assert kept is None or (name in environment.NUMBERS and float(kept) > 0)
        patch.setenv(name, "1" * 5_000)
        environment._drop_variables()
        assert name not in os.environ


def test_a_cache_that_cannot_be_written_is_told_once(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    folder = str(tmp_path / "file" / "cache")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", folder)
    environment._check_cache()
    environment._check_cache()
    line = f"warning: JAX_COMPILATION_CACHE_DIR={folder}: cannot be written (Not a directory)"
    assert capsys.readouterr().err.count(line) == 1
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    environment._check_cache()
    assert capsys.readouterr().err == ""
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path)


@pytest.mark.long
def test_a_damaged_matplotlibrc_where_one_stands(finished, tmp_path):
    (tmp_path / "matplotlibrc").write_bytes(b"axes.nothing: \xff\n")
    shutil.rmtree(finished[0] / "checkpoints", ignore_errors=True)
    command = f"cd {tmp_path} && $PYTHON -m experiments.show '{finished[0]}'"
    done = shell(command, PYTHONPATH=str(ROOT))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("no such platform\nmore")])
def test_a_device_that_is_not_there_is_one_line(error, monkeypatch):
    def fail():
        raise error

    monkeypatch.setattr(jax, "devices", fail)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(UsageError) as refused:
        problem.device()
    assert "\n" not in str(refused.value)
    assert ("JAX_PLATFORMS=cuda is not here" in str(refused.value)) == (not str(error))


# Numbers of any kind, and what a run takes.

LOSSES = st.floats(allow_nan=False, allow_infinity=False)


@given(loss=LOSSES, of_flow=LOSSES)
def test_any_two_losses_can_be_compared(loss, of_flow):
    unknown = dict.fromkeys(
        ("loss_difference", "loss_difference_error", "predicted_loss_difference")
    )
    text = summaries._difference(loss, of_flow, unknown)
    assert (text == "are equal") == (loss == of_flow)
    assert ("share" in text) == (loss != of_flow and of_flow != 0)


@given(difference=LOSSES, error=LOSSES.map(abs), of_flow=LOSSES, predicted=LOSSES | st.none())
def test_any_difference_of_losses_has_its_error(difference, error, of_flow, predicted):
    known = {
        "loss_difference": difference,
        "loss_difference_error": error,
        "predicted_loss_difference": predicted,
    }
    text = summaries._difference(0.0, of_flow, known)
    measured = abs(difference) >= WELL_BELOW * error
    assert ("less than" in text) == (not measured)
    assert ("share" in text) == (measured and of_flow != 0)
    assert ("predicted" in text) == (measured and predicted is not None)


@pytest.mark.parametrize("loss", [0.0, math.inf, math.nan])
def test_a_flow_may_end_at_any_loss(loss, finished):
    run = store.read_run(finished[0])
    reference = dataclasses.replace(run.reference, loss=np.full_like(run.reference.loss, loss))
    (first, *_) = report.summarise(dataclasses.replace(run, reference=reference))["flow"]["verdict"]
    assert first.startswith("Verdict: none") == (not math.isfinite(loss))
    assert ("that of the flow 0: they differ by" in first) == (loss == 0)


@pytest.mark.parametrize("scale", [1.0, 0.37])
def test_starts_drawn_at_once_are_those_of_their_seeds(scale):
    """To the last bit."""
    network = gf_jax.problems.fully_connected((64, 7, 5, 10))
    first = 2**31 - 2
    config = paper.Options.of(dataset="digits", seed=first, seeds=4, init_scale=scale)
    together = problem._initial_params(config, network)
    for number in range(4):
        key = jax.random.key(first + number)
        alone = gf_jax.problems.xavier_uniform(key, network.shapes, scale=scale)
        of_seed = jax.tree.map(lambda leaf, number=number: leaf[number], together)
        jax.tree.map(np.testing.assert_array_equal, of_seed, alone)


def test_memory_is_checked_again_when_all_is_known(invoke, tmp_path, monkeypatch):
    """By what is compiled, which needs more than was known before."""
    monkeypatch.setattr(effort, "descent_memory", lambda *_: Memory(0, 1, 0))
    monkeypatch.setattr(memory, "available", lambda: 2**14)
    # A chunk that is given is not chosen by what is compiled, and so not known before.
    status, _, err = invoke(*SMALL, "--chunk=60", f"--output_dir={tmp_path / 'run'}")
    assert status == 2
    assert "error: memory: the run needs about" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 37. GiB\nfor an array"),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes." + 99 * "\nbuffer"),
    ],
)
def test_memory_that_runs_out_is_one_line(error, invoke, monkeypatch):
    def fail():
        raise error

    monkeypatch.setattr(problem, "device", fail)
    status, out, err = invoke(*SMALL)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: memory: too little for this run (")


def test_very_much_work_is_announced(monkeypatch, small_problem):
    f, start = small_problem
    config = paper.Options.of(dataset="digits", ratios=(2_000_000,), iterations=10)
    study = SimpleNamespace(objective=SimpleNamespace(loss=f), initial_params=start)
    lines = effort.announcement(
        config, study, config.schedule, "compensated", Memory(2**30, 1, 2**29)
    )
    assert "20,000,011 gradient evaluations" in lines[0]
    assert lines[0].endswith("at least 1.5 GiB of memory")
    assert "ms for a gradient, up to" in lines[1]
    many = paper.Options.of(dataset="digits", ratios=tuple(range(2, 30)), iterations=10)
    lines = effort.announcement(many, study, many.schedule, "compensated", Memory(1, 1, 1))
    assert lines[1].startswith("29 step sizes are compiled for minutes")


def test_what_other_flows_take_is_told_after_the_first():
    told = []
    options = SimpleNamespace(starts_of_seeds=range(1_000))
    workplace = SimpleNamespace(options=options, say=told.append)
    paper._foretell(workplace, 0, 0.1)
    paper._foretell(workplace, 1, 60.0)
    assert not told
    paper._foretell(workplace, 0, 60.0)
    assert told == [
        "the flow of one starting point took 60 seconds, those of the other 999 will take about "
        "17 hours; --noflow leaves them out"
    ]
