import gzip
import shutil
import socket
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from experiments import data
from experiments.configuration import UsageError


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def unreachable(monkeypatch):
    def probe(url):
        raise data.UnreachableError("MNIST is not reachable (refused)")

    monkeypatch.setattr(data, "_probe", probe)


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
    large = data._enlarge(image)
    assert large.shape == (1, 28, 28)
    assert not large[:, :4].any()
    assert not large[:, :, -4:].any()
    # The centre of pixel (2, 5) lies at 4 + (2.5, 5.5) * 20/8 = (10.25, 17.75), between pixels.
    assert np.unravel_index(large.argmax(), large.shape) == (0, 10, 17)
    # Interpolation weights of one pixel sum to 20/8 along each axis.
    assert large.sum() == pytest.approx((20 / 8) ** 2)
    constant = data._enlarge(np.full((1, 8, 8), 3.0))
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
        with pytest.raises(data.UnreachableError, match="not reachable"):
            data._probe(f"http://127.0.0.1:{server.getsockname()[1]}/")
        assert time.monotonic() - started < 5.5  # the promise, and half a second to notice
    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: release.wait(20))
    monkeypatch.setattr(data, "PROBE_SECONDS", 0.2)
    started = time.monotonic()
    with pytest.raises(data.UnreachableError, match="no answer"):
        data._probe("http://example.invalid/")
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
        (bytes(47_040_017), "too long with 47,040,017 of"),
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
    for name in data.MNIST_FILES:
        with gzip.open(mnist_dir / f"{name}.gz") as file:
            (tmp_path / name.replace("-idx", ".idx")).write_bytes(file.read())
    unzipped = data.load("mnist", str(tmp_path), 100)
    np.testing.assert_array_equal(unzipped.images, data.load("mnist", str(mnist_dir), 100).images)
    path = tmp_path / "t10k-labels.idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UsageError, match=r"t10k-labels.idx1-ubyte: truncated"):
        data.load("mnist", str(tmp_path), 100)


@pytest.mark.real_data
@pytest.mark.filterwarnings("ignore")  # those of the downloader's own dependencies
def test_download_from_a_server_then_from_the_cache(mnist_dir, tmp_path, monkeypatch):
    """The real downloader against a local server: cached, verified, then used offline."""
    from tensorflow_datasets.core.download import checksums

    served = tmp_path / "served"
    served.mkdir()
    for name in data.MNIST_FILES:
        shutil.copyfile(mnist_dir / f"{name}.gz", served / f"{name}.gz")
    handler = partial(SimpleHTTPRequestHandler, directory=served)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    local = f"http://127.0.0.1:{server.server_port}/"
    registered = checksums.get_all_url_infos()
    infos = {local + f"{n}.gz": registered[data.MNIST_URL + f"{n}.gz"] for n in data.MNIST_FILES}
    monkeypatch.setattr(checksums, "get_all_url_infos", lambda: dict(infos))
    monkeypatch.setattr(data, "MNIST_URL", local)
    try:
        altered = served / "train-labels-idx1-ubyte.gz"
        altered.write_bytes(altered.read_bytes() + b"!")
        with pytest.raises(UsageError, match=r"could not be downloaded .*checksum"):
            data.load("mnist", None, 100)
        shutil.copyfile(mnist_dir / altered.name, altered)
        downloaded = data.load("auto", None, 100)
    finally:
        server.shutdown()
        server.server_close()
    assert downloaded.label == "MNIST, 100 images"
    cached = data.load("mnist", None, 100)  # the server is gone
    np.testing.assert_array_equal(cached.images, downloaded.images)
    names = sorted(path.name for path in data._cache().iterdir())
    assert names == sorted(f"{name}.gz" for name in data.MNIST_FILES)
