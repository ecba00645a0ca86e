"""Runs on several hosts: processes that keep checkpoints, stop and end together."""

import signal
import socket
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.process import peers
from experiments.process.mistakes import EXIT_LOST, UsageError
from experiments.runs import packing, sharing
from experiments.runs.packing import Record
from tests.conftest import SMALL, assert_same_results
from tests.test_devices import start

RUN = (*SMALL, "--ratios=2,3", "--seeds=4", "--checkpoint_every=0")


def launch(count, devices, *arguments, instead=None):
    """The command in so many processes with so many devices each.

    Args:
      count: number of processes.
      devices: of each.
      arguments: the flags.
      instead: number of a process, and what it is started with in place of the main module.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    shared = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    if count > 1:
        shared |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
    number, begun = instead or (None, ())
    return [
        start(
            *(begun if each == number else ("experiments.main",)),
            *arguments,
            **shared,
            **({"JAX_PROCESS_ID": str(each)} if count > 1 else {}),
        )
        for each in range(count)
    ]


def ended(programs):
    """Exit statuses, what was printed, and the lines that tell of errors."""
    outputs = [program.communicate(timeout=300) for program in programs]
    errors = [[line for line in err.splitlines() if "descent: " not in line] for _, err in outputs]
    return [program.returncode for program in programs], [out for out, _ in outputs], errors


def stopping(number, name, folder, count=8):
    """A process that sends itself a signal while it writes its checkpoints."""
    return number, ("tests.dying", f"{count}:{name}", "0", str(folder / "checkpoints" / "state"))


def stopping_later(name, folder):
    """The first process, which sends itself a signal at the third state that is new."""
    states = folder / "checkpoints" / "state"
    newest = max(int(path.name) for path in states.iterdir() if path.name.isdecimal())
    return 0, ("tests.dying", f"1:{name}", "0", str(states / str(newest + 3)))


@pytest.mark.long
def test_a_run_goes_on_on_other_numbers_of_hosts(tmp_path):
    """From two to four to one, by signals to one process each; the bits are the same."""
    folder, other, expected = (tmp_path / name for name in ("stopped", "one", "undisturbed"))
    assert ended(launch(1, 4, *RUN, f"--output_dir={expected}"))[0] == [0]
    stopped = stopping(1, "SIGTERM", folder)
    statuses, outs, errors = ended(launch(2, 2, *RUN, f"--output_dir={folder}", instead=stopped))
    assert statuses == [143, 143], errors
    assert f"--resume={folder}\n" in outs[0]
    stopped = stopping_later("SIGINT", folder)
    statuses, outs, errors = ended(launch(4, 1, f"--resume={folder}", instead=stopped))
    assert statuses == [130] * 4, errors
    assert "resumed at iteration" in outs[0]
    statuses, outs, errors = ended(launch(1, 4, f"--resume={folder}"))
    assert statuses == [0], errors
    assert "resumed at iteration" in outs[0]
    assert_same_results(folder, expected)

    stopped = stopping(0, "SIGTERM", other, count=40)
    statuses, _, errors = ended(launch(1, 4, *RUN, f"--output_dir={other}", instead=stopped))
    assert statuses == [143], errors
    statuses, outs, errors = ended(launch(2, 2, f"--resume={other}"))
    assert statuses == [0, 0], errors
    assert "resumed at iteration" in outs[0]
    assert_same_results(other, expected)


@pytest.mark.long
@pytest.mark.parametrize("victim", [0, 1])
def test_a_lost_process_ends_the_other_in_a_line(victim, tmp_path):
    folder = tmp_path / "run"
    endless = ("--iterations=2000000", "--segments=20000", "--checkpoint_every=0.2")
    programs = launch(2, 1, *RUN[:2], *RUN[3:-1], *endless, f"--output_dir={folder}")
    try:
        while not (folder / "checkpoints" / "state" / "2").exists():
            assert all(program.poll() is None for program in programs)
            time.sleep(0.02)
        programs[victim].send_signal(signal.SIGKILL)
        begun = time.monotonic()
        statuses, _, errors = ended(programs)
    finally:
        for program in programs:
            program.kill()
    assert statuses[victim] == -signal.SIGKILL
    assert statuses[1 - victim] == EXIT_LOST, errors
    assert time.monotonic() - begun < 2 * peers.SILENCE
    (line,) = errors[1 - victim]
    assert line.startswith(f"error: process {victim} of this run is lost, and all others end; ")
    assert line.endswith(f"--resume={folder}")
    # What is kept can be read: the run goes on, until it is told to stop once more.
    stopped = stopping_later("SIGTERM", folder)
    statuses, outs, errors = ended(launch(2, 1, f"--resume={folder}", instead=stopped))
    assert statuses == [143, 143], errors
    assert "resumed at iteration" in outs[0]


@pytest.mark.long
@pytest.mark.parametrize(
    ("second", "message"),
    [
        (("tests.blind",), "process 1 does not see what process 0 writes there; give a folder th"),
        (("experiments.main", "--momentum=0.9"), "process 1 has other --momentum than process 0"),
    ],
)
def test_hosts_that_have_too_little_in_common_are_refused(second, message, tmp_path):
    folder = tmp_path / "run"
    programs = launch(2, 1, *RUN, f"--output_dir={folder}", instead=(1, second))
    statuses, _, errors = ended(programs)
    assert statuses == [2, 2]
    for (line,) in errors:
        assert line.startswith("error: ")
        assert message in line
    assert not folder.exists()


@pytest.fixture
def two(monkeypatch):
    """As if this were the first of two processes; what the other says."""
    said = []
    monkeypatch.setattr(peers, "several", lambda: True)
    monkeypatch.setattr(peers, "exchange", lambda text, **_: [text, said.pop(0) if said else text])
    return said


def test_a_folder_that_all_see_is_left_as_it_was(two, tmp_path):
    assert sharing.common_folder(str(tmp_path / "new")) == str(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_a_folder_that_one_does_not_see_is_refused(two, tmp_path):
    two += ["", "", ""]  # to what is asked: the folder, mistakes, whether it is seen
    with pytest.raises(UsageError, match="process 1 does not see what process 0 writes there"):
        sharing.common_folder(str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_other_data_are_refused(two):
    options = {"iterations": 12, "data_dir": "here", "widths": (6, 7)}
    sharing.check_alike(options, {"data": "0"})
    two.append('{"--iterations": 12, "--widths": [6, 7], "data": "1"}')
    with pytest.raises(UsageError, match="process 1 has other data than process 0; run the same"):
        sharing.check_alike(options, {"data": "0"})


def test_rows_are_the_bytes_of_the_arrays(generator):
    mesh = Mesh(np.array(jax.devices()[:1]), ("devices",))
    split = NamedSharding(mesh, PartitionSpec("devices"))
    arrays = [
        generator.normal(size=(4, 2, 3)).astype(np.float32),
        np.arange(4, dtype=np.int32),
        np.array([[True], [False], [True], [True]]),
        np.zeros((4, 0, 3), np.float32),
    ]
    rows = packing.rows_of([jax.device_put(jnp.asarray(each), split) for each in arrays])
    assert rows.content.shape == (4, 24 + 4 + 1)
    about, content = packing.pack_rows(Record("part", False, 1.0, []), rows, run="run")
    assert packing.shape(about) == rows.content.shape
    content = np.array(content)
    read = packing.unpack(about, content)
    assert read[:3] == ("part", False, 1.0)
    for ours, expected in zip(read.leaves, arrays, strict=True):
        assert (ours.dtype, ours.shape) == (expected.dtype, expected.shape)
        assert ours.tobytes() == expected.tobytes()
    for spoiled in (about | {"label": "other"}, about | {"rows": about["rows"][::-1]}):
        with pytest.raises(ValueError, match="not what was written"):
            packing.unpack(spoiled, content)
    content[2, 5] ^= 1
    with pytest.raises(ValueError, match="not what was written"):
        packing.unpack(about, content)
