"""Mistakes on the command line and in the environment: one line, status 2, nothing left behind."""

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags
from absl.testing import flagsaver
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import show, studies
from experiments.benchmark import __main__ as benchmark
from experiments.cli import command_line
from experiments.problems.datasets import DATASETS
from experiments.problems.networks import NETWORKS
from experiments.problems.options import COORDINATES
from experiments.studies import groups
from gf_jax.problems.activations import ACTIVATIONS
from gf_jax.problems.losses import LOSSES
from tests.conftest import SMALL

ROOT = Path(__file__).parents[1]
# How a message tells what is accepted, or what to do instead.
ACCEPTED = re.compile(r"accepted|one of <|did you mean|[;:] (give|drop|take|use) ", re.IGNORECASE)


def check(err, message):
    """One line that names what was wrong, and says what is accepted."""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert ACCEPTED.search(err)


# What is given besides the flags of SMALL, and what the line says.
MISTAKES = [
    ("--ratios=2,0", "--ratios: got 0"),
    ("--ratios=2,-5", "--ratios: got -5"),
    ("--ratios=2,2", "--ratios: 2 is given more than once"),
    ("--ratios=2,x", "--ratios=2,x: accepted are integers separated by commas"),
    ("--ratios=2,,3", "--ratios=2,,3: accepted are integers separated by commas"),
    ("--ratios=2.5", "--ratios=2.5: accepted are integers separated by commas"),
    ("--ratios=3000000000", "--ratios: got 3000000000; accepted are positive integers up to 2147"),
    ("--step_size=-0.1", "--step_size: got -0.1"),
    ("--step_size=0", "--step_size: got 0.0"),
    ("--step_size=nan", "--step_size: got nan"),
    ("--step_size=inf", "--step_size: got inf"),
    ("--step_size=1e-400", "--step_size: got 0.0"),
    ("--step_size=1e-320", "--step_size: step sizes of the runs are"),
    ("--step_size=1e308", "--step_size: step sizes of the runs are"),
    ("--step_size=small", "--step_size=small: accepted is a number"),
    ("--iterations=0", "--iterations: got 0"),
    ("--iterations=-12", "--iterations: got -12"),
    ("--iterations=1e3", "--iterations=1e3: accepted is an integer"),
    ("--iterations=100000000000000000000", "--iterations: got 100000000000000000000"),
    ("--snapshots=13", "--snapshots: got 13; accepted is 1 to the number of iterations, 12"),
    ("--snapshots=0", "--snapshots: got 0"),
    ("--snapshots=all", "--snapshots=all: accepted is an integer"),
    ("--segments=5", "--segments: got 5"),
    ("--segments=0", "--segments: got 0"),
    ("--segments=99999999999999999999", "--segments: got 99999999999999999999"),
    ("--network=resnet", "--network=resnet: unknown; accepted are fully_connected, conv_adapted"),
    ("--network=lenet5 --widths=", "--widths: the network lenet5 has its own"),
    ("--network=lenet5", "--widths: the network lenet5 has its own"),
    ("--widths=5,0", "--widths=5,0: accepted are positive integers"),
    ("--widths=-5", "--widths=-5: accepted are positive integers"),
    ("--widths=six", "--widths=six: accepted are integers"),
    ("--widths=1000000,1000000", "--widths: the start alone would take"),
    ("--widths=" + ",".join(["1"] * 100), "accepted are fewer than 100 widths"),
    ("--activation=sine", "--activation=sine: unknown; accepted are linear, relu, leaky_relu"),
    ("--loss=square", "--loss=square: unknown; did you mean squared? accepted are cross_entropy"),
    ("--init_scale=0", "--init_scale=0: accepted is a positive"),
    ("--init_scale=inf", "--init_scale=inf"),
    ("--init_scale=1e39", "--init_scale=1e+39: accepted is 1e-30 to 1e+30"),
    ("--init_scale=1e30", "--init_scale=1e+30: the training loss is not finite at this start"),
    ("--seed=-1", "--seed=-1"),
    ("--seed=4294967296", "--seed=4294967296"),
    ("--seed=1.5", "--seed=1.5: accepted is an integer"),
    ("--seeds=0", "--seeds=0"),
    ("--seeds=1000000000", "--seeds=1000000000: accepted is a positive integer up to"),
    ("--seeds=2 --seed=4294967295", "--seeds=2: the last seed"),
    (
        "--dataset=cifar",
        "--dataset=cifar: unknown; accepted are auto, mnist, fashion_mnist, digits",
    ),
    ("--examples=0", "--examples=0"),
    ("--examples=5000", "--examples=5000: scikit-learn's digits data set holds 1797"),
    ("--data_dir=/nowhere", "--data_dir: holds files of a data set, but --dataset=digits"),
    ("--dataset=mnist --data_dir=/nowhere", "--data_dir=/nowhere: no such folder"),
    ("--dataset=mnist --data_dir=/dev/null", "--data_dir=/dev/null: no such folder"),
    ("--dataset=mnist --data_dir=", "--data_dir=: names nothing"),
    ("--dataset=mnist --data_dir=~nobody_of_that_name/x", "--data_dir=~nobody_of_that_name/x: "),
    ("--dataset=mnist --data_dir=" + "x" * 5000, "no such folder"),
    ("--initial_params=/nowhere.npz", "--initial_params=/nowhere.npz: not readable"),
    ("--initial_params=/nowhere.npz --seed=1", "--seed: has no effect"),
    ("--initial_params=/nowhere.npz --seeds=2", "--seeds=2: the weights read by"),
    ("--initial_params=", "--initial_params=: names nothing"),
    ("--initial_params=/tmp", "--initial_params=/tmp: not readable (is a folder"),
    ("--initial_params=/dev/zero", "--initial_params=/dev/zero: not readable (zero is no regular"),
    ("--initial_params=~nobody_of_that_name/x", "--initial_params=~nobody_of_that_name/x: "),
    ("--output_dir=/dev/null/run", "--output_dir=/dev/null/run: cannot be written"),
    ("--output_dir=/proc/run", "--output_dir=/proc/run: cannot be written"),
    ("--output_dir=", "--output_dir=: names nothing"),
    ("--output_dir=~nobody_of_that_name/x", "--output_dir=~nobody_of_that_name/x: there is no"),
    ("--output_dir=/tmp/" + "x" * 300, "cannot be written (File name too long)"),
    ("--step_sizes=0.1,0.03", "--step_sizes=0.1,0.03: the largest, 0.1, is 3.33333 times 0.03"),
    ("--step_sizes=0.1,-1", "--step_sizes=0.1,-1: accepted are positive finite numbers"),
    ("--step_sizes=0.1,0.1", "--step_sizes=0.1,0.1: give every step size once"),
    ("--step_sizes=", "--step_sizes=: accepted are positive finite numbers"),
    ("--step_sizes=1e308,1e-308", "--step_sizes=1e+308,1e-308: accepted are ratios up to"),
    ("--step_sizes=0.1,0.01", "--step_size: is implied by --step_sizes"),
    ("--step_sizes=a", "--step_sizes=a: accepted are numbers separated by commas, such as 0.1"),
    ("--arithmetic=half", "--arithmetic=half: unknown; accepted are compensated, float32"),
    ("--arithmetic=tf32", "--arithmetic: tf32 products exist on GPUs only"),
    ("--coordinates=polar", "--coordinates=polar: unknown; accepted are row_space, pixels"),
    ("--mesh=99", "--mesh=99: accepted is a number of devices that are there"),
    ("--mesh=0", "--mesh=0: accepted are auto, none and a positive integer"),
    ("--mesh=1.5", "--mesh=1.5: accepted are auto, none and a positive integer"),
    ("--experiment=paint", "--experiment=paint: unknown; accepted are paper, rounding, predict"),
    ("--experiment=rounding --arithmetic=float32", "--arithmetic: has no effect on --experiment"),
    ("--experiment=predict --flow", "--flow: has no effect on --experiment=predict"),
    ("--experiment=large_steps --ratios=2", "--ratios: has no effect on --experiment=large_steps"),
    ("--epsilon=0.1", "--epsilon: has no effect on --experiment=paper"),
    ("--depths=2", "--depths: has no effect on --experiment=paper"),
    ("--along=flow", "--along: has no effect on --experiment=paper"),
    ("--momentum=1", "--momentum: got 1; accepted is a number from 0 to below 1"),
    ("--momentum=-0.1", "--momentum: got -0.1"),
    ("--momentum=nan", "--momentum: got nan"),
    ("--momentum=0 --nesterov", "--nesterov: is a kind of momentum"),
    ("--nesterov", "--nesterov: is a kind of momentum; give a momentum too"),
    ("--batch_size=7", "--batch_size: got 7; accepted are divisors of the number of examples, 60"),
    ("--batch_size=0", "--batch_size: got 0"),
    ("--batch_size=-3", "--batch_size: got -3"),
    ("--batch_seed=1", "--batch_seed: orders batches; give --batch_size too"),
    ("--batch_size=20 --batch_seed=-1", "--batch_seed=-1: accepted is an integer from 0"),
    ("--experiment=rounding --batch_size=20", "--batch_size: has no effect on --experiment"),
    ("--experiment=curvature --momentum=0.5", "--momentum: has no effect on --experiment"),
    ("--checkpoint_every=-1", "--checkpoint_every=-1: accepted is a number of seconds"),
    ("--checkpoint_every=nan", "--checkpoint_every=nan: accepted is a number of seconds"),
    ("--checkpoint_every=inf", "--checkpoint_every=inf: accepted is a number of seconds"),
    ("--checkpoint_every=soon", "--checkpoint_every=soon: accepted is a number"),
    ("--resume=", "--resume=: names nothing"),
    ("--resume=/nowhere", "--resume=/nowhere: holds no run that can be resumed (No such file"),
    ("--flow=maybe", "--flow=maybe: accepted are true and false"),
    ("--verbosity=x", "--verbosity=x: accepted is an integer"),
    ("--stderrthreshold=x", "--stderrthreshold must be one of"),
    ("--ratio=2", "--ratio=2: unknown flag; did you mean --ratios? --help"),
    ("--noflwo", "--noflwo: unknown flag; did you mean --noflow?"),
    ("--step-size=2", "--step-size=2: unknown flag; did you mean --step_size?"),
    ("--quux", "--quux: unknown flag; --help lists what is accepted"),
    ("--experiment=predit", "--experiment=predit: unknown; did you mean predict? accepted are"),
    ("--network=conv", "--network=conv: unknown; did you mean conv_adapted? accepted are"),
    ("--dataset=MNIST", "--dataset=MNIST: unknown; did you mean mnist? accepted are"),
    ("--iteration=2", "--iteration=2: unknown flag; did you mean --iterations?"),
    ("extra", "extra: not a flag"),
]


@pytest.mark.parametrize(("given", "message"), MISTAKES, ids=lambda text: text[:40])
def test_a_mistake_gets_one_line_and_leaves_nothing(given, message, invoke, tmp_path):
    target = tmp_path / "out"
    status, out, err = invoke(*SMALL, f"--output_dir={target}", *given.split())
    assert status == 2
    assert out == ""
    check(err, message)
    assert not target.exists()


DIGITS = ("--dataset=digits", "--examples=20")
OTHER_MISTAKES = [
    (("--experiment=near_zero", *DIGITS, "--depths=1"), "--depths=1: accepted are integers from 2"),
    (("--experiment=near_zero", *DIGITS, "--depths="), "--depths=: accepted are integers from 2"),
    (("--experiment=near_zero", *DIGITS, "--depths=1000000"), "--depths=1000000: accepted are"),
    (("--experiment=near_zero", *DIGITS, "--widths=5,5"), "--widths=5,5: accepted is one width"),
    (("--experiment=near_zero", *DIGITS, "--iterations=5"), "--iterations: has no effect"),
    (("--experiment=deep_linear", *DIGITS, "--depths=2,2"), "--depths=2,2: give every depth once"),
    (("--experiment=deep_linear", *DIGITS, "--seeds=-1"), "--seeds=-1: accepted is"),
    (("--experiment=deep_linear", "--dataset=digits", "--examples=1"), "--examples=1: all are"),
    (("--experiment=necessity", "--epsilon=0"), "--epsilon=0: accepted is a positive"),
    (("--experiment=necessity", "--epsilon=1e-320"), "--epsilon=1e-320: accepted is 1e-30 to"),
    (("--experiment=necessity", "--dataset=digits"), "--dataset: has no effect"),
    (("--experiment=bounds", *DIGITS, "--epsilon=nan"), "--epsilon=nan: accepted is"),
    (("--experiment=curvature", *DIGITS, "--segments=2"), "--segments: has no effect"),
    (
        ("--experiment=predict", *DIGITS, "--activation=relu", "--momentum=0.5"),
        "--momentum=0.5: its gaps are predicted for losses without kinks",
    ),
    (("--experiment=bounds", *DIGITS, "--momentum=0.5"), "--momentum: has no effect"),
    (
        ("--experiment=curvature", "--along=descent", *DIGITS, "--batch_size=5"),
        "--batch_size: has no effect",
    ),
    (("--experiment",), "Missing value for flag --experiment; --help"),
    (("--flagfile=/nowhere",), "Unable to open flagfile"),
]


@pytest.mark.parametrize(("given", "message"), OTHER_MISTAKES, ids=lambda text: str(text)[:50])
def test_mistakes_in_other_experiments(given, message, invoke, tmp_path):
    target = tmp_path / "out"
    status, out, err = invoke(f"--output_dir={target}", *given)
    assert (status, out) == (2, "")
    check(err, message)
    assert not target.exists()


OF_BENCHMARK = [
    ("--networks=vgg", "--networks=vgg: accepted are some of linear"),
    ("--networks=relu,lenet", "--networks=relu,lenet: did you mean lenet5? accepted are some of"),
    ("--networks=", "--networks=: accepted are some of"),
    ("--networks=relu,relu", "--networks=relu,relu: give every network once"),
    ("--rounds=0", "--rounds=0: accepted is a positive integer"),
    ("--rounds=many", "--rounds=many: accepted is an integer"),
    ("--ratios=0", "--ratios: got 0"),
    ("--examples=-1", "--examples=-1"),
    ("--dataset=cifar", "--dataset=cifar: unknown; accepted are auto"),
    ("--dataset=mnist --data_dir=/nowhere", "--data_dir=/nowhere: no such folder"),
    pytest.param(
        *("--output_dir=/proc/run", "--output_dir=/proc/run: cannot be written"),
        marks=pytest.mark.long,
    ),
    ("--round=1", "--round=1: unknown flag; did you mean --rounds?"),
    ("--torch=maybe", "--torch=maybe: accepted are true and false"),
    ("extra", "extra: not a flag"),
]


@pytest.mark.parametrize(("given", "message"), OF_BENCHMARK)
def test_mistakes_in_the_benchmark(given, message, capsys, tmp_path):
    values = flags.FlagValues()
    command_line.define(benchmark.page().groups, values)
    target = tmp_path / "out"
    arguments = ["benchmark", "--dataset=digits", "--notorch", f"--output_dir={target}"]
    try:
        parsed = command_line.parse_flags([*arguments, *given.split()], values)
        status = benchmark.main(parsed, values)
    except SystemExit as error:
        status = error.code
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    check(err, message)
    assert not target.exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "show: accepted are the folders of one or more runs"),
        (["--output_dir=x"], "--output_dir=x"),
        (["/nowhere"], "/nowhere: holds no run"),
        (["/dev/null"], "/dev/null: holds no run"),
        ([""], "holds no run"),
    ],
)
def test_mistakes_in_showing(given, message, capsys):
    assert show.main(given) == 2
    out, err = capsys.readouterr()
    assert out == ""
    check(err, message)


def process(arguments, tmp_path, **variables):
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path), **variables},
        check=False,
        capture_output=True,
        text=True,
    )


ENVIRONMENTS = [
    ({"JAX_PLATFORMS": "abacus"}, "abacus"),
    ({"XLA_FLAGS": "--xla_no_such_flag=1"}, "XLA_FLAGS=--xla_no_such_flag=1: Unknown flag"),
    ({"XLA_FLAGS": "garbage"}, "XLA_FLAGS=garbage: Could not open file"),
    ({"XLA_FLAGS": "--xla_force_host_platform_device_count=x"}, "Couldn't interpret value x"),
    ({"JAX_ENABLE_X64": "perhaps"}, "JAX_ENABLE_X64"),
    ({"JAX_NUM_CPU_DEVICES": "x"}, "jax_num_cpu_devices"),
    ({"JAX_DEBUG_NANS": "1"}, "JAX_DEBUG_NANS=1: is for debugging"),
    ({"JAX_DISABLE_JIT": "1"}, "JAX_DISABLE_JIT=1: is for debugging"),
    ({"JAX_NUMPY_RANK_PROMOTION": "raise"}, "JAX_NUMPY_RANK_PROMOTION=raise"),
    ({"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1"}, "got JAX_COORDINATOR_ADDRESS=10.0.0.1:1"),
    (
        {"JAX_COORDINATOR_ADDRESS": "here", "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"},
        "got JAX_COORDINATOR_ADDRESS=here",
    ),
    (
        {"JAX_COORDINATOR_ADDRESS": "h:99999", "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"},
        "the port of the address is not between",
    ),
    (
        {"JAX_COORDINATOR_ADDRESS": "h:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "7"},
        "process_id < num_processes",
    ),
    ({"SLURM_STEP_NUM_TASKS": "x"}, "SLURM_STEP_NUM_TASKS=x: accepted is a number"),
    ({"OMPI_COMM_WORLD_SIZE": "2"}, "tells of 2 processes"),
    ({"TPU_WORKER_HOSTNAMES": "a,b"}, "tells of 2 processes"),
]


@pytest.mark.long
@pytest.mark.parametrize(("variables", "message"), ENVIRONMENTS, ids=str)
def test_a_mistake_in_the_environment(variables, message, tmp_path):
    arguments = ("experiments.main", *SMALL, f"--output_dir={tmp_path / 'out'}")
    done = process(arguments, tmp_path, **variables)
    assert done.returncode == 2, done.stderr
    check(done.stderr, message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [0, 1, 4])
def test_some_of_them_in_short(number, tmp_path):
    test_a_mistake_in_the_environment(*ENVIRONMENTS[number], tmp_path)


@pytest.mark.long
def test_the_commands_themselves(tmp_path):
    """Own processes: nothing between the mistake and the exit status."""
    for arguments, line in [
        (("experiments.main", "--ratios=0"), "error: --ratios: got 0; accepted are positive"),
        (("experiments.benchmark", "--rounds=0"), "error: --rounds=0: accepted is a positive"),
        (("experiments.show", "/nowhere"), "error: /nowhere: holds no run"),
    ]:
        done = process(arguments, tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(line)
        assert done.stderr.count("\n") == 1


def anything(*likely):
    """Texts that a flag may be given."""
    numbers = st.integers() | st.integers(-3, 30) | st.floats()
    text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
    lists = st.lists(numbers, max_size=4).map(lambda values: ",".join(map(str, values)))
    return st.sampled_from([*likely, ""]) | numbers.map(str) | lists | text


CHOICES = {
    "experiment": tuple(studies.MODULES),
    "network": NETWORKS,
    "dataset": DATASETS,
    "activation": ACTIVATIONS,
    "loss": LOSSES,
    "along": ("flow", "descent"),
    "coordinates": COORDINATES,
    "flow": ("true", "false"),
}
NAMES = [flag.name for group in studies.flags() for flag in group.flags]
GIVEN = st.fixed_dictionaries(
    {}, optional={name: anything(*CHOICES.get(name, ())) for name in NAMES}
)


@settings(max_examples=400, deadline=None)
@given(given=GIVEN)
def test_any_flags_are_a_configuration_or_one_line(given, flag_definitions):
    """Whatever is given is refused in one line, or accepted and then in bounds."""
    err = io.StringIO()
    with flagsaver.flagsaver(), contextlib.redirect_stderr(err):
        made = []

        def configure():
            made.append(studies.chosen(command_line.given(studies.flags())))
            return 0

        try:
            arguments = [f"--{name}={value}" for name, value in given.items()]
            status = command_line.exit_status(
                command_line.parse_flags(["main", *arguments]), configure
            )
        except SystemExit as error:
            status = error.code
    if status:
        assert status == 2
        check(err.getvalue(), "")
        return
    ((_, options),) = made
    if isinstance(options, groups.Steps):
        assert all(1e-30 <= size <= 1e30 for size in options.all_step_sizes)
        assert options.iterations % options.schedule.segments == 0
