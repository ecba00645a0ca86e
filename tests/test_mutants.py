"""Damaged results end in a line or are used to the end; never in an error of another kind."""

import collections
import contextlib
import functools
import io
import os
import warnings

import numpy as np
import pytest

import gf_jax
from experiments import report, resumption, seeds, show, store
from experiments.configuration import UsageError
from experiments.page import Transcript
from tests import mutants

COUNT = int(os.environ.get("GF_JAX_MUTANTS", "1000"))
DRAWN = 100  # of so many one is drawn, which takes longer than all else
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
        comparison.plot().savefig(io.BytesIO())


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
        use(comparison, path, drawn=True)
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
        resume = functools.partial(resumption.configuration, given)
        outcomes["not resumed" if refused(resume, directory) else "resumed"] += 1
        if not is_refused and outcomes["shown"] % DRAWN == 1:
            assert show.main([str(directory)]) == 0, capsys.readouterr()
            for drawn in ("figure.png", "figure.pdf", "report.html"):
                (directory / drawn).unlink()
        path.write_bytes(whole[path])
    print(outcomes)
    assert min(outcomes["refused"], outcomes["shown"]) > COUNT / 20
