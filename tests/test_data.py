import contextlib
import dataclasses
import gzip
import hashlib
import math
import os
import signal
import socket
import threading
import time
import tracemalloc
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.problems import data
from experiments.problems.datasets import digits, download, idx
from experiments.problems.datasets import mnist as mnist_module
from experiments.problems.datasets.dataset import UnreachableError
from experiments.problems.datasets.fashion_mnist import FASHION_MNIST
from experiments.problems.datasets.mnist import MNIST
from experiments.process import interruption
from experiments.process.mistakes import UsageError
from tests.conftest import damaged


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def refuse(name, url):
    """A server that is not there."""
    raise UnreachableError(f"{name} is not reachable (refused)")


@pytest.fixture
def unreachable(monkeypatch):
    monkeypatch.setattr(download, "probe", refuse)


def test_digits_are_standardised_and_evenly_chosen():
    everything = data.load("digits", None, 1797)
    assert everything.images.shape == (1797, 8, 8)
    assert everything.images.dtype == np.float32
    # Mean and spread of the whole pool, up to float32 rounding of 115,008 pixels.
    assert abs(everything.images.mean(dtype=float)) < 1e-6
    assert abs(everything.images.std(dtype=float) - 1) < 1e-6
    some = data.load("digits", None, 600)
    chosen = [i * 1797 // 600 for i in range(600)]
    np.testing.assert_array_equal(some.images, everything.images[chosen])
    np.testing.assert_array_equal(some.labels, everything.labels[chosen])
    assert some.label == "scikit-learn digits, 600 images"


def test_enlarged_digits_are_centred_and_interpolated():
    image = np.zeros((1, 8, 8))
    image[0, 2, 5] = 1.0
    large = digits.enlarged(image)
    assert large.shape == (1, 28, 28)
    assert not large[:, :4].any()
    assert not large[:, :, -4:].any()
    # The centre of pixel (2, 5) lies at 4 + (2.5, 5.5) * 20/8 = (10.25, 17.75), between pixels.
    assert np.unravel_index(large.argmax(), large.shape) == (0, 10, 17)
    # Interpolation weights of one pixel sum to 20/8 along each axis.
    assert large.sum() == pytest.approx((20 / 8) ** 2)
    constant = digits.enlarged(np.full((1, 8, 8), 3.0))
    np.testing.assert_allclose(constant[:, 4:-4, 4:-4], 3.0)


def test_auto_falls_back_to_digits_and_says_so(unreachable):
    chosen = data.load("auto", None, 50)
    assert "digits" in chosen.label
    assert "NOT those of MNIST" in chosen.warning
    with pytest.raises(UsageError, match=r"--dataset=mnist: MNIST is not reachable"):
        data.load("mnist", None, 50)


def test_the_probe_gives_up_within_five_seconds(monkeypatch):
    """A server that accepts and never answers, and a host name that takes forever."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        started = time.monotonic()
        with pytest.raises(UnreachableError, match="not reachable"):
            download.probe("MNIST", f"http://127.0.0.1:{server.getsockname()[1]}/")
        assert time.monotonic() - started < 5.5  # the promise, and half a second to notice
    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: release.wait(20))
    monkeypatch.setattr(download, "PROBE_SECONDS", 0.2)
    started = time.monotonic()
    with pytest.raises(UnreachableError, match="no answer"):
        download.probe("MNIST", "http://example.invalid/")
    assert time.monotonic() - started < 5
    release.set()


@pytest.mark.parametrize(
    ("dataset", "examples", "message"),
    [
        ("digits", 1798, "--examples=1798: scikit-learn"),
        ("mnist", 60_001, "--examples=60001: MNIST"),
    ],
)
def test_more_examples_than_there_are(dataset, examples, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        data.load(dataset, str(tmp_path) if dataset == "mnist" else None, examples)


def test_missing_folder_and_files(tmp_path):
    with pytest.raises(UsageError, match="no such folder"):
        data.load("auto", str(tmp_path / "none"), 10)
    with pytest.raises(UsageError, match="train-images-idx3-ubyte is missing"):
        data.load("mnist", str(tmp_path), 10)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "truncated at 0 of 47,040,016 bytes"),
        (b"\x00\x00\x08\x03\x00\x00", "truncated at 6 of"),
        (bytes(47_040_017), "longer than its 47,040,016 bytes"),
        (bytes(47_040_016), "altered, not MNIST's own"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_files_are_refused_by_name(content, message, zipped, tmp_path):
    name = "train-images-idx3-ubyte" + (".gz" if zipped else "")
    (tmp_path / name).write_bytes(gzip.compress(content) if zipped else content)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(content)
    with pytest.raises(UsageError, match=f"{name}: {message}"):
        data.load("mnist", str(tmp_path), 10)


def test_broken_gzip_is_refused_by_name(tmp_path):
    broken = gzip.compress(b"0" * 10_000)
    for content in (broken[:20], b"no gzip at all", broken[:12] + b"\xff" * 8 + broken[20:]):
        (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(content)
        (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(content)
        with pytest.raises(UsageError, match=r"train-images-idx3-ubyte.gz: not readable"):
            data.load("mnist", str(tmp_path), 10)


@pytest.mark.real_data
def test_mnist_is_the_papers_subset(mnist_dir):
    subset = data.load("auto", str(mnist_dir), 1000)
    with gzip.open(mnist_dir / "train-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read()[16:], np.uint8).reshape(60_000, 28, 28)
    with gzip.open(mnist_dir / "train-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read()[8:], np.uint8)
    chosen = np.arange(0, 50_000, 50)
    expected = (pixels[chosen] / 255.0 - 0.1307) / 0.3081
    np.testing.assert_allclose(subset.images, expected, rtol=1e-5, atol=1e-6)  # float32
    np.testing.assert_array_equal(subset.labels, labels[chosen])
    # A fact of this subset: 582 of 784 dimensions.
    assert np.linalg.matrix_rank(subset.images.reshape(1000, -1).astype(float)) == 582
    assert len(data.load("mnist", str(mnist_dir), 60_000).labels) == 60_000


@pytest.mark.real_data
def test_unzipped_renamed_and_truncated_mnist(mnist_dir, tmp_path):
    for name in idx.SHAPES:
        with gzip.open(mnist_dir / f"{name}.gz") as file:
            (tmp_path / name.replace("-idx", ".idx")).write_bytes(file.read())
    unzipped = data.load("mnist", str(tmp_path), 100)
    np.testing.assert_array_equal(unzipped.images, data.load("mnist", str(mnist_dir), 100).images)
    path = tmp_path / "t10k-labels.idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UsageError, match=r"t10k-labels.idx1-ubyte: truncated"):
        data.load("mnist", str(tmp_path), 100)


SHAPES = dict(zip(idx.SHAPES, [(4, 3, 3), (4,)] * 2, strict=True))
SMALL_CONTENTS = {
    name: bytes([0, 0, 8, len(shape)])
    + b"".join(length.to_bytes(4, "big") for length in shape)
    + bytes(range(math.prod(shape)))
    for name, shape in SHAPES.items()
}
FASHIONABLE = {name: content[:-1] + b"\x09" for name, content in SMALL_CONTENTS.items()}


@pytest.fixture(params=["mnist", "fashion_mnist"])
def small(request, monkeypatch):
    """A data set whose published files are small, as it is registered."""
    return registered(request.param, monkeypatch)


def registered(flag, monkeypatch, url="http://127.0.0.1:1/"):
    """MNIST or Fashion-MNIST with small files, under their own names."""
    contents = SMALL_CONTENTS if flag == "mnist" else FASHIONABLE
    published = dataclasses.replace(
        MNIST if flag == "mnist" else FASHION_MNIST,
        url=url,
        shapes=SHAPES,
        digests={name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
    )
    monkeypatch.setattr(idx, "_known", dict(idx._known))
    monkeypatch.setitem(data.DATASETS, flag, published.kind(""))
    if flag == "mnist":
        monkeypatch.setattr(mnist_module, "MNIST", published)
    return published


def contents_of(published):
    return SMALL_CONTENTS if published.flag == "mnist" else FASHIONABLE


def write(folder, contents, end=".gz"):
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        (folder / f"{name}{end}").write_bytes(gzip.compress(content) if end else content)
    return folder


CONTENT = SMALL_CONTENTS["train-images-idx3-ubyte"]


@pytest.mark.parametrize("end", ["", ".gz"])
def test_damaged_idx_files_are_refused_or_right(end, tmp_path, monkeypatch):
    small = registered("mnist", monkeypatch)
    path = tmp_path / f"train-images-idx3-ubyte{end}"
    right = np.arange(36).reshape(4, 3, 3)
    whole = gzip.compress(CONTENT) if end else CONTENT
    path.write_bytes(whole)
    np.testing.assert_array_equal(small.read(path), right)

    @settings(max_examples=300, deadline=None)
    @given(content=damaged(whole) | (damaged(CONTENT).map(gzip.compress) if end else st.nothing()))
    def check(content):
        path.write_bytes(content)
        with contextlib.suppress(UsageError):
            np.testing.assert_array_equal(small.read(path), right)

    check()


def test_a_file_is_unpacked_no_further_than_it_may_be_large(tmp_path, monkeypatch):
    small = registered("mnist", monkeypatch)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(bytes(2**26)))
    tracemalloc.start()
    try:
        with pytest.raises(UsageError, match="longer than its 52 bytes"):
            small.read(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("end", ["", ".gz"])
def test_a_folder_is_enough(small, end, tmp_path):
    folder = write(tmp_path / "files", contents_of(small), end)
    loaded = data.load(small.flag, str(folder), 4)
    assert loaded.label == f"{small.name}, 4 images"
    assert loaded.source == str(folder)
    pixels = np.arange(36).reshape(4, 3, 3)
    if small.flag == "fashion_mnist":
        pixels[3, 2, 2] = 9
    expected = (pixels / 255.0 - small.mean) / small.std
    np.testing.assert_allclose(loaded.images, expected, rtol=1e-5, atol=1e-6)  # float32


@pytest.mark.parametrize("end", ["", ".gz"])
def test_one_data_set_is_not_taken_for_another(end, tmp_path, monkeypatch):
    """Their files have the same names, shapes and sizes."""
    mnist, fashion = (registered(flag, monkeypatch) for flag in ("mnist", "fashion_mnist"))
    for there, wanted in ((mnist, fashion), (fashion, mnist)):
        folder = write(tmp_path / there.flag, contents_of(there), end)
        flags = [wanted.flag, "auto"] if wanted is mnist else [wanted.flag]
        for flag in flags:
            with pytest.raises(UsageError) as refused:
                data.load(flag, str(folder), 2)
            path = folder / f"train-images-idx3-ubyte{end}"
            assert str(refused.value) == (
                f"{path}: is of {there.name}, not {wanted.name}'s own train-images-idx3-ubyte; use "
                f"--dataset={there.flag}, or give a folder with {wanted.name}'s files"
            )
        # One file of the other among its own.
        name = "train-labels-idx1-ubyte"
        own = contents_of(wanted) | {name: contents_of(there)[name]}
        mixed = write(tmp_path / f"mixed {there.flag}", own, end)
        with pytest.raises(UsageError, match=f"{name}{end}: is of {there.name}"):
            data.load(wanted.flag, str(mixed), 2)


class Server(BaseHTTPRequestHandler):
    """Answers that it has every file, and hands out those of one name in a way that fails."""

    protocol_version = "HTTP/1.1"
    failing, how, over = "train-labels-idx1-ubyte.gz", "", threading.Event()
    contents = SMALL_CONTENTS

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self):
        name = self.path[1:]
        content = gzip.compress(self.contents[name.removesuffix(".gz")])
        how = self.how if name == self.failing else ""
        if how == "altered":
            content = gzip.compress(self.contents[name.removesuffix(".gz")][:-1] + b"!")
        self.send_response(404 if how == "missing" else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if how == "truncated":
            content = content[: len(content) // 2]
        for byte in content if how == "slow" else ():
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            if self.over.wait(2):
                return
        if how != "slow":
            self.wfile.write(content)
        self.close_connection = True


@pytest.fixture
def server(monkeypatch):
    running = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    monkeypatch.setattr(Server, "over", threading.Event())
    yield running
    Server.over.set()
    running.shutdown()
    running.server_close()


def served(flag, server, monkeypatch):
    """A small data set whose files that server has."""
    small = registered(flag, monkeypatch, f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setattr(Server, "contents", contents_of(small))
    return small


@pytest.mark.parametrize(
    ("flag", "how", "message"),
    [
        ("fashion_mnist", "slow", "bytes came in"),
        pytest.param("mnist", "slow", "bytes came in", marks=pytest.mark.long),
        pytest.param("mnist", "truncated", "could not be downloaded", marks=pytest.mark.long),
        pytest.param("mnist", "altered", "train-labels-idx1-ubyte", marks=pytest.mark.long),
        pytest.param("fashion_mnist", "altered", "train-labels-idx1", marks=pytest.mark.long),
        pytest.param("mnist", "missing", "404", marks=pytest.mark.long),
    ],
)
def test_a_download_that_fails_leaves_nothing(flag, how, message, server, monkeypatch):
    """And the next attempt works, and is used without the server."""
    small = served(flag, server, monkeypatch)
    monkeypatch.setattr(Server, "how", how)
    # Loading what downloads takes seconds, and then nothing has come either.
    monkeypatch.setattr(download, "PATIENCE_SECONDS", 6.0 if how == "slow" else 60.0)
    started = time.monotonic()
    with pytest.raises(UsageError, match=f"--dataset={flag}: .*{message}") as refused:
        data.load(flag, None, 4)
    assert time.monotonic() - started < 30
    assert "; give a folder with the four IDX files" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert list(small.cache().iterdir()) == []
    monkeypatch.setattr(Server, "how", "")
    monkeypatch.setattr(download, "PATIENCE_SECONDS", 60.0)
    assert small.cached() == small.cache()
    names = sorted(path.name for path in small.cache().iterdir())
    assert names == sorted(f"{name}.gz" for name in SHAPES)
    server.server_close()
    labels = data.load(flag, None, 4).labels
    np.testing.assert_array_equal(labels, [0, 1, 2, 3 if flag == "mnist" else 9])


def test_a_server_with_files_of_another_data_set(server, monkeypatch):
    """What it sends is not kept, nor taken for what was asked for."""
    registered("mnist", monkeypatch)
    small = served("fashion_mnist", server, monkeypatch)
    monkeypatch.setattr(Server, "contents", SMALL_CONTENTS)
    with pytest.raises(UsageError, match=r"could not be downloaded \(.* is of MNIST, not Fashion"):
        data.load("fashion_mnist", None, 4)
    assert list(small.cache().iterdir()) == []


def test_an_interrupt_ends_the_download(server, monkeypatch):
    def interrupted(fetching, folder):
        processes.append(fetching)
        main = threading.main_thread().ident
        threading.Timer(0.2, lambda: signal.pthread_kill(main, signal.SIGINT)).start()
        return watch(fetching, folder)

    processes, watch = [], download._watch
    small = served("mnist", server, monkeypatch)
    monkeypatch.setattr(Server, "how", "slow")
    monkeypatch.setattr(download, "_watch", interrupted)
    with interruption.handled(), pytest.raises(KeyboardInterrupt):
        data.load("auto", None, 4)
    assert processes[0].returncode is not None
    assert list(small.cache().iterdir()) == []


@pytest.mark.parametrize("root", ["/dev/null", "/proc/none"])
def test_a_cache_that_cannot_be_written(root, server, monkeypatch):
    served("mnist", server, monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", root)
    with pytest.raises(UsageError, match="--dataset=mnist: MNIST could not be kept"):
        data.load("mnist", None, 4)
    assert "could not be kept" in data.load("auto", None, 4).warning


def test_a_user_without_a_home(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 2)
    with pytest.raises(UsageError, match="--dataset=mnist: MNIST has no cache folder"):
        data.load("mnist", None, 100)


@pytest.mark.real_data
def test_download_from_a_server_then_from_the_cache(mnist_dir, tmp_path, monkeypatch):
    """The real files from a local server: cached, verified, then used offline."""
    handler = partial(SimpleHTTPRequestHandler, directory=mnist_dir)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = dataclasses.replace(MNIST, url=f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setattr(mnist_module, "MNIST", here)
    monkeypatch.setitem(data.DATASETS, "mnist", here.kind(""))
    try:
        downloaded = data.load("auto", None, 100)
    finally:
        server.shutdown()
        server.server_close()
    assert downloaded.label == "MNIST, 100 images"
    cached = data.load("mnist", None, 100)  # the server is gone
    np.testing.assert_array_equal(cached.images, downloaded.images)
    names = sorted(path.name for path in here.cache().iterdir())
    assert names == sorted(f"{name}.gz" for name in idx.SHAPES)
