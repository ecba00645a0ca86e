"""Weights and runs of strangers: read right or refused in one line, and never run."""

import contextlib
import errno
import io
import json
import os
import pickle
import shutil
import tracemalloc
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gf_jax
from experiments import show
from experiments.output import report
from experiments.problems.weights import read_params
from experiments.process.mistakes import UsageError
from experiments.runs import store
from gf_jax.study import files
from tests.conftest import SMALL, damaged, weights

SHAPES = gf_jax.problems.fully_connected((64, 6, 10)).shapes
FUZZ = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class Trap:
    """Unpickled, it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def member(header, data, *, version=b"\x01\x00"):
    """An npz file of one array with a header as given."""
    text = header.encode()
    size = len(text).to_bytes(2 if version == b"\x01\x00" else 4, "little")
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("dense_1.weight.npy", b"\x93NUMPY" + version + size + text + data)
    return file.getvalue()


def header(shape, descr="<f4"):
    return f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}\n"


def encrypted():
    content = bytearray(npz(**weights()))
    at = content.index(b"PK\x01\x02")
    content[at + 8] |= 1
    return bytes(content)


def named(value):
    """Of a test: the same in every process, as zip files, which hold the time, are not."""
    return f"{len(value)} bytes" if isinstance(value, bytes) else str(value)[:40]


WRONG_WEIGHTS = [
    (npz(**weights(**{"dense_2.weight": None})), "array dense_2.weight is missing; accepted are"),
    (npz(**weights(**{"dense_2.weight": np.ones((6, 10))})), "(6, 10); accepted is (10, 6)"),
    (npz(**weights(**{"dense_1.bias": np.ones(6)})), "array dense_1.bias is not a parameter"),
    (npz(**weights(**{"dense_2.weight": np.ones((10, 6), int)})), "dtype int64; accepted is float"),
    (npz(**weights(**{"dense_2.weight": np.ones((10, 6), "c8")})), "dtype complex64; accepted is"),
    (npz(**weights(**{"dense_2.weight": np.ones((10, 6), "U3")})), "dtype <U3, which is no number"),
    (npz(**weights(**{"dense_2.weight": np.full((10, 6), np.nan)})), "dense_2.weight has entries"),
    (npz(**weights(**{"dense_1.weight": np.full((6, 64), -np.inf)})), "dense_1.weight has entries"),
    (npz(**weights(**{"dense_2.weight": np.full((10, 6), 1e300)})), "not finite in float32"),
    (npz(**weights(**{"dense_2.weight": np.full((10, 6), 3e38)})), "training loss is not finite"),
    (npz(**weights(format=np.array(files.FORMAT + 1))), "format 2, of a newer gf_jax"),
    (npz(**weights(format=np.array("new"))), "format has dtype <U3"),
    (npz(), "array dense_1.weight is missing"),
    (b"", "not readable (weights.npz: File is not a zip file)"),
    (b"PK\x03\x04 no zip", "File is not a zip file"),
    (b"text", "File is not a zip file"),
    (b"\x93NUMPY\x01\x00", "weights.npz is a single array"),
    (npz(**weights())[:-40], "File is not a zip file"),
    (encrypted(), "encrypted"),
    (member(header((6, 64)), b"1234"), "has 4 of 1,536 bytes"),
    (member(header((10**12,)), bytes(64)), "has 64 of 4,000,000,000,000 bytes"),
    (member(header((-1, 64)), bytes(256)), "has shape (-1, 64)"),
    (member(header((6, 64), "|O"), bytes(64)), "holds Python objects, which are never loaded"),
    (member("(" * 60_000, b""), "not readable"),
    (member("", b""), "not readable"),
    (member(header((6, 64)), b"", version=b"\x09\x00"), "not readable"),
]


@pytest.mark.parametrize(("content", "message"), WRONG_WEIGHTS, ids=named)
def test_wrong_weights_get_one_line_and_leave_nothing(content, message, invoke, tmp_path):
    path, target = tmp_path / "weights.npz", tmp_path / "out"
    path.write_bytes(content)
    status, out, err = invoke(*SMALL, f"--initial_params={path}", f"--output_dir={target}")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert f"--initial_params={path}: " in err
    assert message in err
    assert "accepted" in err
    assert not target.exists()


def test_nothing_is_unpickled(finished, invoke, capsys, tmp_path):
    trap = tmp_path / "trap"
    array = np.array([[Trap(trap)] * 6] * 10, dtype=object)
    pickle.loads(pickle.dumps(Trap(trap)))
    trap.rmdir()  # so it works
    single = io.BytesIO()
    np.save(single, array)
    path = tmp_path / "weights.npz"
    hidden = npz(**weights(**{"dense_2.weight": array}))
    for content in (hidden, single.getvalue(), pickle.dumps(Trap(trap))):
        path.write_bytes(content)
        arguments = (*SMALL, f"--initial_params={path}", f"--output_dir={tmp_path / 'out'}")
        status, _, err = invoke(*arguments)
        assert (status, err.count("\n")) == (2, 1)
        folder, _ = finished
        (folder / "metrics.npz").write_bytes(content)
        assert show.main([str(folder)]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert not trap.exists()


def test_declared_sizes_take_no_memory(finished, tmp_path):
    """Zeros that pack well, as an array of any shape, are refused before they are unpacked."""
    size = 64 * 2**20
    bomb = member(header((size // 4,)), bytes(size))
    assert len(bomb) < 2**17
    path, long_header = tmp_path / "weights.npz", tmp_path / "header.npz"
    path.write_bytes(bomb)
    long_header.write_bytes(member(" " * size, b"", version=b"\x02\x00"))
    folder, _ = finished
    with zipfile.ZipFile(folder / "metrics.npz", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("seed.npy", b"\x93NUMPY\x01\x00" + bytes(size))
    tracemalloc.start()
    try:
        with pytest.raises(UsageError, match=r"shape \(16777216,\); accepted is \(6, 64\)"):
            read_params(str(path), SHAPES)
        with pytest.raises(UsageError, match="header"):
            read_params(str(long_header), SHAPES)
        with pytest.raises(UsageError, match=r"metrics\.npz"):
            store.read_run(folder)
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    finally:
        tracemalloc.stop()


DAMAGE = {
    "configuration.json": [
        (b"", "is damaged"),
        (b"[1, 2]", "holds no object"),
        (b"{}", "no format that is known"),
        (b"[" * 100_000, "is damaged"),
        (b"\xff\xfe", "is damaged"),
        (b'{"format": 99}', "configuration.json has format 99, of a newer gf_jax"),
        (b'{"format": "1"}', "no format that is known"),
        (b'{"format": 1}', "is missing"),
        (b'{"format": true}', "no format that is known"),
        (b'{"format": 1, "network": "a", "network": "b"}', "a name is given twice"),
        (b'{"format": 1, "network": NaN}', "NaN is out of range"),
        (b'{"format": 1, "network": 1e999}', "1e999 is out of range"),
        (b'{"format": 1, "network": ' + b"9" * 99 + b"}", "is out of range"),
        (b'{"format": 1, "network": ' + b"[" * 30 + b"]" * 30 + b"}", "nested more than 20 deep"),
        (b'{"format": 1, "configuration": []}', "configuration.json is damaged at configuration"),
    ],
    "metrics.npz": [
        (None, "metrics.npz"),
        (b"PK", "not a zip file"),
        (npz(format=np.array(99)), "metrics.npz has format 99, of a newer gf_jax"),
        (npz(format=np.array(1)), "ratio is missing"),
        (npz(loss=np.ones(3)), "format is missing"),
    ],
    "snapshots.npz": [
        (None, "snapshots.npz"),
        (npz(format=np.array(1), iteration=np.array([2, 1]), accuracy=np.ones(2)), "not ascending"),
        (npz(format=np.array(1), iteration=np.arange(12), accuracy=np.ones(12)), "accuracy is"),
        (
            npz(format=np.array(1), iteration=np.ones(12), accuracy=np.ones((12, 3))),
            "iterations is",
        ),
    ],
    "flow.npz": [
        (b"PK", "not a zip file"),
        (npz(format=np.array(1)), "loss is missing"),
        (npz(format=np.array(99)), "flow.npz has format 99, of a newer gf_jax"),
    ],
}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [(name, *damage) for name, damages in DAMAGE.items() for damage in damages],
    ids=named,
)
def test_a_damaged_run_is_told_in_one_line(name, content, message, finished, capsys):
    folder, _ = finished
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    assert show.main([str(folder)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert f"error: {folder}: holds no run that can be read (" in err
    assert message in err
    assert err.endswith("; give another folder\n")


@pytest.mark.parametrize("step_size", [0, -1, 10**400, "0.1", True, None, 1e300])
def test_numbers_of_a_run_are_in_bounds(step_size, finished):
    folder, _ = finished
    path = folder / "configuration.json"
    description = json.loads(path.read_text())
    description["configuration"]["step_size"] = step_size
    path.write_text(json.dumps(description))
    with pytest.raises(UsageError, match="holds no run that can be read"):
        store.read_run(folder)


def test_labels_are_no_commands(finished, capsys):
    folder, _ = finished
    path = folder / "configuration.json"
    description = json.loads(path.read_text())
    description["network"] = "net $\\frac$ \x1b[2J [bold]\nwork"
    path.write_text(json.dumps(description))
    assert show.main([str(folder)]) == 0
    assert "\x1b[2J" not in capsys.readouterr().out
    assert store.read_run(folder).network_label == "net \\frac [2J [bold] work"


GOOD = npz(**weights(**{"dense_2.weight": np.arange(60, dtype=np.float32).reshape(10, 6)}))


@FUZZ
@given(content=damaged(GOOD))
def test_damaged_weights_are_refused_or_right(content, tmp_path):
    path = tmp_path / "weights.npz"
    path.write_bytes(content)
    with contextlib.suppress(UsageError):
        params = read_params(str(path), SHAPES)
        np.testing.assert_array_equal(params["dense_1"]["weight"], np.ones((6, 64)))
        np.testing.assert_array_equal(params["dense_2"]["weight"].ravel(), np.arange(60))


HEADERS = st.builds(
    lambda descr, order, shape: repr({"descr": descr, "fortran_order": order, "shape": shape}),
    st.sampled_from(["<f4", "|O", ">f8", "<U4", "|V0", "x", [("a", "<f4")]]) | st.text(max_size=5),
    st.booleans() | st.none(),
    st.lists(st.integers() | st.integers(-2, 64), max_size=3).map(tuple) | st.integers(),
) | st.text(max_size=60)


@FUZZ
@given(
    head=HEADERS,
    data=st.binary(max_size=64),
    version=st.sampled_from([b"\x01\x00", b"\x02\x00", b"\x03\x00"]),
)
def test_random_headers_are_refused(head, data, version, tmp_path):
    path = tmp_path / "weights.npz"
    with contextlib.suppress(UnicodeEncodeError):
        path.write_bytes(member(head, data, version=version))
        with pytest.raises(UsageError, match="--initial_params="):
            read_params(str(path), SHAPES)


@pytest.mark.parametrize("name", ["metrics.npz", "snapshots.npz", "flow.npz"])
def test_damaged_runs_are_refused_or_right(name, finished_once, tmp_path):
    """Checksums in the files tell what is damaged."""
    folder = tmp_path / "run"
    shutil.copytree(finished_once[0], folder)
    right = store.read_run(folder)
    content = (folder / name).read_bytes()

    @settings(FUZZ, max_examples=100)
    @given(content=damaged(content))
    def check(content):
        (folder / name).write_bytes(content)
        with contextlib.suppress(UsageError):
            jax.tree.map(np.testing.assert_array_equal, store.read_run(folder), right)

    check()


def test_any_description_is_refused_or_shown(finished_once, tmp_path):
    """A JSON file has no checksum: what is read may be wrong, but does no harm."""
    folder = tmp_path / "run"
    shutil.copytree(finished_once[0], folder)
    path = folder / "configuration.json"

    @settings(FUZZ, max_examples=100)
    @given(content=damaged(path.read_bytes()))
    def check(content):
        path.write_bytes(content)
        with contextlib.suppress(UsageError):
            report.summarise(store.read_run(folder))

    check()


def test_files_are_whole_or_not_there(tmp_path):
    path = tmp_path / "summary.json"
    files.write_json(path, {"answer": 42})
    before = path.read_bytes()

    def fill():
        with files.atomically(path) as temporary:
            temporary.write_bytes(b"half of")
            raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match="full"):
        fill()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(path, {"answer": float("nan")})
    assert files.read_json(path) == {"format": files.FORMAT, "answer": 42}
    assert list(tmp_path.iterdir()) == [path]


def test_every_file_of_a_run_has_its_format(finished):
    folder, _ = finished
    for path in folder.glob("*.npz"):
        with np.load(path) as saved:
            assert saved["format"] == files.FORMAT
    for path in folder.glob("*.json"):
        assert json.loads(path.read_text())["format"] == files.FORMAT


def test_nothing_else_reads_or_writes_arrays():
    """So that what holds of ``files`` holds of everything."""
    for path in (Path(__file__).parents[1] / "experiments").rglob("*.py"):
        text = path.read_text()
        assert "import pickle" not in text
        # What processes of a run tell each other is no file.
        rest = [line for line in text.splitlines() if "peers." not in line]
        if path.name != "files.py":
            assert not any(
                name in line
                for line in rest
                for name in ("np.load", "np.save", "json.load", "json.dump(")
            ), path
