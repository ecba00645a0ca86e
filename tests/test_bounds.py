"""Bounds hold, against dense eigenvalues and closed forms, and are tight where theory says."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import gf_jax
from gf_jax.problems import convolution, networks
from gf_jax.theory import bounds
from tests.test_curvature import dense_eigenvalues

NETWORKS, EXAMPLES, RADIUS = 40, 7, 0.2


class RandomNetworks(NamedTuple):
    """Random networks on random data, all of the same sizes; every array stacks them."""

    inputs: np.ndarray
    params: Any
    norms: np.ndarray
    output_gradients: np.ndarray
    spectra: np.ndarray
    spectra_beside: np.ndarray


def random_networks(sizes, activation):
    """With all eigenvalues of the Hessian in float64, there and at a distance RADIUS."""
    generator = np.random.default_rng(sum(sizes))
    network = gf_jax.problems.fully_connected(sizes, activation)

    def problem(inputs, labels):
        return gf_jax.problems.classification(network, inputs, labels)

    def spectrum(inputs, labels, params):
        flat, unravel = ravel_pytree(params)
        loss = problem(inputs, labels).loss
        return jnp.linalg.eigvalsh(jax.hessian(lambda x: loss(unravel(x)))(flat))

    with jax.enable_x64(True):
        inputs = generator.normal(size=(NETWORKS, EXAMPLES, sizes[0]))
        labels = generator.integers(sizes[-1], size=(NETWORKS, EXAMPLES))
        scales = generator.uniform(0.3, 2.0, size=(NETWORKS, 1, 1))
        params = {
            layer: {"weight": scales * generator.normal(size=(NETWORKS, *kinds["weight"]))}
            for layer, kinds in network.shapes.items()
        }
        beside = jax.vmap(lambda p: moved(p, jax.random.key(sizes[0])))(params)
        spectra = jax.jit(jax.vmap(spectrum))
        slopes = jax.vmap(lambda x, y, p: problem(x, y).output_gradients(p))
        return RandomNetworks(
            inputs,
            params,
            gf_jax.problems.layer_norms(network, params).norms,
            np.asarray(slopes(inputs, labels, params)),
            np.asarray(spectra(inputs, labels, params)),
            np.asarray(spectra(inputs, labels, beside)),
        )


def moved(params, key):
    """A point at a distance RADIUS from params, in a random direction."""
    flat, unravel = ravel_pytree(params)
    direction = jax.random.normal(key, flat.shape)
    return unravel(flat + RADIUS * direction / jnp.linalg.norm(direction))


def stated(norms, factor):
    """The right-hand side of the theorems, written out."""
    pairs = [
        np.prod(np.delete(norms, (j, k), axis=1), axis=1)
        for j in range(norms.shape[1])
        for k in range(j)
    ]
    return -(norms.shape[1] - 1) * factor * np.max(pairs, axis=0)


SIZES = [(4, 3), (3, 4, 2), (4, 2, 3, 3), (2, 3, 3, 2, 2)]


@pytest.mark.parametrize("sizes", SIZES)
def test_linear_networks(sizes):
    drawn = random_networks(sizes, "linear")
    gradients = drawn.output_gradients @ drawn.inputs / EXAMPLES
    slopes = np.linalg.norm(gradients, axis=(1, 2))
    bound = gf_jax.theory.linear_network_bound(drawn.norms, slopes)
    exact = drawn.spectra[:, 0]
    np.testing.assert_allclose(bound.theorem, stated(drawn.norms, slopes) if sizes[2:] else 0.0)
    assert (bound.theorem <= bound.sharpened).all()
    assert (bound.sharpened <= exact + 1e-12).all()  # rounding of the eigenvalues
    for at in range(NETWORKS):
        # The Hessian of the cross-entropy by its logits is at most one half.
        smoothness = 0.5 * np.linalg.norm(drawn.inputs[at], 2) ** 2 / EXAMPLES
        options = {"radius": RADIUS, "smoothness": smoothness}
        tube = gf_jax.theory.linear_network_bound(drawn.norms[at], slopes[at], **options)
        beta = gf_jax.theory.linear_network_smoothness(drawn.norms[at], slopes[at], **options)
        assert tube.theorem <= bound.theorem[at]
        for spectrum in (drawn.spectra[at], drawn.spectra_beside[at]):
            assert tube.sharpened <= spectrum[0] + 1e-12
            assert spectrum[-1] <= beta


@pytest.mark.parametrize("sizes", SIZES[1:])
def test_homogeneous_networks(sizes):
    activation = "leaky_relu" if len(sizes) == 4 else "relu"
    drawn = random_networks(sizes, activation)
    slopes = np.linalg.norm(drawn.output_gradients, axis=1)
    for at in range(NETWORKS):
        reach = np.linalg.norm(drawn.inputs[at], axis=1)
        arguments = (drawn.norms[at], reach, slopes[at])
        bound = gf_jax.theory.homogeneous_network_bound(*arguments)
        factor = np.mean(slopes[at] * reach)
        np.testing.assert_allclose(bound.theorem, stated(drawn.norms[at][None], factor)[0])
        assert bound.theorem <= bound.sharpened <= drawn.spectra[at, 0]
        tube = gf_jax.theory.homogeneous_network_bound(*arguments, radius=RADIUS, smoothness=0.5)
        assert tube.sharpened <= drawn.spectra_beside[at, 0]


def test_a_linear_network_of_two_layers_reaches_the_bound():
    """f = -<G, W_2 W_1>: the smallest eigenvalue is minus the spectral norm of G."""
    gradient = np.array([[3.0, 0.0], [0.0, 0.0]])
    weights = {"a": jnp.zeros((2, 2)), "b": jnp.ones((2, 2))}
    exact = dense_eigenvalues(lambda p: -jnp.sum(gradient * (p["b"] @ p["a"])), weights)[0]
    bound = gf_jax.theory.linear_network_bound([0.0, 2.0], np.linalg.norm(gradient))
    np.testing.assert_allclose(bound.sharpened, exact, rtol=1e-12)


def tiny_convolutional(bias, pooled):
    """Convolution 5x5 with stride 2 or pooling of 2x2, then two dense layers."""
    size, stride, pool, windows = (8, 1, 2, (16, 16)) if pooled else (9, 2, 1, (9, 9))
    flat = 2 * 2 * 2 if pooled else 2 * 3 * 3

    def prepare(inputs):
        return convolution.windows_of(inputs.transpose(2, 1, 3, 0), block=2, stride=stride)

    def forward(params, windows):
        hidden = convolution.convolve(params["conv_1"], windows, stride=stride, pool=pool)
        return networks.dense_layers(params, convolution.flatten(hidden), jax.nn.relu)

    shapes = {"conv_1": {"weight": (2, 1, 5, 5)}} | networks.dense_shapes((flat, 3, 2), bias=bias)
    if bias:
        shapes["conv_1"]["bias"] = (2,)
    return networks.Network(
        (1, size, size), 2, shapes, prepare, forward, windows=(networks.Windows(*windows),)
    )


@pytest.mark.parametrize(
    ("bias", "pooled"),
    [
        pytest.param(False, False, marks=pytest.mark.long),
        pytest.param(True, False, marks=pytest.mark.long),
        (True, True),
    ],
)
def test_convolutions_biases_and_pooling(bias, pooled, generator):
    network = tiny_convolutional(bias, pooled)
    inputs = generator.normal(size=(5, *network.input_shape)).astype(np.float32)
    problem = gf_jax.problems.classification(network, inputs, generator.integers(2, size=5))
    with jax.enable_x64(True):
        params = {  # biases too
            layer: {
                kind: jnp.asarray(generator.normal(size=(8, *shape)) / np.sqrt(shape[-1]))
                for kind, shape in kinds.items()
            }
            for layer, kinds in network.shapes.items()
        }
        slopes = jax.vmap(problem.output_gradients)(params)
        _, unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], params))
        flat = jax.vmap(lambda p: ravel_pytree(p)[0])(params)
        hessian = jax.jit(jax.vmap(jax.hessian(lambda x: problem.loss(unravel(x)))))
        exact = np.linalg.eigvalsh(hessian(flat))[:, 0]
    bound = gf_jax.theory.homogeneous_network_bound(
        input_norms=np.linalg.norm(inputs.reshape(5, -1), axis=1),
        gradient_norms=np.linalg.norm(slopes, axis=1),
        **gf_jax.problems.layer_norms(network, params)._asdict(),
    )
    assert (exact < -0.01).sum() >= 6  # the others have dead layers
    assert (bound.theorem <= bound.sharpened).all()
    assert (bound.sharpened <= exact).all()


def quadratic(curvatures):
    return lambda x: 0.5 * jnp.sum(jnp.asarray(curvatures) * x**2)


@pytest.mark.parametrize("curvature", [-1.5, 0.8])
def test_the_fundamental_theorem_is_tight_on_a_quadratic(curvature):
    """In one dimension the defect points along the gap, so the bound is the gap."""
    step_size, iterations = 0.05, np.arange(41)
    iterates = 2.0 * (1 - step_size * curvature) ** iterations
    gap = np.abs(iterates - 2.0 * np.exp(-curvature * step_size * iterations))
    with jax.enable_x64(True):
        defects = gf_jax.theory.defects(
            quadratic([curvature]), jnp.asarray(iterates[:, None]), step_size
        )
    # ‖∇f(θ_{k+1}) - ∇f(θ_k)‖ / 2 in closed form.
    np.testing.assert_allclose(defects, step_size * curvature**2 * np.abs(iterates) / 2, rtol=1e-12)
    bound = gf_jax.theory.a_posteriori_bound(step_size, iterations, defects, np.full(41, curvature))
    # With positive curvature descent falls below the flow and they approach each other.
    np.testing.assert_allclose(bound[1:], gap[1:], rtol=1e-9)


def test_the_fundamental_theorem_holds_in_more_dimensions():
    curvatures, step_size, iterations = np.array([-1.0, 0.3, 4.0]), 0.05, np.arange(0, 61)
    factors = (1 - step_size * curvatures) ** iterations[:, None]
    iterates = np.array([0.01, 1.0, 1.0]) * factors
    flow = np.array([0.01, 1.0, 1.0]) * np.exp(-curvatures * step_size * iterations[:, None])
    gap = np.linalg.norm(iterates - flow, axis=1)
    defects = gf_jax.theory.defects(quadratic(curvatures), jnp.asarray(iterates), step_size)
    bound = gf_jax.theory.a_posteriori_bound(step_size, iterations, defects, np.full(61, -1.0))
    assert (bound >= gap).all()
    # Every third iteration only: linear interpolation of convex samples lies above them.
    kept = iterations[::3]
    coarse = gf_jax.theory.a_posteriori_bound(step_size, kept, defects[kept], np.full(21, -1.0))
    assert (coarse[1:] >= bound[kept][1:]).all()
    np.testing.assert_allclose(coarse[-1], bound[-1], rtol=0.05)


@pytest.mark.parametrize("iterations", [[1, 2], [0, 2, 2], []])
def test_iterations_ascend_from_zero(iterations):
    with pytest.raises(ValueError, match="iterations: got"):
        gf_jax.theory.a_posteriori_bound(
            0.1, iterations, np.ones(len(iterations)), np.ones(len(iterations))
        )


def test_the_a_priori_theorem_in_closed_form():
    """ε/(βγt) for m = 0, and ε c/(βγ(exp(c t) - 1)) for m = c."""
    times = np.array([0.0, 0.5, 2.0])
    constants = {"beta": 3.0, "gamma": 0.7}
    flat = gf_jax.theory.allowed_step_size(0.01, times, np.zeros(3), **constants)
    np.testing.assert_allclose(flat.step_size, 0.01 / (3.0 * 0.7 * 2.0), rtol=1e-12)
    assert (flat.time, flat.growth) == (2.0, 1.0)
    saddle = gf_jax.theory.allowed_step_size(0.01, times, np.full(3, -1.5), **constants)
    expected = 0.01 * 1.5 / (3.0 * 0.7 * np.expm1(3.0))
    np.testing.assert_allclose(saddle.step_size, expected, rtol=1e-12)
    np.testing.assert_allclose(saddle.growth, np.exp(3.0), rtol=1e-12)


def test_the_a_priori_theorem_keeps_descent_within_epsilon():
    """On a quadratic the constants of the tube are known exactly."""
    curvatures, start, epsilon, end = np.array([-0.5, 2.0]), np.array([0.2, 1.0]), 0.05, 2.0
    f, times = quadratic(curvatures), np.linspace(0, end, 5)
    largest = np.linalg.norm(curvatures * start * np.exp(-curvatures * [[0], [end]]).max(axis=0))
    allowed = gf_jax.theory.allowed_step_size(
        epsilon, times, np.full(5, -0.5), beta=2.0, gamma=largest + 2.0 * epsilon
    )
    count = int(np.ceil(end / allowed.step_size))
    with jax.enable_x64(True):
        run = gf_jax.gradient_descent(
            f,
            jnp.asarray(start),
            step_size=end / count,
            ratios=(),
            iterations=count,
            arithmetic="float64",
        )
    flow = start * np.exp(-curvatures * (run.snapshot_iterations * end / count)[:, None])
    gap = np.linalg.norm(run.snapshots[:, 0] - flow, axis=1).max()
    assert 0 < gap <= epsilon


def test_bounds_that_overflow_are_infinite():
    bound = bounds.a_posteriori_bound(1.0, [0, 1, 2000], np.ones(3), np.full(3, -5.0))
    assert np.isinf(bound[-1])
    assert bounds.allowed_step_size(1.0, [0.0, 900.0], [-5.0, -5.0], beta=1, gamma=1).step_size == 0


def test_what_is_not_accepted():
    for radius, smoothness in ((0.1, 0.0), (-0.1, 1.0)):
        options = {"radius": radius, "smoothness": smoothness}
        with pytest.raises(ValueError, match="radius, smoothness: got"):
            gf_jax.theory.linear_network_bound([1.0, 1.0], 1.0, **options)
        with pytest.raises(ValueError, match="radius, smoothness: got"):
            gf_jax.theory.homogeneous_network_bound([1.0, 1.0], [1.0], [1.0], **options)
    with pytest.raises(ValueError, match="times: got"):
        gf_jax.theory.allowed_step_size(0.1, [1.0, 2.0], [0.0, 0.0], beta=1.0, gamma=1.0)
    with pytest.raises(ValueError, match="beta: got 0"):
        gf_jax.theory.allowed_step_size(0.1, [0.0, 2.0], [0.0, 0.0], beta=0.0, gamma=1.0)
