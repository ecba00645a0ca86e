"""Runs that were cut short go on to the same bits; what does not fit is refused in one line."""

import fcntl
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import gf_jax
from experiments import studies
from experiments.process import interruption
from experiments.process.mistakes import UsageError
from experiments.runs import structures
from experiments.runs.checkpoints import Checkpoints
from experiments.runs.packing import Record
from gf_jax import stacks
from gf_jax.study import files
from tests.conftest import SMALL, WITH_FLOW, assert_same_results, interrupted_at

PAPER = (*WITH_FLOW, "--ratios=2,3")


def replace(patch, name, function):
    """Puts a function in the place of one of gf_jax wherever experiments find it."""
    for place in (gf_jax, gf_jax.theory, gf_jax.study.following, gf_jax.flow.prediction):
        if hasattr(place, name):
            patch.setattr(place, name, function)


@pytest.fixture
def cut_short(invoke, monkeypatch, tmp_path):
    """A run that is interrupted; returns its folder."""

    def call(name, number, *flags):
        folder = tmp_path / "short"
        with monkeypatch.context() as patch:
            replace(patch, name, interrupted_at(name, number))
            status, out, err = invoke(*flags, "--checkpoint_every=0", f"--output_dir={folder}")
        assert status == 130, err
        assert out.endswith(f"resume it: {sys.executable} -m experiments.main --resume={folder}\n")
        return folder

    return call


def refused(invoke, folder, message, *flags):
    before = {path.name for path in folder.iterdir()}
    status, _, err = invoke(f"--resume={folder}", *flags)
    assert status == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert {path.name for path in folder.iterdir()} == before
    return err


@pytest.mark.parametrize(
    ("name", "number", "said"),
    [
        pytest.param(
            *("resumable_segments", 5, "resumed at iteration 5 of 12"), marks=pytest.mark.oldest
        ),
        ("resumable_segments", 0, "no checkpoint was written yet: the run starts from the beg"),
        ("gradient_flow", 0, "resumed at iteration 12 of 12"),
    ],
)
def test_an_interrupted_run_goes_on_to_the_same_bits(
    name, number, said, cut_short, invoke, finished_once, monkeypatch
):
    folder = cut_short(name, number, *PAPER)
    if name == "gradient_flow":  # the prediction was complete
        replace(monkeypatch, "predict", None)
    status, out, err = invoke(f"--resume={folder}", *PAPER[2:])
    assert status == 0, err
    assert said in out
    assert_same_results(folder, finished_once[0])
    description = json.loads((folder / "configuration.json").read_text())
    assert len(description["resumed"]) == 1


@pytest.mark.long
def test_what_chance_does_at_kinks_is_kept(cut_short, invoke, monkeypatch, tmp_path):
    """As of runs that are too long to be made again in float64, all but the base run."""
    monkeypatch.setattr(gf_jax.program.compiling, "cheap", lambda numbers: 0)
    told, place = [], gf_jax.study.rounding
    find = place.misjudged
    monkeypatch.setattr(place, "misjudged", lambda *args: told.append(args) or find(*args))
    flags, expected = (*PAPER, "--activation=relu"), tmp_path / "undisturbed"
    assert invoke(*flags, f"--output_dir={expected}")[0] == 0
    assert len(told) == 1
    folder = cut_short("gradient_flow", 0, *flags)
    replace(monkeypatch, "predict", None)
    monkeypatch.setattr(place, "misjudged", None)
    status, _, err = invoke(f"--resume={folder}")
    assert status == 0, err
    assert_same_results(folder, expected)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "number", "flags"),
    [
        ("predict", 1, ("--seeds=2",)),
        ("gradient_flow", 1, ("--seeds=2",)),
        ("resumable_segments", 7, ("--seeds=2", "--arithmetic=float64", "--noflow")),
        ("resumable_segments", 16, ("--experiment=rounding",)),
        ("predict", 0, ("--experiment=rounding",)),
    ],
)
def test_every_piece_is_kept(name, number, flags, cut_short, invoke, tmp_path):
    flags = (*WITH_FLOW, "--ratios=2", *flags)
    folder, expected = cut_short(name, number, *flags), tmp_path / "undisturbed"
    assert invoke(*flags, f"--output_dir={expected}")[0] == 0
    assert invoke(f"--resume={folder}")[0] == 0
    assert_same_results(folder, expected)


@pytest.mark.long
@pytest.mark.parametrize("flags", [(), ("--seeds=2",)], ids=["one start", "two"])
def test_a_run_whose_snapshots_are_on_the_disk_goes_on(
    flags, cut_short, invoke, monkeypatch, tmp_path
):
    monkeypatch.setattr(stacks, "LARGE", 0)
    monkeypatch.setattr(stacks, "BLOCK", 1)
    flags = (*WITH_FLOW, "--ratios=2", *flags)
    folder, expected = cut_short("resumable_segments", 7, *flags), tmp_path / "undisturbed"
    assert invoke(*flags, f"--output_dir={expected}")[0] == 0
    assert invoke(f"--resume={folder}")[0] == 0
    assert_same_results(folder, expected)


TINY = (*WITH_FLOW[:3], "--widths=4", "--snapshots=3")
SMALLEST = (*TINY, "--step_size=0.05")
# Of every other experiment: flags, and the solvers that are interrupted, each after how many calls.
OTHERS = [
    (("predict", *WITH_FLOW[:3], "--widths=4", "--step_size=0.05"), {"predict": 0}),
    (
        ("large_steps", *TINY, "--step_sizes=0.1,0.05"),
        {"curvature": 0, "resumable_segments": 5, "deviation": 0, "modified_flow": 0},
    ),
    (
        ("edge", *WITH_FLOW[:3], "--widths=4", "--window=4", "--step_sizes=0.1,0.05"),
        {"gradient_flow": 0, "central_flow": 1, "descent_segments": 1, "curvature": 2},
    ),
    (("curvature", *SMALLEST), {"gradient_flow": 0, "curvature": 0}),
    (("curvature", *SMALLEST, "--along=descent"), {"resumable_segments": 5, "curvature": 0}),
    (
        ("bounds", *SMALLEST, "--epsilon=0.01"),
        {"resumable_segments": 15, "gradient_flow": 1, "deviation": 0, "curvature": 0},
    ),
    (
        ("bounds", *SMALLEST, "--epsilon=0.01", "--activation=relu"),
        {"predict": 0},
    ),
    (("near_zero", *WITH_FLOW[:2], "--depths=2,3", "--widths=4"), {"curvature": 1}),
    (
        ("deep_linear", *WITH_FLOW[:2], "--depths=2,3", "--iterations=12", "--seeds=3"),
        {"gradient_flow": 1, "end_to_end_flow": 1},
    ),
    (("necessity",), {"gradient_flow": 0}),
    (("draws", *SMALLEST, "--draws=4"), {"resumable_segments": 5, "predict_ensemble": 0}),
    (
        ("draws", *SMALLEST, "--order=shuffled", "--activation=relu"),
        {"resumable_segments": 5, "gradient_flow": 0},
    ),
]


@pytest.mark.parametrize(
    ("arguments", "interrupts"),
    [
        pytest.param(
            arguments,
            interrupts,
            marks=() if arguments[0] in ("predict", "near_zero", "necessity") else pytest.mark.long,
            id=" ".join((arguments[0], *arguments[6:])),
        )
        for arguments, interrupts in OTHERS
    ],
)
def test_every_experiment_is_resumed(arguments, interrupts, cut_short, invoke, tmp_path):
    """After an interrupt in each of its solvers, one run after the other, the bits are the same."""
    flags = (f"--experiment={arguments[0]}", *arguments[1:])
    expected = tmp_path / "undisturbed"
    assert invoke(*flags, f"--output_dir={expected}")[0] == 0
    for name, number in interrupts.items():
        folder = cut_short(name, number, *flags)
        status, _, err = invoke(f"--resume={folder}")
        assert status == 0, err
        assert_same_results(folder, expected)
        shutil.rmtree(folder)


def test_what_is_kept_is_not_computed_again(cut_short, invoke, monkeypatch):
    folder = cut_short("curvature", 1, "--experiment=near_zero", *OTHERS[7][0][1:])
    with monkeypatch.context() as patch:
        patch.setattr(gf_jax, "curvature", interrupted_at("curvature", 1))  # one is left
        assert invoke(f"--resume={folder}")[0] == 0


def test_a_complete_run_says_so(finished, invoke):
    folder, _ = finished
    status, out, _ = invoke(f"--resume={folder}")
    assert (status, out) == (0, f"{folder}: this run is complete, nothing is left to do\n")


def test_a_run_killed_while_it_tidied_up_is_complete(finished, short, invoke, finished_once):
    folder, _ = finished
    shutil.copytree(short / "checkpoints", folder / "checkpoints")
    (folder / "lock").touch()
    assert invoke(f"--resume={folder}")[0] == 0
    assert_same_results(folder, finished_once[0])


def test_other_flags_are_refused(short, invoke):
    flags = "--ratios=2,5", "--arithmetic=float64", "--flow", "--widths=6", "--checkpoint_every=9"
    told = refused(invoke, short, "; drop them", *flags)
    assert "--ratios is 2,3 there and 2,5 here" in told
    assert "--arithmetic is compensated there and float64 here" in told
    assert "--flow is False there and True here" in told
    assert "--widths" not in told


@pytest.mark.parametrize("part", ["data", "initial_params"])
def test_another_problem_is_refused(part, short, invoke):
    path = short / "configuration.json"
    description = json.loads(path.read_text())
    description["digests"][part] = "0" * 64
    path.write_text(json.dumps(description))
    refused(
        invoke, short, {"data": "the training data are", "initial_params": "the starting"}[part]
    )


def test_other_versions_are_told(short, invoke):
    path = short / "configuration.json"
    description = json.loads(path.read_text())
    description["versions"]["jaxlib"] = "0.0.1"
    description["device"]["kind"] = "abacus"
    path.write_text(json.dumps(description))
    status, out, _ = invoke(f"--resume={short}")
    assert status == 0
    assert f"warning: jaxlib 0.0.1 now {jax.lib.__version__}, kind abacus now cpu: results" in out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format=2), "configuration.json has format 2, of a newer gf_jax"),
        (lambda d: d.pop("digests"), "holds no run that can be resumed (digests is missing)"),
        (lambda d: d["configuration"].update(examples=2.5), "is damaged at examples"),
        (lambda d: d["configuration"].update(widths=["6"]), "is damaged at widths"),
        (lambda d: d["configuration"].update(rat=[6]), "is damaged at rat"),
        (lambda d: d["configuration"].update(iterations=-1), "--iterations: got -1"),
    ],
)
def test_a_damaged_description_is_told(change, message, finished, invoke):
    path = finished[0] / "configuration.json"
    description = json.loads(path.read_text())
    change(description)
    path.write_text(json.dumps(description))
    refused(invoke, finished[0], message)


def test_a_description_of_an_older_version_is_read(short, invoke):
    """It had the options of all experiments, null where they were not used."""
    path = short / "configuration.json"
    description = json.loads(path.read_text())
    foreign = ("along", "epsilon", "depths", "batch_seed", "momentum", "nesterov")
    description["configuration"] |= dict.fromkeys(foreign)
    path.write_text(json.dumps(description))
    status, out, err = invoke(f"--resume={short}")
    assert status == 0, err
    assert "resumed at iteration 5 of 12" in out


def test_what_is_kept_has_the_form_of_its_record():
    point = {"w": np.zeros((2, 3))}
    like = structures.of(gf_jax.Flow, point, times=4)
    times = [0.1, 0.2, 0.3, 0.4]
    solved = gf_jax.gradient_flow(lambda p: ((p["w"] - 1) ** 2).sum(), point, times)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(solved)]
    flow = structures.restored("flow", like, leaves)
    assert flow.params["w"].shape == (4, 2, 3)
    assert flow.statistics.complete is True
    for spoil in (
        lambda leaves: leaves[:-1],
        lambda leaves: [leaves[0][:3], *leaves[1:]],
        lambda leaves: [leaves[0].astype(int), *leaves[1:]],
        lambda leaves: [*leaves[:1], leaves[1][..., None], *leaves[2:]],
        lambda leaves: [*leaves[:4], np.array(-1), *leaves[5:]],
    ):
        with pytest.raises(UsageError, match="checkpoints hold no flow of this run"):
            structures.restored("flow", like, spoil(leaves))
    lanes = structures.of(gf_jax.Flow, point, ("times", "lanes"), times=4, lanes=5)
    assert lanes.params["w"].axes == (4, 5, 2, 3)
    assert lanes.loss.axes == (4, 5)


def test_what_is_no_run_is_told(invoke, tmp_path):
    refused(invoke, tmp_path, "holds no run that can be resumed (No such file or directory)")


def test_a_second_process_is_refused(short, invoke):
    with (short / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        refused(invoke, short, "another process works in this folder")


def test_checkpoints_of_another_run_are_refused(short, invoke, tmp_path):
    other = tmp_path / "other"
    records = Checkpoints(str(other), "another run")
    records.write(0, Record("descent, compensated", True, 1.0, [np.ones(3)]), None)
    records.wait()
    records.close()
    status, _, err = invoke(f"--resume={short}", f"--checkpoint_dir={other}")
    assert status == 2
    assert "holds checkpoints of another run" in err
    status, _, err = invoke(*SMALL, f"--checkpoint_dir={other}", f"--output_dir={tmp_path / 'new'}")
    assert status == 2
    assert f"--checkpoint_dir={other}: holds checkpoints of a run" in err


@pytest.mark.parametrize("part", ["history", "state"])
def test_a_checkpoint_of_other_shapes_is_refused(part, short, invoke):
    """As a stranger writes it, or another version: the digests are right."""
    digests = json.loads((short / "configuration.json").read_text())["digests"]
    run = files.digest([np.frombuffer("".join(digests.values()).encode(), np.uint8)])
    written = Checkpoints(str(short / "checkpoints"), run)
    kept = written.read()
    *_, last = kept.records
    steps = [leaf + 1 if leaf.dtype.kind == "i" else leaf for leaf in last.leaves]
    leaves, state = (last.leaves, kept.state) if part == "history" else (steps, [np.ones(3)])
    written.write(len(kept.records), last._replace(leaves=leaves), state)
    written.wait()
    written.close()
    reason = "iterations are missing" if part == "history" else "resume_from: the state is of ano"
    status, _, err = invoke(f"--resume={short}")
    assert status == 2
    line = err.splitlines()[-1]  # after the progress bar
    assert line.startswith("error: --resume: checkpoints hold no descent, compensated of this run")
    assert f"({reason}" in line


def test_checkpoints_keep_arrays_as_they_are(tmp_path):
    leaves = [
        np.arange(6, dtype=np.int64).reshape(2, 3),
        np.zeros((0, 4), np.float32),
        np.array(2.5),
        np.array([np.nan, -0.0, np.inf]),
        np.array([True, False]),
    ]
    written = Checkpoints(str(tmp_path), "run")
    for number in range(5):
        written.write(number, Record("piece", number == 1, 0.5, leaves), leaves[::-1])
    written.wait()
    written.close()
    states = sorted(path.name for path in (tmp_path / "state").iterdir())
    assert states == ["2", "3", "4"]
    kept = Checkpoints(str(tmp_path), "run").read()
    assert [record.done for record in kept.records] == [False, True, False, False, False]
    for here, there in zip(kept.state, leaves[::-1], strict=True):
        assert (here.dtype, here.shape) == (there.dtype, there.shape)
        assert here.tobytes() == there.tobytes()


def test_a_checkpoint_that_cannot_be_written_is_told(invoke, tmp_path, monkeypatch):
    """The run goes on, and is as it would have been."""

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.save", full)
    folder = tmp_path / "run"
    status, out, err = invoke(*SMALL, f"--output_dir={folder}")
    assert status == 0, err
    assert "a checkpoint could not be written (No space left on device); the run goes on" in out


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"seeds": 3, "activation": "relu", "checkpoint_dir": "here"},
        {"step_sizes": (0.1, 0.05), "iterations": 7},
        {"network": "lenet5", "initial_params": "weights.npz"},
        {"experiment": "rounding", "segments": 5, "ratios": (3, 2), "mesh": None},
        {"experiment": "predict", "step_sizes": (0.1, 0.03)},
        {"experiment": "curvature", "iterations": 7},
        {"experiment": "deep_linear", "step_sizes": (0.1, 0.05)},
    ],
)
def test_resolved_options_are_their_own(flags):
    experiment, options = studies.chosen({n: v for n, v in flags.items() if v is not None})
    assert experiment.options.of(**options.values()) == options


def test_help_does_not_load_orbax():
    code = "import sys, experiments.main; sys.exit('orbax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_signal_waits_for_a_shield():
    with interruption.handled():
        with interruption.shielded():
            interruption.signal.raise_signal(interruption.signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            interruption.call(lambda: None)
        assert interruption.exit_status(130) == 143
    assert interruption.exit_status(3) == 3


def test_files_of_killed_writers_are_removed(short, invoke):
    (short / ".123.metrics.npz").write_bytes(b"half")
    assert invoke(f"--resume={short}")[0] == 0
    assert not list(short.glob(".*"))


def test_seconds_are_those_of_all_processes(short, invoke):
    first = json.loads((short / "summary.json").read_text())["seconds"]
    assert invoke(f"--resume={short}")[0] == 0
    assert json.loads((short / "summary.json").read_text())["seconds"] > first
