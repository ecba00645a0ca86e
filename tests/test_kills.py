"""Runs that are killed, at any moment and again and again, end as if they had not been."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import WITH_FLOW, assert_same_results

ROOT = Path(__file__).parents[1]
PAPER = (*WITH_FLOW, "--ratios=2,3")
ROUNDING = (*WITH_FLOW, "--experiment=rounding", "--ratios=2")


def live(*arguments, module="experiments.main"):
    """One life of a run: its exit status and what it said."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", module, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def first_or_next(folder, flags):
    """Flags of the first life, or of one that goes on where a configuration is already there."""
    if (folder / "configuration.json").exists():
        return (f"--resume={folder}",)
    return (*flags, f"--output_dir={folder}", "--checkpoint_every=0")


def test_killed_while_a_checkpoint_is_written(finished_once, invoke, tmp_path):
    folder = tmp_path / "killed"
    checkpoints = folder / "checkpoints" / "history"
    dying = (60, 0, checkpoints, *first_or_next(folder, PAPER))
    status, out = live(*dying, module="tests.dying")
    assert status == -signal.SIGKILL, out
    assert (checkpoints / "0").exists()
    status, out, err = invoke(*first_or_next(folder, PAPER))
    assert status == 0, err
    assert "resumed at iteration" in out
    assert_same_results(folder, finished_once[0])


SHOWN = re.compile(
    r"(descent|prediction|rounding|gradient flow): (compiling|\d+%, \d:\d\d:\d\d elapsed.*)"
)


@pytest.mark.long
def test_the_first_command(finished_once, tmp_path):
    """From a new folder and into the default one, killed, and resumed by a relative path."""
    command = [sys.executable, "-W", "error", "-m"]
    options = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(ROOT)}, "text": True}
    flags = ["120", "0", str(tmp_path / "runs"), *PAPER, "--checkpoint_every=0"]
    killed = subprocess.run(
        [*command, "tests.dying", *flags], **options, check=False, capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert (folder / "checkpoints" / "history" / "0").exists()
    resumed = subprocess.run(
        [*command, "experiments.main", f"--resume=runs/{folder.name}"],
        **options,
        check=False,
        capture_output=True,
    )
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed at iteration" in resumed.stdout
    assert "checkpoint" not in killed.stdout + resumed.stdout
    for line in (killed.stderr + resumed.stderr).splitlines():
        assert SHOWN.fullmatch(line), line
    assert_same_results(folder, finished_once[0])


@pytest.mark.parametrize(
    ("flags", "seed"),
    [
        pytest.param(PAPER, 0, id="paper", marks=pytest.mark.long),
        pytest.param(PAPER, 1, id="again", marks=pytest.mark.thorough),
        pytest.param(
            (*WITH_FLOW, "--ratios=2", "--seeds=2"), 2, id="seeds", marks=pytest.mark.long
        ),
        pytest.param(ROUNDING, 3, id="rounding", marks=pytest.mark.thorough),
    ],
)
def test_killed_again_and_again(flags, seed, tmp_path):
    """At least five times each, in checkpoints, results and what is between them."""
    expected, folder = tmp_path / "undisturbed", tmp_path / "killed"
    status, out = live(*flags, f"--output_dir={expected}")
    assert status == 0, out
    chance, kills = random.Random(seed), 0
    while True:
        # A life may die too early to get anything done; after enough of them they live longer.
        count = chance.randrange(1, 60 + 60 * max(0, kills - 4))
        delay = chance.choice([0, 0.001, 0.01, 0.1])
        dying = (count, delay, folder, *first_or_next(folder, flags))
        status, out = live(*dying, module="tests.dying")
        if status != -signal.SIGKILL:
            break
        kills += 1
    assert status == 0, out
    assert kills >= 5
    assert_same_results(folder, expected)
    assert live(f"--resume={folder}") == (
        0,
        f"{folder}: this run is complete, nothing is left to do\n",
    )


LONG = (*PAPER[:2], "--widths=6", "--step_size=0.05", "--ratios=2", "--noflow", "--segments=2000")


@pytest.fixture
def running(tmp_path):
    """A run of some minutes that has written its first checkpoint, and its folder."""
    folder = tmp_path / "run"
    flags = (*LONG, "--iterations=2000000", "--checkpoint_every=0.2", f"--output_dir={folder}")
    with subprocess.Popen(
        [sys.executable, "-m", "experiments.main", *flags],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        while not (folder / "checkpoints" / "history" / "0").exists():
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.02)
        yield process, folder
        process.kill()


@pytest.mark.parametrize(
    ("number", "expected"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.long)],
)
def test_a_signal_ends_the_run_in_order(number, expected, running):
    process, folder = running
    process.send_signal(number)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == expected, out
    assert f"resume it: {sys.executable} -m experiments.main --resume={folder}\n" in out
    names = {path.name for path in folder.iterdir()}
    assert {"metrics.npz", "snapshots.npz", "summary.json", "checkpoints"} <= names
    assert "lock" not in names


@pytest.mark.long
def test_a_second_signal_ends_it_at_once(running):
    """The first is answered with results, which take seconds; the second with the end."""
    process, folder = running
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)  # signals of the same number are merged until the first is handled
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "resume it" not in out
    assert not (folder / "summary.json").exists()


@pytest.mark.long
def test_another_process_is_refused(running):
    process, folder = running
    status, out = live(f"--resume={folder}")
    assert status == 2
    assert f"error: --resume={folder}: another process works in this folder" in out
    assert process.poll() is None


def mounted(folder, options):
    """Mounts a file system in memory, or skips."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("file systems can be mounted by root only")


@pytest.mark.long
def test_a_full_disk_at_the_end(tmp_path):
    """Room for the checkpoints and not for the results; then there is room."""
    disk, expected = tmp_path / "disk", tmp_path / "undisturbed"
    assert live(*PAPER, f"--output_dir={expected}")[0] == 0
    mounted(disk, "size=500k")
    try:
        status, out = live(*PAPER, f"--output_dir={disk / 'run'}")
        line = f"error: {disk / 'run'}: results cannot be written (No space left on device); when"
        assert status == 4, out
        assert line in out
        assert "Traceback" not in out
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        status, out = live(f"--resume={disk / 'run'}")
        assert status == 0, out
        assert "resumed at iteration 12 of 12" in out
        assert_same_results(disk / "run", expected)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.long
def test_a_disk_that_is_read_only(tmp_path):
    disk = tmp_path / "disk"
    mounted(disk, "size=1m,ro")
    try:
        status, out = live(*PAPER, f"--output_dir={disk}")
        assert (status, out) == (
            2,
            f"error: --output_dir={disk}: cannot be written (Read-only file system); "
            "give a folder that can\n",
        )
    finally:
        subprocess.run(["umount", str(disk)], check=True)
