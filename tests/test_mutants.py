"""Damaged results end in a line or are used to the end; never in an error of another kind."""

import collections
import contextlib
import dataclasses
import functools
import io
import os
import warnings

import numpy as np
import pytest

import gf_jax
from experiments import show, studies
from experiments.output import report
from experiments.output.page.transcript import Transcript
from experiments.process.mistakes import UsageError
from experiments.runs import resumption, store, structures
from experiments.studies import seeds
from tests import mutants

COUNT = int(os.environ.get("GF_JAX_MUTANTS", "1000"))
DRAWN = 250  # of so many one is drawn, which takes longer than all else
LONGEST = 800  # of a message


@pytest.fixture(autouse=True)
def without_missing_letters():
    """Fonts lack letters; strangers write what they like."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        yield


def is_a_line(text):
    return text.isprintable() and len(text) <= LONGEST


def use(comparison, path, *, drawn):
    """Everything that a comparison can be asked for."""
    texts = [str(comparison), repr(comparison), comparison._repr_html_(), comparison.verdict]
    assert all(text.replace("\n", "").isprintable() for text in texts)
    assert comparison.times.shape + comparison.step_sizes.shape
    if comparison.run.reference is not None:
        assert comparison.distance.shape == comparison.resolution.shape
        assert comparison.predicted.shape[:1] == comparison.order.shape
    comparison.save(path)
    assert str(gf_jax.load(path)) == texts[0]
    if drawn:
        figure = comparison.plot()
        figure.set_layout_engine("none")  # which takes most of the time
        figure.savefig(io.BytesIO(), dpi=30)


def loaded(path):
    """The comparison, or why there is none."""
    try:
        return gf_jax.load(path), ""
    except ValueError as error:
        return None, str(error)


def test_mutants_of_comparisons(tmp_path):
    generator = np.random.default_rng(11)
    path, again = tmp_path / "mutant.npz", tmp_path / "again.npz"
    files, outcomes = [], collections.Counter()
    for comparison in mutants.comparisons(generator):
        use(comparison, path, drawn=False)
        files.append(mutants.Npz(path.read_bytes()))
    for number in range(COUNT):
        path.write_bytes(files[number % len(files)].mutant(generator))
        comparison, told = loaded(path)
        outcomes["loaded" if comparison else "refused"] += 1
        if comparison:
            use(comparison, again, drawn=outcomes["loaded"] % DRAWN == 1)
        else:
            assert told.startswith(f"{path}: holds no comparison that can be read (")
            assert is_a_line(told.removeprefix(str(path)))
    print(outcomes)
    assert min(outcomes["refused"], outcomes["loaded"]) > COUNT / 20


def tabulate(directory):
    """What ``show`` does without drawing."""
    run, out = store.read_run(directory), io.StringIO()
    console = Transcript(file=out)
    if run.seeds:
        seeds.print_seeds(seeds.summarise(run), console)
    else:
        report.print_run(report.summarise(run), console)
    assert out.getvalue().replace("\n", "").isprintable()


def refused(call, directory):
    """Whether a folder is refused, in a line; otherwise what is told is printable."""
    told = ""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            call()
        except UsageError as error:
            told = str(error)
    assert out.getvalue().replace("\n", "").isprintable()
    assert is_a_line(told.replace(str(directory), ""))
    return bool(told)


def test_mutants_of_run_directories(tmp_path, capsys):
    generator, outcomes = np.random.default_rng(12), collections.Counter()
    originals = []
    for directory in mutants.run_directories(tmp_path, generator):
        tabulate(directory)
        whole = {path: path.read_bytes() for path in directory.iterdir()}
        npz = {p: mutants.Npz(content) for p, content in whole.items() if p.suffix == ".npz"}
        originals.append((directory, whole, npz))
    for number in range(COUNT):
        directory, whole, npz = originals[number % len(originals)]
        path = list(whole)[generator.integers(len(whole))]
        if path in npz:
            path.write_bytes(npz[path].mutant(generator))
        else:
            path.write_bytes(mutants.mutant_json(whole[path], generator))
        is_refused = refused(functools.partial(tabulate, directory), directory)
        outcomes["refused" if is_refused else "shown"] += 1
        given = {"resume": str(directory), "ratios": (2, 3)}
        resume = functools.partial(resumption.chosen, given, studies.load)
        outcomes["not resumed" if refused(resume, directory) else "resumed"] += 1
        if not is_refused and outcomes["shown"] % DRAWN == 1:
            assert show.main([str(directory)]) == 0, capsys.readouterr()
            for drawn in ("figure.png", "figure.pdf", "report.html"):
                (directory / drawn).unlink()
        path.write_bytes(whole[path])
    print(outcomes)
    assert min(outcomes["refused"], outcomes["shown"]) > COUNT / 20


def without(path, *fields):
    """Takes fields out of a file, as older versions have written it."""
    with np.load(path) as archive:
        kept = {name: archive[name] for name in archive.files if name not in fields}
    np.savez(path, **kept)


def test_what_is_new_is_kept_and_may_be_missing(tmp_path):
    generator, path = np.random.default_rng(13), tmp_path / "found.npz"
    found = mutants.comparisons(generator)[0]
    found.save(path)
    again = gf_jax.load(path).run
    error = found.run.reference.predicted_error
    np.testing.assert_array_equal(again.reference.predicted_error, error)
    assert again.doubts == found.run.doubts != ()
    without(path, "run.reference.predicted_error", "run.doubts")
    old = gf_jax.load(path).run
    assert (old.reference.predicted_error, old.doubts) == (None, ())
    for directory, starts in zip(
        mutants.run_directories(tmp_path, generator), (0, 2), strict=False
    ):
        saved = store.read_run(directory)
        wanted = (4, starts, 3) if starts else (4, 3)
        assert saved.reference.predicted_error.shape == wanted
        assert saved.doubts == found.run.doubts
        for name in ("metrics", "flow"):
            without(directory / f"{name}.npz", "predicted_error", "doubts")
        old = store.read_run(directory)
        assert (old.reference.predicted_error, old.doubts) == (None, ())
        assert all(each.reference.predicted_error is None for each in old.of_seeds)


def test_doubts_of_strangers_are_bounded(tmp_path):
    path = tmp_path / "found.npz"
    found = mutants.comparisons(np.random.default_rng(14))[0]
    doubts = ("\x1b[2J" + "x" * 999, *["say\nno $more"] * 99)
    dataclasses.replace(found, run=dataclasses.replace(found.run, doubts=doubts)).save(path)
    read = gf_jax.load(path).run.doubts
    assert len(read) == 50
    assert len(read[0]) == 500
    assert read[1] == "say no more"
    assert all(map(str.isprintable, read))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda leaves: leaves[:-1],
        lambda leaves: [*leaves, leaves[0]],
        lambda leaves: [leaves[0][1:], *leaves[1:]],
        lambda leaves: [leaves[0].astype(float), *leaves[1:]],
        lambda leaves: [leaves[0], leaves[1][:, :2], *leaves[2:]],
        lambda leaves: [leaves[0], leaves[1], -leaves[2], *leaves[3:]],
        lambda leaves: [*leaves[:5], leaves[5] - 1, *leaves[6:]],
        lambda leaves: [*leaves[:-1], leaves[-1][..., None]],
    ],
)
def test_what_is_kept_of_another_run_is_refused(spoil):
    generator = np.random.default_rng(15)
    run, schedule = mutants.run(generator), gf_jax.Schedule(0.1, (2, 5), 20, snapshots=4)
    point, stack = {"dense": {"bias": np.zeros(2)}}, generator.random((4, 3, 2))
    leaves = [run.iterations, *vars(run.metrics).values(), run.snapshot_iterations, stack]
    (part,) = structures.trajectories("descent", [leaves], point, schedule, 0)
    assert part.snapshots["dense"]["bias"] is stack
    with pytest.raises(UsageError, match="checkpoints hold no descent of this run") as told:
        structures.trajectories("descent", [spoil(leaves)], point, schedule, 0)
    assert is_a_line(str(told.value))
