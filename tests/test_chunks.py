"""A loss in chunks of examples is the same loss, in less memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gf_jax
from experiments.problems import problem
from experiments.process import memory
from experiments.runs import chunking, store
from experiments.studies import curvature, paper, predict, rounding
from experiments.studies.draws.study import Options as Draws
from gf_jax.problems import classification, fully_connected, xavier_uniform
from tests.conftest import SMALL, assert_same_results, interrupted_at

EXAMPLES = 240
INPUTS = np.random.default_rng(0).normal(size=(EXAMPLES, 6)).astype(np.float32)
LABELS = np.arange(EXAMPLES) % 4
NETWORK = fully_connected((6, 50, 4), "tanh")
PARAMS = xavier_uniform(jax.random.key(0), NETWORK.shapes)
WHOLE = classification(NETWORK, INPUTS, LABELS).loss


def product(f):
    """A Hessian-vector product, along the point itself."""
    return lambda params: jax.jvp(jax.grad(f), (params,), (params,))[1]


@pytest.mark.parametrize("derivative", [lambda f: f, jax.grad, product])
@pytest.mark.parametrize("chunk", [1, 24, 240])
def test_sums_are_the_same(chunk, derivative):
    chunked = classification(NETWORK, INPUTS, LABELS, chunk=chunk).loss
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), PARAMS)
        found, expected = (jax.jit(derivative(f))(params) for f in (chunked, WHOLE))
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert one.dtype == jnp.float64
            # Sums of 240 terms of size one in another order.
            np.testing.assert_allclose(one, other, rtol=0, atol=240 * 2.0**-52)


@pytest.mark.parametrize("derivative", [jax.grad, product])
def test_derivatives_take_less_memory(derivative):
    def temporary(f):
        compiled = jax.jit(derivative(f)).lower(PARAMS).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    chunked = classification(NETWORK, INPUTS, LABELS, chunk=12).loss
    # A twentieth of the activations, and twice the gradients at most.
    gradients = 2 * 4 * sum(leaf.size for leaf in jax.tree.leaves(PARAMS))
    assert temporary(chunked) < temporary(WHOLE) / 8 + 2 * gradients
    assert temporary(WHOLE) > EXAMPLES * 50 * 4  # the hidden layer


def test_descent_and_flow_take_chunks():
    chunked = classification(NETWORK, INPUTS, LABELS, chunk=60).loss
    study = {"step_size": 0.2, "iterations": 12, "ratios": (2,), "snapshots": 3}
    found, expected = (gf_jax.compare(f, PARAMS, **study) for f in (chunked, WHOLE))
    assert found.doubts == expected.doubts
    assert (abs(found.distance - expected.distance) <= found.resolution + expected.resolution).all()
    np.testing.assert_allclose(found.predicted, expected.predicted, rtol=1e-3)


@pytest.mark.parametrize("chunk", [0, 7, -3, 480])
def test_examples_that_cannot_be_divided_so_are_refused(chunk):
    with pytest.raises(ValueError, match=rf"chunk: got {chunk}; accepted are divisors.*240: 1, 2"):
        classification(NETWORK, INPUTS, LABELS, chunk=chunk)


def test_the_flag(invoke, tmp_path):
    runs = []
    for name, flags in (("whole", ()), ("parts", ("--chunk=20",))):
        folder = tmp_path / name
        status, _, err = invoke(*SMALL, "--ratios=2", *flags, f"--output_dir={folder}")
        assert status == 0, err
        runs.append(store.read_run(folder).metrics)
    np.testing.assert_allclose(runs[1].loss, runs[0].loss, rtol=1e-5)
    np.testing.assert_allclose(runs[1].distance_to_base, runs[0].distance_to_base, atol=1e-6)
    status, _, err = invoke(*SMALL, "--chunk=7", f"--output_dir={tmp_path / 'never'}")
    assert status == 2
    assert "--chunk: got 7; accepted are divisors of the number of examples, 60: 1, 2" in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "never").exists()


def of_network(options, **changes):
    """Options of a network whose activations are most of what a run needs, and its problem."""
    told = {"dataset": "digits", "examples": 300, "widths": (60,), "activation": "tanh"}
    told |= {"iterations": 4, "ratios": (2,)} if "ratios" in fields(options) else {"iterations": 4}
    made = options.of(**told | changes)
    return made, problem.build(made)


def fields(options):
    return {field.name for field in dataclasses.fields(options)}


def needed(options, study):
    """In bytes, of what needs most."""
    return chunking._most_of(chunking._needed(options, study)).need


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        (paper.Options, {"flow": False, "seeds": 2, "batch_size": 50}),
        (paper.Options, {"activation": "relu"}),
        (rounding.Options, {"flow": False}),
        (Draws, {"draws": 3}),
        (predict.Options, {}),
        (curvature.Options, {"along": "flow"}),
    ],
    ids=["starts", "kinks", "rounding", "draws", "predict", "curvature"],
)
def test_what_is_needed_lies_between_what_is_known_before(options, changes):
    options, study = of_network(options, **changes)
    some = dataclasses.replace(options, chunk=20), study.in_chunks(20)
    found = [
        [each.device for each in measure(*of)]
        for measure, of in (
            (chunking._least, (options, study)),
            (chunking._needed, some),
            (chunking._needed, (options, study)),
            (chunking._most, (options, study)),
        )
    ]
    assert len(found[0]) == len(options.arithmetics) + (options.smooth and options.flow_runs > 0)
    for least, parts, whole, most in zip(*found, strict=True):
        assert 0 < least < parts < whole < most


@pytest.mark.parametrize(
    "share",
    [
        lambda size: 0.01 * size,  # 90
        lambda size: 0.5 + size / 500,  # 200
        lambda size: 0.89 + size / 1e4,  # 100
        lambda size: 1.0 + size / 100,  # none
        lambda size: 0.3 + 0.02 * size**0.6,  # not on a line
        lambda size: 0.2 + (size / 300) ** 2,
        lambda size: 0.5 if size < 75 else 0.95,
        lambda size: 0.5,
        lambda size: 2.0,
    ],
)
def test_the_largest_size_that_leaves_room_is_found_in_few_trials(share):
    sizes, tried = [n for n in range(1, 3600) if 3600 % n == 0], []

    def measured(size):
        tried.append(size)
        return share(size)

    found = chunking._largest(sizes, measured, 0.1, (3600, 5.0))
    fitting = [size for size in sizes if share(size) <= chunking.ROOM]
    assert found == (max(fitting) if fitting else None)
    assert len(tried) == len(set(tried)) <= 12


NETWORK_RUN = (
    *("--dataset=digits", "--examples=300", "--widths=60", "--activation=tanh", "--noflow"),
    *("--iterations=4", "--ratios=2", "--snapshots=2", "--segments=2"),
)


FITTING, LARGER = 100, 150  # neighbours among the divisors of 300


@pytest.fixture(scope="module")
def needs():
    """Bytes that the run needs, by the number of examples that are taken at a time."""
    options, study = of_network(paper.Options, flow=False, snapshots=2, segments=2)
    return {
        size: needed(dataclasses.replace(options, chunk=size), study.in_chunks(size))
        for size in (1, FITTING, LARGER, 300)
    }


@pytest.fixture
def scarce(needs, monkeypatch):
    """Less memory is free than all examples need, and enough for one chunk with some room."""
    free = (needs[FITTING] + needs[LARGER]) / 2 / chunking.ROOM
    assert needs[1] < needs[FITTING] < needs[LARGER] < free < needs[300]
    monkeypatch.setattr(memory, "available", lambda: int(free))


def chunk_of(folder):
    return store.read_description(folder)["configuration"]["chunk"]


def test_where_all_examples_do_not_fit_the_largest_chunk_is_taken(invoke, tmp_path, scarce):
    folder, given, less = tmp_path / "chosen", tmp_path / "given", tmp_path / "less"
    status, out, err = invoke(*NETWORK_RUN, f"--output_dir={folder}")
    assert status == 0, err
    assert chunk_of(folder) == FITTING
    (line,) = [line for line in out.splitlines() if "at once need about" in line]
    assert line.startswith("all 300 examples at once need about ")
    assert f": {FITTING} are taken at a time, as with --chunk={FITTING}, in " in line
    assert line.endswith("; activations are computed twice, and results differ by rounding only")
    # One that is asked for is taken, whatever fits, and nothing is said.
    for place, size in ((given, FITTING), (less, 30)):
        status, out, err = invoke(*NETWORK_RUN, f"--chunk={size}", f"--output_dir={place}")
        assert (status, "at a time" in out) == (0, False)
        assert chunk_of(place) == size
    assert_same_results(folder, given)


def test_where_all_examples_fit_nothing_is_chosen(invoke, tmp_path, needs, monkeypatch):
    """Though they might not have, as far as was known before anything was compiled."""
    options, study = of_network(paper.Options, flow=False, snapshots=2, segments=2)
    free = 1.01 * needs[300]
    assert free < max(each.device for each in chunking._most(options, study))
    monkeypatch.setattr(memory, "available", lambda: int(free))
    status, out, err = invoke(*NETWORK_RUN, f"--output_dir={tmp_path / 'run'}")
    assert (status, "at a time" in out, "memory" in err) == (0, False, False)
    assert chunk_of(tmp_path / "run") is None


def test_a_resumed_run_keeps_its_chunk(invoke, tmp_path, scarce, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert invoke(*NETWORK_RUN, f"--output_dir={whole}")[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(gf_jax, "resumable_segments", interrupted_at("resumable_segments", 1))
        status, _, _ = invoke(*NETWORK_RUN, "--checkpoint_every=0", f"--output_dir={cut}")
        assert status == 130
    monkeypatch.setattr(memory, "available", lambda: 2**40)
    status, out, err = invoke(f"--resume={cut}")
    assert status == 0, err
    assert "resumed at iteration 2 of 4" in out
    assert chunk_of(cut) == chunk_of(whole) == FITTING
    assert_same_results(cut, whole)


def test_a_run_that_was_begun_with_all_examples_gets_no_chunk(invoke, tmp_path, needs, monkeypatch):
    """Its bits would be others; so it is refused, and goes on where there is more memory."""
    cut = tmp_path / "cut"
    with monkeypatch.context() as patch:
        patch.setattr(gf_jax, "resumable_segments", interrupted_at("resumable_segments", 1))
        status, _, _ = invoke(*NETWORK_RUN, "--checkpoint_every=0", f"--output_dir={cut}")
        assert status == 130
    with monkeypatch.context() as patch:
        patch.setattr(memory, "available", lambda: needs[LARGER])
        status, _, err = invoke(f"--resume={cut}")
    assert status == 2
    assert "error: memory: the run needs about" in err
    assert chunk_of(cut) is None
    assert invoke(f"--resume={cut}")[0] == 0


def test_a_run_that_fits_in_no_chunk_is_refused(invoke, tmp_path, needs, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: needs[1] - 1)
    status, out, err = invoke(*NETWORK_RUN, f"--output_dir={tmp_path / 'never'}")
    assert (status, out) == (2, "")
    assert "error: memory: even one example at a time needs about" in err.splitlines()[-1]
    assert not (tmp_path / "never").exists()
    monkeypatch.setattr(memory, "available", lambda: needs[1])  # which leaves no room
    assert invoke(*NETWORK_RUN, f"--output_dir={tmp_path / 'one'}")[0] == 0
    assert chunk_of(tmp_path / "one") == 1


def test_step_sizes_that_are_found_take_part(invoke, tmp_path, needs, monkeypatch):
    """What is chosen is chosen for all of them, and known when they are."""
    flags = [*NETWORK_RUN[:4], "--experiment=large_steps", "--iterations=60", "--snapshots=1"]
    monkeypatch.setattr(memory, "available", lambda: 2 * needs[300])
    monkeypatch.setattr(gf_jax, "resumable_segments", interrupted_at("resumable_segments", 0))
    status, out, err = invoke(*flags, "--step_size=0.02", f"--output_dir={tmp_path / 'run'}")
    assert status == 130, err  # in descent, which is compiled by then, and fits
    edge, line = (
        next(n for n, line in enumerate(out.splitlines()) if words in line)
        for words in ("edge of stability at", "at once need about")
    )
    assert line < edge
    assert f"--chunk={chunk_of(tmp_path / 'run')}, in " in out
