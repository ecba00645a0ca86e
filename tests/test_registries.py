"""What is registered by name is what it claims to be, and one file and one line add another."""

import itertools
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import gf_jax
from experiments.problems import data, regression
from experiments.problems.datasets import DATASETS
from experiments.problems.networks import NETWORKS
from gf_jax.problems.activations import ACTIVATIONS, Activation
from gf_jax.problems.losses import LOSSES
from gf_jax.problems.networks import Structure
from gf_jax.theory import network_bounds
from gf_jax.theory.network_bounds import BOUNDS
from tests import test_data

ROOT = Path(__file__).parents[1]
SMOOTH = [name for name, activation in ACTIVATIONS.items() if activation.smooth]
INHOMOGENEOUS = [name for name, activation in ACTIVATIONS.items() if activation.slopes is None]
SIDES = {"lenet5": 12, "conv_adapted": 9}  # the smallest images that these take


def every_network():
    """Every network that can be asked for: each kind, with each activation if it takes one."""
    for name, kind in NETWORKS.items():
        side = SIDES.get(name, 3)
        if "activation" not in kind.options:
            yield pytest.param(kind.build((side, side), 4), id=name)
            continue
        for activation in ACTIVATIONS:
            built = kind.build((side, side), 4, widths=(5, 4), activation=activation)
            yield pytest.param(built, id=f"{name}, {activation}")


def drawn(network, generator):
    """Random parameters, biases too, of a size that passes signals on."""

    def entry(shape):
        fan_in = max(1, int(np.prod(shape[1:])))
        return jnp.asarray(generator.normal(size=shape) / np.sqrt(fan_in))

    return {
        layer: {kind: entry(shape) for kind, shape in kinds.items()}
        for layer, kinds in network.shapes.items()
    }


def scaled(params, network, factor):
    """Weights times the factor, and biases of layer j times its j-th power."""
    return {
        layer: {
            kind: array * (factor**number if kind == "bias" else factor)
            for kind, array in params[layer].items()
        }
        for number, layer in enumerate(network.shapes, start=1)
    }


@pytest.mark.parametrize("built", [*every_network()])
def test_a_network_is_what_it_claims_to_be(built, generator):
    network, label = built
    assert label
    with jax.enable_x64(True):
        params = drawn(network, generator)
        one, two = generator.normal(size=(2, 3, *network.input_shape))
        outputs = network.apply(params, one)
        assert outputs.shape == (3, network.classes) == (3, 4)
        factor, layers = 1.7, len(network.shapes)
        powers = network.apply(scaled(params, network, factor), one) / factor**layers
        homogeneous = np.allclose(powers, outputs, rtol=1e-9)
        assert homogeneous == (network.structure is not Structure.OTHER)
        together = network.apply(params, 2 * one - 3 * two)
        linear = np.allclose(together, 2 * outputs - 3 * network.apply(params, two), rtol=1e-9)
        assert linear == (network.structure is Structure.LINEAR)
    if linear:
        assert set(itertools.chain(*network.shapes.values())) == {"weight"}


@pytest.mark.parametrize("built", [*every_network()])
def test_a_network_has_the_kinks_that_it_claims(built, generator):
    network, _ = built
    inputs = generator.normal(size=(2, *network.input_shape)).astype(np.float32)
    f = gf_jax.problems.classification(network, inputs, np.array([0, 3])).loss
    params = gf_jax.problems.xavier_uniform(jax.random.key(0), network.shapes)
    program = gf_jax.prepare(f, params)
    assert (program.pure.gated(program.data, params).size == 0) == network.smooth


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_what_it_claims_to_be(name, generator):
    function, label, slopes, smooth = ACTIVATIONS[name]
    assert label
    with jax.enable_x64(True):
        z = jnp.asarray(generator.normal(size=100))
        if slopes is None:
            assert not np.allclose(function(2 * z), 2 * function(z), rtol=1e-3)
        else:
            np.testing.assert_allclose(function(z), jnp.where(z < 0, *slopes) * z, rtol=1e-15)
        # Where it is smooth, a hair on either side of zero is the same to every order here.
        left, right = (
            np.array([jax.grad(jax.grad(function))(side), jax.grad(function)(side)])
            for side in (-1e-9, 1e-9)
        )
        assert np.allclose(left, right, atol=1e-7) == smooth


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_what_it_claims_to_be(name, generator):
    loss = LOSSES[name]
    assert loss.label
    assert loss.unit
    with jax.enable_x64(True):
        outputs = jnp.asarray(generator.normal(size=(5, 200)) * generator.uniform(0, 4, size=200))
        classes = jnp.asarray(generator.integers(5, size=200))
        values = loss.of_outputs(outputs, classes)
        assert values.shape == (200,)
        assert (values >= 0).all()

        def one(z, y):
            return loss.of_outputs(z[:, None], y[None])[0]

        np.testing.assert_allclose(jax.vmap(one, (1, 0))(outputs, classes), values, rtol=1e-12)
        spectra = np.linalg.eigvalsh(jax.vmap(jax.hessian(one), (1, 0))(outputs, classes))
    assert loss.convex == bool((spectra >= -1e-12).all())
    assert spectra.max() <= loss.smoothness + 1e-12
    assert spectra.max() > 0.5 * loss.smoothness  # no idle claim


@pytest.mark.parametrize("name", LOSSES)
def test_the_training_loss_is_the_mean(name, digits):
    """Of examples, of any number of classes; batches are parts of it."""
    labels = digits.labels[:6] % 4
    network = gf_jax.problems.fully_connected((64, 4), "tanh")
    inputs = digits.images[:6].reshape(6, 64)
    problem = gf_jax.problems.classification(network, inputs, labels, loss=name)
    params = gf_jax.problems.xavier_uniform(jax.random.key(1), network.shapes)
    outputs = network.apply(params, inputs)
    if name == "squared":
        expected = 0.5 * np.square(outputs - np.eye(4)[labels]).sum() / 6
    else:
        expected = np.mean(
            [-jax.nn.log_softmax(z)[y] for z, y in zip(outputs, labels, strict=True)]
        )
    np.testing.assert_allclose(problem.loss(params), expected, rtol=1e-6)
    batches = problem.batches(2)
    parts = [batches.loss(params, jnp.int32(number)) for number in range(3)]
    np.testing.assert_allclose(np.mean(parts), expected, rtol=1e-6)
    slopes = problem.output_gradients(params)
    weights = jax.grad(problem.loss)(params)["dense_1"]["weight"]
    np.testing.assert_allclose(slopes @ inputs / 6, weights, rtol=1e-4, atol=1e-6)


def test_zero_outputs_have_half_a_squared_loss():
    """As the docstring says of the normalisation."""
    network = gf_jax.problems.fully_connected((2, 7))
    params = {"dense_1": {"weight": jnp.zeros((7, 2))}}
    labels = np.arange(7)
    squared = gf_jax.problems.classification(network, np.ones((7, 2)), labels, loss="squared")
    assert squared.loss(params) == 0.5


@pytest.mark.parametrize(("number", "classes"), [(10, 10), (-1, 10), (3, 3)])
def test_labels_that_a_network_has_no_output_for(number, classes):
    network = gf_jax.problems.fully_connected((2, classes))
    with pytest.raises(ValueError, match=f"labels: are .*{classes} outputs"):
        gf_jax.problems.classification(network, np.ones((2, 2)), np.array([0, number]))
    with pytest.raises(ValueError, match="loss: got 'huber'"):
        gf_jax.problems.classification(network, np.ones((1, 2)), np.array([0]), loss="huber")


@pytest.mark.parametrize("name", DATASETS)
def test_a_data_set_is_what_it_claims_to_be(name, tmp_path, monkeypatch):
    """And is trained on: the loss falls."""
    folder, examples = None, 20
    if name in ("mnist", "fashion_mnist"):
        small = test_data.registered(name, monkeypatch)
        folder = str(test_data.write(tmp_path / "files", test_data.contents_of(small)))
        examples = 4
    elif name == "auto":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setattr(test_data.download, "probe", test_data.refuse)
    assert DATASETS[name].files == (name != "digits")
    chosen = data.load(name, folder, examples)
    assert chosen.images.dtype == np.float32
    assert len(chosen.images) == len(chosen.labels) == examples
    assert f"{examples} images" in chosen.label
    assert 0 <= chosen.labels.min() <= chosen.labels.max() < chosen.classes
    network, _ = NETWORKS["fully_connected"].build(
        chosen.images.shape[1:], chosen.classes, widths=(3,), activation="tanh"
    )
    inputs = chosen.images.reshape(examples, -1)
    f = gf_jax.problems.classification(network, inputs, chosen.labels).loss
    start = gf_jax.problems.xavier_uniform(jax.random.key(0), network.shapes)
    run = gf_jax.gradient_descent(f, start, step_size=0.01, ratios=(), iterations=2)
    losses = run.metrics.loss[:, 0]
    assert losses[0] > losses[1] > losses[2]


def test_parity_says_what_it_is_of(digits):
    own = regression.parity(digits)
    other = regression.parity(digits._replace(label="clothes", digits=False))
    assert own.label == f"parity of {digits.label}"
    assert other.label == "parity of class numbers of clothes"
    np.testing.assert_array_equal(own.target, other.target)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    "activation",
    [name if name == "tanh" else pytest.param(name, marks=pytest.mark.long) for name in SMOOTH],
)
def test_gaps_of_smooth_networks_are_predicted(activation, loss, digits):
    """At first order in the step size: a halved step leaves a quarter of the error."""
    base = {"cross_entropy": 0.04, "squared": 0.004}[loss]  # far from the edge of stability
    network = gf_jax.problems.fully_connected((64, 5, 10), activation)
    inputs = digits.images[:40].reshape(40, 64)
    f = gf_jax.problems.classification(network, inputs, digits.labels[:40], loss=loss).loss
    start = gf_jax.problems.xavier_uniform(jax.random.key(2), network.shapes)
    errors = []
    for step_size, iterations in ((base, 10), (base / 2, 20)):
        run = gf_jax.gradient_descent(
            f, start, step_size=step_size, ratios=(2,), iterations=iterations, snapshots=1
        )
        lanes = np.array([step_size, step_size / 2])
        predicted = gf_jax.predict(f, start, [10 * base], lanes).to_base[-1, 1]
        gap = run.metrics.distance_to_base[-1, 1]
        errors.append(abs(predicted - gap))
        assert errors[-1] < 0.1 * gap
    assert errors[1] < 0.4 * errors[0]


class Drawn:
    """Random small networks, with what bounds are made of and the exact spectra."""

    def __init__(self, activation, loss, sizes=(3, 4, 2, 3), last=1.0):
        generator = np.random.default_rng(5)
        network = gf_jax.problems.fully_connected(sizes, activation)
        self.inputs = generator.normal(size=(6, sizes[0]))
        labels = generator.integers(sizes[-1], size=6)
        with jax.enable_x64(True):
            problem = gf_jax.problems.classification(network, self.inputs, labels, loss=loss)
            draws = [drawn(network, generator) for _ in range(30)]
            stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *draws)
            stack[f"dense_{len(sizes) - 1}"]["weight"] *= last
            self.points = network_bounds.Points(
                network,
                problem.of_outputs,
                gf_jax.problems.layer_norms(network, stack),
                self.inputs,
                np.asarray(jax.vmap(problem.output_gradients)(stack)),
            )
            _, unravel = ravel_pytree(draws[0])
            flat = jax.vmap(lambda p: ravel_pytree(p)[0])(stack)
            beside = generator.normal(size=flat.shape)
            self.radius = 0.1
            beside *= self.radius / np.linalg.norm(beside, axis=1, keepdims=True)
            hessian = jax.jit(jax.vmap(jax.hessian(lambda x: problem.loss(unravel(x)))))
            self.here, self.near = (np.linalg.eigvalsh(hessian(at)) for at in (flat, flat + beside))


@pytest.fixture
def steep(monkeypatch):
    """An activation that stretches, so that its slope matters to the bound."""
    activation = Activation(
        lambda z: jnp.where(z < 0, -2.0 * z, 3.0 * z), "steep", (-2.0, 3.0), smooth=False
    )
    monkeypatch.setitem(ACTIVATIONS, "steep", activation)


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", [*ACTIVATIONS, "steep"])
def test_a_bound_holds_where_it_claims_to(bound, loss, activation, steep):
    network = gf_jax.problems.fully_connected((3, 4, 2, 3), activation)
    covers = BOUNDS[bound].covers(network, LOSSES[loss])
    slopes = ACTIVATIONS[activation].slopes
    assert covers == (slopes == (1, 1) if bound == "linear" else slopes is not None)
    assert not BOUNDS[bound].covers(network, LOSSES[loss]._replace(convex=False))
    if not covers:
        return
    drawn = Drawn(activation, loss)
    assert (drawn.here[:, 0] < -0.01).sum() > 20  # there is something to be bounded
    for radius, spectra in ((0.0, drawn.here), (drawn.radius, drawn.near)):
        lower = BOUNDS[bound].lambda_min(drawn.points, radius)
        assert (lower.theorem <= lower.sharpened).all()
        assert (lower.sharpened <= spectra[:, 0] + 1e-12).all()
        if BOUNDS[bound].norm is not None:
            assert (np.abs(spectra).max(axis=1) <= BOUNDS[bound].norm(drawn.points, radius)).all()


@pytest.mark.parametrize("activation", INHOMOGENEOUS)
def test_the_homogeneous_bound_would_be_false_elsewhere(activation):
    """The second derivative of the activation, times large weights behind it, is not in it."""
    drawn = Drawn(activation, "squared", sizes=(3, 12, 2), last=10.0)
    network, loss = drawn.points.network, drawn.points.loss
    assert network_bounds.bound_for(network, loss) is None
    claimed = BOUNDS["homogeneous"].lambda_min(drawn.points, 0.0)
    assert (claimed.theorem > drawn.here[:, 0]).any()


def test_the_sharper_bound_is_taken():
    linear, relu = (gf_jax.problems.fully_connected((3, 4, 2), a) for a in ("linear", "relu"))
    loss = LOSSES["squared"]
    assert network_bounds.bound_for(linear, loss) is BOUNDS["linear"]
    assert network_bounds.bound_for(relu, loss) is BOUNDS["homogeneous"]
    for bound in BOUNDS.values():
        assert bound.networks in network_bounds.covered()


ADDED = {
    "network": '''
        """A linear layer with a bias, on the sums over channels of an image."""

        import jax.numpy as jnp

        from experiments.problems.networks import NetworkKind
        from gf_jax.problems import Network

        def build(shape, classes):
            height, width, channels = shape
            shapes = {"dense_1": {"weight": (classes, height * width), "bias": (classes,)}}

            def prepare(inputs):
                return inputs.sum(axis=1).reshape(len(inputs), -1).T

            def forward(params, inputs):
                layer = params["dense_1"]
                return layer["weight"] @ inputs + layer["bias"][:, None]

            of_images = (channels, height, width)
            network = Network(of_images, classes, shapes, prepare, forward, smooth=True)
            return network, "sums of channels"

        KIND = NetworkKind("adds channels up", build, smooth=True)
    ''',
    "loss": '''
        """The logarithm of the hyperbolic cosine of the distance from the label."""

        import jax
        import jax.numpy as jnp

        from gf_jax.problems.losses import OutputLoss

        def of_outputs(outputs, classes):
            targets = jax.nn.one_hot(classes, len(outputs), axis=0, dtype=outputs.dtype)
            return jnp.log(jnp.cosh(outputs - targets)).sum(axis=0)

        LOSS = OutputLoss(of_outputs, "log-cosh loss", "log-cosh", "of the distance", True, 1.0)
    ''',
    "dataset": '''
        """Noise in two colours and three classes."""

        import numpy as np

        from experiments.problems.datasets import Dataset, DatasetKind

        def load(data_dir, examples, enlarge):
            generator = np.random.default_rng(0)
            images = generator.normal(size=(examples, 4, 5, 2)).astype(np.float32)
            labels = generator.integers(3, size=examples).astype(np.int32)
            label = f"noise, {examples} images"
            return Dataset(images, labels, label, "drawn", 0.0, 1.0, classes=3, digits=False)

        KIND = DatasetKind("noise", load, files=False)
    ''',
    "bound": '''
        """A convex function has no negative curvature."""

        import numpy as np

        from gf_jax.theory import LowerBound
        from gf_jax.theory.network_bounds import NetworkBound

        def lambda_min(points, radius):
            zeros = np.zeros(len(points.norms.norms))
            return LowerBound(zeros, zeros)

        def covers(network, loss):
            return set(network.shapes) == {"dense_1"} and loss.convex

        BOUND = NetworkBound("networks of a single layer", covers, lambda_min)
    ''',
}
# One line each.
NAMED = """
import runpy, sys
from added import bound, dataset, loss, network
from experiments.problems.datasets import DATASETS
from experiments.problems.networks import NETWORKS
from gf_jax.problems.losses import LOSSES
from gf_jax.theory.network_bounds import BOUNDS
NETWORKS["sums"] = network.KIND
LOSSES["log_cosh"] = loss.LOSS
DATASETS["noise"] = dataset.KIND
BOUNDS["single"] = bound.BOUND
sys.argv[0] = "main"
runpy.run_module("experiments.main", run_name="__main__")
"""


def test_one_file_and_one_line_add_another(tmp_path):
    """A network, a loss, a data set and a bound in a package of their own, as a user runs them."""
    package = tmp_path / "added"
    package.mkdir()
    for name, text in ADDED.items():
        (package / f"{name}.py").write_text(textwrap.dedent(text))
    folder = tmp_path / "run"
    flags = "--network=sums --loss=log_cosh --dataset=noise --experiment=curvature --examples=9"
    sizes = "--iterations=4 --snapshots=2 --step_size=0.1"
    command = [sys.executable, "-c", NAMED, *flags.split(), *sizes.split()]
    done = subprocess.run(
        [*command, f"--output_dir={folder}"],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["network"] == "sums of channels, log-cosh loss"
    assert summary["data"] == "noise, 9 images"
    assert "No lower bound" not in done.stdout
    with np.load(folder / "curvature.npz") as saved:
        assert not saved["spectrum.theorem"].any()
        assert (saved["spectrum.lambda_min"] > -1e-6).all()
        assert saved["loss"][-1] < saved["loss"][0]
    with np.load(folder / "initial_params.npz") as start:
        assert start["dense_1.weight"].shape == (3, 20)
