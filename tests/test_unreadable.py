"""Checkpoints that cannot be read: the run goes on, and not a byte of them is lost."""

import pickle
import shutil

import numpy as np
import orbax.checkpoint as ocp
import pytest


def spoil(folder):
    """Changes the middle of every file of a checkpoint that holds data."""
    for path in folder.rglob("d/*"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 255
        path.write_bytes(content)


def truncate(folder):
    """Cuts every file of a checkpoint in half."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


class Trap:
    """What runs code when it is unpickled."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('a checkpoint was executed')",))


def booby_trap(folder):
    """Puts a stranger's pickle in the place of every file."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(pickle.dumps(Trap()))


def contents(folder):
    """The bytes of every file, by its path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def assert_undisturbed(folder, other):
    """The results of a run without flow are those of one with it."""
    for name in ("metrics.npz", "snapshots.npz"):
        with np.load(folder / name) as here, np.load(other / name) as there:
            for key in here.files:
                np.testing.assert_array_equal(here[key], there[key])


@pytest.mark.parametrize(
    ("harm", "harmed", "read", "said"),
    [
        (spoil, ["history/4"], 4, "checkpoint 4 (history) cannot be read ("),
        (truncate, ["state/4"], 4, "checkpoint 4 (state) cannot be read ("),
        (spoil, ["state/4", "state/3"], 3, "checkpoint 4 (state) cannot be read ("),
        (truncate, ["history/2"], 0, "checkpoint 2 (history) cannot be read ("),
        (shutil.rmtree, ["history/2"], 0, "checkpoint 2 (history) is missing: "),
        (shutil.rmtree, ["state/3", "state/4"], 3, "checkpoint 4 (state) was not complete: "),
        (booby_trap, [""], 0, "checkpoint 0 (history) cannot be read ("),
    ],
    ids=["newest", "state", "states", "middle", "gap", "no states", "all"],
)
def test_what_is_not_read_is_kept(harm, harmed, read, said, short, invoke, finished_once):
    checkpoints = short / "checkpoints"
    for part in harmed:
        harm(checkpoints / part)
    later = {
        path: content
        for path, content in contents(checkpoints).items()
        if int(path.split("/")[1]) >= read
    }
    assert later
    status, out, err = invoke(f"--resume={short}")
    assert status == 0, err
    told = [line for line in out.splitlines() if "checkpoint " in line]
    assert len(told) == 1
    assert told[0].startswith(said)
    assert told[0].endswith(f"; what is left out is kept in {checkpoints / 'unreadable-1'}")
    if read:
        assert f"resumed at iteration {read} of 12" in out
    else:
        assert ": the run starts from the beginning; " in told[0]
    assert_undisturbed(short, finished_once[0])
    assert contents(checkpoints / "unreadable-1") == later
    assert [path.name for path in checkpoints.iterdir()] == ["unreadable-1"]


def test_a_record_without_its_state_is_what_a_kill_leaves(short, invoke, finished_once):
    shutil.rmtree(short / "checkpoints" / "state" / "4")
    status, out, err = invoke(f"--resume={short}")
    assert status == 0, err
    assert "checkpoint 4 (state) was not complete: the run goes on from before it\n" in out
    assert_undisturbed(short, finished_once[0])
    assert not (short / "checkpoints").exists()


def test_set_aside_twice(short, invoke):
    other = short / "checkpoints" / "unreadable-1" / "history"
    shutil.copytree(short / "checkpoints" / "history", other)
    spoil(short / "checkpoints" / "history" / "4")
    before = contents(other)
    assert invoke(f"--resume={short}")[0] == 0
    assert contents(other) == before
    assert (short / "checkpoints" / "unreadable-2" / "history" / "4").exists()


def refuse_all(*_, **__):
    raise ValueError("Checkpoint path should be absolute.")


def loop(short, _):
    """A file that no one can open, not even root."""
    path = next((short / "checkpoints" / "history" / "3").rglob("d/*"))
    path.unlink()
    path.symlink_to(path)


def unreadable_here(_, patch):
    patch.setattr(ocp.CheckpointManager, "restore", refuse_all)


def written_by_another(short, patch):
    spoil(short / "checkpoints" / "history" / "0")
    patch.setattr(ocp, "__version__", "0.0.1")


def of_a_newer_format(short, _):
    for path in (short / "checkpoints").glob("*/*/about/metadata"):
        path.write_text(path.read_text().replace('"format": 1', '"format": 2'))


@pytest.mark.parametrize(
    ("arrange", "message"),
    [
        (loop, "checkpoint 3 (history) cannot be read (Too many levels of symbolic links: "),
        (unreadable_here, "cannot read what it has just written either (checkpoint 0"),
        (written_by_another, "and this is 0.0.1: install that version, or start anew"),
        (of_a_newer_format, "checkpoint has format 2, of a newer gf_jax; this one reads 1"),
    ],
)
def test_what_is_no_damage_is_refused_and_left(arrange, message, short, invoke, monkeypatch):
    with monkeypatch.context() as patch:
        arrange(short, patch)
        before = contents(short)
        status, _, err = invoke(f"--resume={short}", "--checkpoint_every=7")
    assert status == 2
    assert err.startswith("error: --resume: ")
    assert err.count("\n") == 1
    assert message in err
    assert contents(short) == before


def test_after_a_refusal_the_run_goes_on(short, invoke, monkeypatch, finished_once):
    with monkeypatch.context() as patch:
        unreadable_here(short, patch)
        assert invoke(f"--resume={short}")[0] == 2
    status, out, err = invoke(f"--resume={short}")
    assert status == 0, err
    assert "resumed at iteration 5 of 12" in out
    assert_undisturbed(short, finished_once[0])
    assert not (short / "checkpoints").exists()
