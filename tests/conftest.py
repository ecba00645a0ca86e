import atexit
import contextlib
import io
import os
import re
import shutil
import tempfile
from pathlib import Path

# Most of the time is compiling, and many tests compile the same programs: the processes
# of one run of the suite share what they compiled. It is set before JAX is imported.
if "PYTEST_XDIST_WORKER" not in os.environ:
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # .ci/run gives one to all its stages
        programs = tempfile.mkdtemp(prefix="gf_jax_tests_")
        atexit.register(shutil.rmtree, programs, ignore_errors=True)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = programs
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
# Programs that may raise call Python, and are never kept; diffrax looks at its arguments, which
# are looked at before. The main job of .ci/run is as users have it.
os.environ["EQX_ON_ERROR"] = "nan"

import hypothesis
import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from hypothesis import strategies as st

import gf_jax
from experiments import main, studies
from experiments.cli import command_line
from experiments.problems import data

# What runs in this process is compiled quickly, but where MNIST makes it large: nothing else is
# asked of the numbers. XLA looks once, so that commands that tests start are as users have them.
if not {"XLA_FLAGS", "GF_JAX_MNIST_DIR"} & set(os.environ):
    known = ["--xla_backend_optimization_level=0"]
    if jax.__version_info__ < (0, 11):
        known.append("--xla_cpu_use_fusion_emitters=false")
    os.environ["XLA_FLAGS"] = " ".join(known)
    jax.devices()
    del os.environ["XLA_FLAGS"]

hypothesis.settings.register_profile("suite", deadline=None)  # other programs run beside
hypothesis.settings.load_profile("suite")

WITH_FLOW = (
    "--dataset=digits",
    "--examples=60",
    "--iterations=12",
    "--widths=6",
    "--step_size=0.05",
)
SMALL = (*WITH_FLOW, "--noflow")


def pytest_collection_modifyitems(config, items):
    """Marks the tests in long.txt: they take over three seconds, and others cover them in part."""
    listed = set(Path(__file__).with_name("long.txt").read_text().splitlines())
    for item in items:
        if item.nodeid in listed:
            item.add_marker("long")
    files = {item.nodeid.split("::")[0] for item in items if "::" not in "".join(config.args)}
    known, root = {item.nodeid for item in items}, Path(__file__).parents[1]
    for name in listed - known:
        file = name.split("::")[0]
        if file in files or not (root / file).exists():
            raise pytest.UsageError(f"tests/long.txt: there is no {name}; rename or remove it")


def weights(**changes):
    """Weights that SMALL takes, with some of them changed, or left out where None."""
    shapes = gf_jax.problems.fully_connected((64, 6, 10)).shapes
    arrays = {f"{layer}.weight": np.ones(ks["weight"], np.float32) for layer, ks in shapes.items()}
    return {name: array for name, array in (arrays | changes).items() if array is not None}


def damaged(content):
    """A file cut off, with some bits flipped, with bytes put in, or all other bytes."""
    places = st.integers(0, len(content) - 1)
    flips = st.lists(st.tuples(places, st.integers(0, 7)), min_size=1, max_size=3)
    return st.one_of(
        places.map(lambda at: content[:at]),
        flips.map(lambda chosen: flipped(content, chosen)),
        st.tuples(places, st.binary(max_size=9)).map(
            lambda put: content[: put[0]] + put[1] + content[put[0] :]
        ),
        st.binary(max_size=80),
    )


def flipped(content, flips):
    changed = bytearray(content)
    for at, bit in flips:
        changed[at] ^= 1 << bit
    return bytes(changed)


def assert_same_results(folder, other):
    """The same files, with the same bits in every array."""
    names = sorted(path.name for path in other.iterdir())
    assert sorted(path.name for path in folder.iterdir()) == names
    for name in (name for name in names if name.endswith(".npz")):
        with np.load(folder / name) as here, np.load(other / name) as there:
            assert here.files == there.files
            for key in here.files:
                assert here[key].dtype == there[key].dtype
                np.testing.assert_array_equal(here[key], there[key], err_msg=f"{name}, {key}")


def interrupted_at(name, number):
    """A function of gf_jax that is interrupted when it is called, or asked, for that time."""
    face, calls = gf_jax if hasattr(gf_jax, name) else gf_jax.theory, []
    original = getattr(face, name)

    def call(*arguments, **options):
        calls.append(arguments)
        if len(calls) > number:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    def ask(*arguments, **options):
        for each in original(*arguments, **options):
            call_count = len(calls)
            calls.append(each)
            if call_count >= number:
                raise KeyboardInterrupt
            yield each

    return ask if name == "resumable_segments" else call


def check_page(folder):
    """The page of a run has a verdict, and figures that are all explained."""
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "No verdict" not in text
    assert '<h3 id="panel-0">' in text
    for title, reading in re.findall(
        r'<h3 id="panel-\d+">(.*?)</h3>.*?<figcaption>(.*?)</figcaption>', text, re.DOTALL
    ):
        assert reading.endswith("."), title
    # Nothing is left of Matplotlib's mathematics.
    words = re.sub(r"\\u[0-9a-f]{4}", "", text.split('<script id="library"')[0])
    assert not re.search(r"[$\\]", words)


@pytest.fixture(scope="session")
def mnist_dir():
    folder = os.environ.get("GF_JAX_MNIST_DIR")
    if not folder:
        pytest.skip("set GF_JAX_MNIST_DIR to a folder with MNIST's four IDX files")
    return Path(folder)


@pytest.fixture(scope="session")
def digits():
    return data.load("digits", None, 200)


@pytest.fixture(scope="session")
def large_digits():
    return data.load("digits", None, 40, enlarge=True)


@pytest.fixture(scope="session")
def small_problem(digits):
    """A small network on real data: f and its starting point."""
    network = gf_jax.problems.fully_connected((64, 12, 8, 10), "relu")
    f = gf_jax.problems.classification(network, digits.images.reshape(-1, 64), digits.labels).loss
    return f, gf_jax.problems.xavier_uniform(jax.random.key(3), network.shapes)


@pytest.fixture(scope="session")
def smooth_problem(digits):
    """The same without kinks: a linear network."""
    network = gf_jax.problems.fully_connected((64, 12, 8, 10))
    f = gf_jax.problems.classification(network, digits.images.reshape(-1, 64), digits.labels).loss
    return f, gf_jax.problems.xavier_uniform(jax.random.key(3), network.shapes)


@pytest.fixture
def generator():
    return np.random.default_rng(7)


@pytest.fixture(scope="session")
def flag_definitions():
    groups = studies.flags()
    command_line.define(groups)
    yield
    for name in (flag.name for group in groups for flag in group.flags):
        delattr(flags.FLAGS, name)


@pytest.fixture
def invoke(capsys, flag_definitions):
    """Runs the command line in this process: exit status, stdout, stderr."""

    def call(*arguments):
        with flagsaver.flagsaver():
            try:
                status = main.main(command_line.parse_flags(["main", *arguments]))
            except SystemExit as error:
                status = error.code
        return status, *capsys.readouterr()

    return call


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory, flag_definitions):
    """A run with its flow, made once: its folder and what was printed."""
    folder = tmp_path_factory.mktemp("finished") / "run [b]"  # brackets are not markup
    with flagsaver.flagsaver(), contextlib.redirect_stdout(io.StringIO()) as out:
        arguments = (*WITH_FLOW, "--ratios=2,3", f"--output_dir={folder}")
        assert main.main(command_line.parse_flags(["main", *arguments])) == 0
    return folder, out.getvalue()


@pytest.fixture
def finished(finished_once, tmp_path):
    """A copy of it, to be changed."""
    folder = tmp_path / finished_once[0].name
    shutil.copytree(finished_once[0], folder)
    return folder, finished_once[1]


@pytest.fixture(scope="session")
def short_once(tmp_path_factory, flag_definitions):
    """A run without flow, interrupted after five of twelve segments."""
    folder = tmp_path_factory.mktemp("short") / "run"
    arguments = (*SMALL, "--ratios=2,3", "--checkpoint_every=0", f"--output_dir={folder}")
    with flagsaver.flagsaver(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(gf_jax, "resumable_segments", interrupted_at("resumable_segments", 5))
        assert main.main(command_line.parse_flags(["main", *arguments])) == 130
    return folder


@pytest.fixture
def short(short_once, tmp_path):
    """A copy of it: a run may be resumed wherever its folder lies."""
    return Path(shutil.copytree(short_once, tmp_path / "short"))
