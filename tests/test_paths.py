"""Paths are absolute from where they enter, and files are known by what they hold."""

import os
import shutil

import numpy as np
import pytest

import gf_jax
from experiments import studies
from experiments.cli.options import located
from experiments.runs import resumption
from experiments.studies import groups
from tests.conftest import SMALL, interrupted_at, weights

PATHS = [
    flag.name
    for group in studies.flags()
    for flag in group.flags
    if flag.value in ("FILE", "FOLDER")
]


class Options(groups.NetworkRun):
    """All options that name files or folders."""


@pytest.mark.parametrize("name", PATHS)
def test_paths_are_absolute(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for given, absolute in {"a/b": tmp_path / "a" / "b", "~/c": tmp_path / "home" / "c"}.items():
        assert getattr(Options.of(**{name: given}), name) == str(absolute)
        monkeypatch.chdir("/")
        assert located(Options, {name: str(absolute)}) == {name: str(absolute)}
        monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", PATHS)
def test_addresses(name, invoke):
    if name == "checkpoint_dir":
        assert Options.of(checkpoint_dir="gs://b/c").checkpoint_dir == "gs://b/c"
    else:
        status, _, err = invoke(f"--{name}=gs://b/c")
        assert (status, err) == (
            2,
            f"error: --{name}=gs://b/c: is an address; accepted is a path on this machine\n",
        )


@pytest.mark.parametrize("flag", ["", "--output_dir=here"])
def test_without_a_working_directory(flag, invoke, tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    status, _, err = invoke(*SMALL, *filter(None, [flag]))
    assert status == 2
    assert "the working directory is gone; accepted is an absolute path" in err


@pytest.fixture
def interrupt(invoke, monkeypatch, tmp_path):
    """Interrupts a run in a working directory of its own; gives its folder."""
    place = tmp_path / "first"
    place.mkdir()
    monkeypatch.chdir(place)

    def call(*arguments):
        with monkeypatch.context() as patch:
            patch.setattr(gf_jax, "resumable_segments", interrupted_at("resumable_segments", 5))
            status, out, err = invoke(*SMALL, "--ratios=2", "--checkpoint_every=0", *arguments)
        assert status == 130, err
        assert "could not be written" not in out
        return place, next(place.rglob("configuration.json")).parent

    return call


def stay(place, folder):
    return place, os.path.relpath(folder, place)


def elsewhere(place, folder):
    (place.parent / "second").mkdir()
    return place.parent / "second", os.path.relpath(folder, place.parent / "second")


def rename(place, folder):
    folder.rename(folder.with_name("renamed"))
    return place, os.path.relpath(folder.with_name("renamed"), place)


def move(place, folder):
    return place.parent, shutil.move(folder, place.parent / "moved")


@pytest.mark.parametrize(
    ("flag", "change"),
    [
        ("", stay),
        ("", elsewhere),
        ("", rename),
        ("--output_dir=a/b", move),
        ("--checkpoint_dir=c", rename),
    ],
)
def test_resumed_from_anywhere(flag, change, interrupt, invoke, monkeypatch):
    """The run goes on where it was, by a relative path or an absolute one."""
    place, folder = interrupt(*filter(None, [flag]))
    directory, given = change(place, folder)
    monkeypatch.chdir(directory)
    status, out, err = invoke(f"--resume={given}")
    assert status == 0, err
    assert "resumed at iteration 5 of 12" in out
    assert not list(place.parent.rglob("history"))


def test_the_folder_it_lies_in_may_be_named(interrupt, invoke):
    place, folder = interrupt("--output_dir=a")
    folder.rename(place / "b")
    status, _, err = invoke("--resume=b", "--output_dir=c")
    assert status == 2
    assert f"--output_dir is {place / 'a'} there and {place / 'c'} here; drop it" in err
    assert invoke("--resume=b", "--output_dir=b")[0] == 0


def test_checkpoints_that_were_moved(interrupt, invoke):
    """The run does not begin anew because it does not find what the user has moved."""
    place, folder = interrupt("--checkpoint_dir=c")
    (place / "c").rename(place / "d")
    before = (folder / "configuration.json").read_bytes()
    status, _, err = invoke(f"--resume={folder}")
    assert status == 2
    assert err.startswith(f"error: --checkpoint_dir={place / 'c'}: no such folder; give the folder")
    assert (folder / "configuration.json").read_bytes() == before
    status, out, err = invoke(f"--resume={folder}", "--checkpoint_dir=d")
    assert status == 0, err
    assert "resumed at iteration 5 of 12" in out


def of_other_values(path):
    np.savez(path, **{name: array / 2 for name, array in weights().items()})


def of_the_same_values(path):
    np.savez(path, **weights())


def test_weights_are_known_by_their_values(interrupt, invoke, monkeypatch):
    of_the_same_values("w.npz")
    place, folder = interrupt("--initial_params=w.npz")
    (place.parent / "second").mkdir()
    monkeypatch.chdir(place.parent / "second")
    of_the_same_values("same.npz")
    of_other_values("other.npz")

    def weights_of(**given):
        _, options = resumption.chosen({"resume": str(folder), **given}, studies.load)
        return os.path.relpath(options.initial_params, place.parent)

    kept = os.path.relpath(folder / "initial_params.npz", place.parent)
    assert weights_of() == kept
    assert weights_of(initial_params="../first/w.npz") == "first/w.npz"
    assert weights_of(initial_params="same.npz") == "second/same.npz"
    (place / "w.npz").unlink()
    assert weights_of(initial_params="../first/w.npz") == kept
    for flag, message in {
        "other": "the starting point is another than that of the run",
        "none": "no such file; drop the flag, since the run has kept its starting point",
    }.items():
        status, _, err = invoke(f"--resume={folder}", f"--initial_params={flag}.npz")
        assert status == 2
        assert message in err
    status, out, err = invoke(f"--resume={folder}", "--initial_params=same.npz")
    assert status == 0, err
    assert "resumed at iteration 5 of 12" in out


def test_weights_that_are_gone(interrupt, invoke):
    of_the_same_values("w.npz")
    place, folder = interrupt("--initial_params=w.npz")
    (place / "w.npz").unlink()
    status, out, err = invoke(f"--resume={folder}")
    assert status == 0, err
    assert "resumed at iteration 5 of 12" in out
