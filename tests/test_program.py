"""f is traced once and lifted: the same loss in every precision, and compiled once."""

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental.ode import odeint

import gf_jax
from gf_jax.program.arithmetic import ARITHMETICS
from gf_jax.program.program import FixedLoss, prepare

X = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
KEY = jax.random.key(7)
START = np.array([0.3, -0.2, 0.5, 0.1], np.float32)


@jax.custom_jvp
def cube(x):
    return x**3


@cube.defjvp
def _(primals, tangents):
    (x,), (t,) = primals, tangents
    return cube(x), 3 * x**2 * t


@jax.custom_vjp
def clipped(x):
    return jnp.sin(x)


clipped.defvjp(lambda x: (jnp.sin(x), x), lambda x, c: (c * jnp.cos(x),))


def recurrent(w):
    def cell(state, row):
        state = jnp.tanh(state * w[0] + row @ w)
        return state, state

    return jax.lax.scan(cell, jnp.zeros((), jnp.float32), X)[0] ** 2


def counted(w):
    """A loop whose carry is data in its first rounds and depends on w later."""
    return jax.lax.fori_loop(0, 3, lambda i, c: jnp.where(i < 1, c, c * w), jnp.ones(4)).sum()


LOSSES = {
    "linear": lambda w: jnp.mean((X @ w - 1) ** 2),
    "checkpoint": lambda w: jnp.mean(jax.checkpoint(lambda w: jnp.tanh(X @ w))(w) ** 2),
    "jitted": jax.jit(lambda w: jnp.mean((X @ w - np.linspace(-1, 1, 16)) ** 2)),
    "own forward rule": lambda w: jnp.sum(cube(X @ w)),
    "own backward rule": lambda w: jnp.sum(clipped(X @ w) ** 2),
    "scan": recurrent,
    "carry": counted,
    "branch": lambda w: jax.lax.cond(w[0] > 0, jnp.sum, lambda w: jnp.sum(w**2), w),
    "scatter": lambda w: jnp.sum(jnp.zeros(3).at[jnp.array([0, 1, 1, 2])].add(w) ** 2),
    "sort": lambda w: jnp.sum((jnp.sort(X @ w) - 1) ** 2),
    "segments": lambda w: jnp.sum(jax.ops.segment_max(w * X[0], jnp.array([0, 0, 1, 1]), 2) ** 2),
    "solve": lambda w: jnp.sum(jnp.linalg.solve(2 * jnp.eye(4) + jnp.outer(w, w), X[0])),
    "eigenvalues": lambda w: jnp.linalg.eigvalsh(jnp.outer(w, w) + jnp.diag(X[0]))[0] ** 2,
    "fourier": lambda w: jnp.sum(jnp.abs(jnp.fft.fft(w * X[0])) ** 2),
    "convolution": lambda w: jnp.sum(
        jax.lax.conv(jnp.ones((1, 1, 4, 4), jnp.float32), w.reshape(1, 1, 2, 2), (1, 1), "VALID")
        ** 2
    ),
}


OF_FLOAT32 = {"scan", "convolution"}  # JAX refuses them with float64 parameters


def in_float64(f, start):
    program = prepare(f, start)
    with ARITHMETICS["float64"].context():
        params = jnp.asarray(start, jnp.float64)
        return np.asarray(jax.jit(program.pure.gradient)(program.data, params))


@pytest.mark.parametrize("name", LOSSES)
def test_lifting_is_float64(name):
    """Of losses without random numbers: as if they had been traced in float64."""
    f, gradient = LOSSES[name], in_float64(LOSSES[name], START)
    assert gradient.dtype == np.float64
    program = prepare(f, START)
    np.testing.assert_array_equal(program.pure.gradient(program.data, START), jax.grad(f)(START))
    if name in OF_FLOAT32:
        np.testing.assert_allclose(gradient, jax.grad(f)(START), rtol=1e-5, atol=1e-6)
        return
    with jax.enable_x64(True):
        whole = jax.grad(f)(jnp.asarray(START, jnp.float64))
    # Data that f computes are float32 here, as its user has them, so that 1e-7 may differ.
    np.testing.assert_allclose(gradient, whole, rtol=1e-6, atol=1e-6)


def noise(draw):
    return lambda w: jnp.mean((jnp.asarray(draw(KEY), jnp.float32) @ w - 1) ** 2)


@pytest.mark.parametrize(
    "draw",
    [
        lambda key: jax.random.normal(key, (16, 4)),
        lambda key: jax.random.uniform(key, (16, 4)),
        lambda key: jax.random.bernoulli(key, 0.5, (16, 4)),
        lambda key: jax.random.truncated_normal(key, -1, 1, (16, 4)),
        lambda key: jax.random.permutation(key, X),
        lambda key: jax.random.gamma(key, 2.0, (16, 4)),
        lambda key: jax.random.normal(jax.random.key(3), (16, 4)),  # made inside f
    ],
)
def test_random_numbers_are_those_of_the_user(draw):
    f = noise(draw)
    np.testing.assert_allclose(in_float64(f, START), jax.grad(f)(START), rtol=1e-5, atol=1e-5)


class Counts:
    """Compilations, which begin anew, so that none is given up for want of mappings meanwhile."""

    def __init__(self):
        jax.clear_caches()
        self.compiled = 0
        jax.monitoring.register_event_duration_secs_listener(self._tell)

    def _tell(self, name, _, **__):
        self.compiled += "backend_compile" in name


def test_a_second_study_compiles_nothing():
    counts, calls = Counts(), []

    def study(scale, step_size):
        data = jnp.asarray(np.float32(scale) * X)

        def f(w):
            calls.append(1)
            return jnp.mean((jax.nn.softplus(data @ w) - 1) ** 2)

        return gf_jax.compare(f, START, step_size=step_size, iterations=20, ratios=(2,))

    first = study(1.0, 0.1)
    assert len(calls) == 1  # f is traced once
    before = counts.compiled
    second = study(1.5, 0.05)  # other data, another step size
    assert (len(calls), counts.compiled - before) == (2, 0)
    assert second.run.metrics.loss[0, 0] != first.run.metrics.loss[0, 0]


def test_a_second_study_of_an_optimizer_compiles_nothing():
    """Its limit is searched for anew, by programs that are there."""
    counts = Counts()

    def optimizer(h):
        return optax.adam(h, 0.8, 0.9, eps=0.1)

    def study(start, step_size):
        def f(w):
            return jnp.mean((jnp.tanh(X @ w) - 1) ** 2)

        options = {"step_size": step_size, "iterations": 20, "ratios": (2,)}
        return gf_jax.compare(f, start, **options, optimizer=optimizer)

    study(jnp.asarray(START), 0.01)
    before = counts.compiled
    found = study(jnp.asarray(1.5 * START), 0.005)
    assert np.isfinite(found.predicted).all()
    assert counts.compiled == before


def test_what_is_compiled_serves_no_other_loss():
    """Losses that differ in a number, or in a rule that their text does not show."""

    def with_rule(factor):
        @jax.custom_jvp
        def square(x):
            return x**2

        square.defjvp(lambda p, t: (square(*p), factor * p[0] * t[0]))
        return lambda w: jnp.sum(square(w))

    pures = {prepare(lambda w, c=c: c * jnp.sum(w**2), START).pure for c in (1.0, 2.0, 1.0)}
    assert len(pures) == 2
    gradients = [in_float64(with_rule(factor), START) for factor in (2.0, 3.0)]
    np.testing.assert_allclose(gradients[1], 1.5 * gradients[0], rtol=1e-12)


def test_the_users_own_things_are_untouched(monkeypatch):
    monkeypatch.setattr(jax, "clear_caches", lambda: pytest.fail("caches were cleared"))
    data = np.random.default_rng(0).normal(size=(16, 4))
    f = jax.jit(lambda w: jnp.mean((data @ w - 1) ** 2))
    start, kept = jnp.asarray(START), data.copy()
    config = dict(jax.config.values)
    before = f(start)
    gf_jax.compare(f, start, step_size=0.01, iterations=5)
    for broken in (lambda w: w @ "x", lambda w: w, lambda w: jnp.sum(w) / [1]):
        with pytest.raises((TypeError, ValueError)):
            gf_jax.compare(broken, start, step_size=0.01, iterations=5)
    assert f(start) == before
    assert dict(jax.config.values) == config
    np.testing.assert_array_equal(data, kept)
    np.testing.assert_array_equal(start, START)


@pytest.mark.parametrize(
    ("name", "value"), [("rank_promotion", "raise"), ("dtype_promotion", "strict")]
)
def test_strict_configurations(name, value):
    data = jnp.asarray(X)
    with getattr(jax, f"numpy_{name}")(value):
        found = gf_jax.compare(
            lambda w: jnp.mean((jnp.tanh(data @ w) - 1) ** 2),
            START,
            step_size=0.1,
            iterations=5,
            curvature=True,
        )
    assert not found.doubts
    assert found.curvature is not None


def test_a_derivative_passes_what_holds_part_of_f_fixed():
    """g = 0.1 w - 1 with a Jacobian of 0.1, where the Hessian that JAX takes is 1."""

    def f(w):
        return 0.5 * jnp.sum((w - jax.lax.stop_gradient(0.9 * w) - 1) ** 2)

    program = prepare(f, START)
    with ARITHMETICS["float64"].context():
        params = jnp.asarray(START, jnp.float64)
        _, product = program.pure.linearize(program.data, params)
        np.testing.assert_allclose(product(params), 0.1 * params, rtol=1e-6)
    crossed = lambda w: jnp.sum(w * jax.lax.stop_gradient(jnp.roll(w, 1)) ** 2)  # noqa: E731
    with pytest.raises(ValueError, match=r"^f: its gradient, .* has no Hessian$"):
        gf_jax.curvature(crossed, jnp.stack([jnp.asarray(START)] * 2))


@pytest.mark.long
def test_a_loss_that_is_differentiated_once_only():
    def f(w):
        path = odeint(lambda s, t: -w * s, jnp.ones(4), jnp.linspace(0.0, 1.0, 3))
        return jnp.sum((path[-1] - 0.2) ** 2)

    found = gf_jax.compare(f, START, step_size=0.05, iterations=20, ratios=(2,))
    assert found.run.reference.measured[-1].all()
    assert np.isnan(found.predicted).all()
    (doubt,) = found.doubts
    assert doubt.startswith("There is no prediction: f: its gradient cannot be differentiated")


def test_rounding_of_gradients_is_in_the_resolution():
    """An ill-conditioned regression with an offset: float32 gradients hold no more."""
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(200, 4))
    inputs[:, 3] = inputs[:, 2] + 0.05 * inputs[:, 3]
    inputs = inputs.astype(np.float32)
    targets = (5000 + 300 * generator.normal(size=200)).astype(np.float32)
    options = {"step_size": 0.1, "iterations": 40_000, "ratios": (2,)}

    def f(w):
        return jnp.mean((inputs @ w - targets) ** 2)

    narrow = gf_jax.compare(f, jnp.zeros(4), **options, predict=False)
    wide = gf_jax.compare(f, jnp.zeros(4), **options, predict=False, arithmetic="float64")
    np.testing.assert_allclose(wide.distance[-1], [2.05e-4, 1.02e-4], rtol=0.01)
    error = np.abs(narrow.distance[-1] - wide.distance[-1])
    assert (error <= 2 * narrow.resolution[-1]).all()
    assert not narrow.run.reference.measured[-1].any()
    assert any('arithmetic="float64"' in doubt for doubt in narrow.doubts)
    assert wide.run.reference.measured[-1].all()


def test_a_critical_point_is_told_at_once():
    found = gf_jax.compare(
        lambda p: jnp.mean((X @ p["a"] @ p["b"] - 1) ** 2),
        {"a": jnp.zeros((4, 3)), "b": jnp.zeros(3)},
        step_size=0.1,
        iterations=5,
    )
    assert not found.distance.any()
    assert found.run.reference.flow_evaluations == 1
    assert found.doubts[0].startswith("The start is a critical point")


def test_further_starting_points_compile_nothing():
    """Neither when f is prepared nor when it is given as it was."""
    counts, calls = Counts(), []

    def f(w):
        calls.append(1)
        return jnp.mean((jnp.tanh(X @ w) - 1) ** 2)

    def whole(loss, start):
        options = {"step_size": 0.1, "iterations": 20, "ratios": (2,)}
        found = gf_jax.compare(loss, start, **options, curvature=True)
        gf_jax.gradient_flow(loss, start, found.times)
        gf_jax.modified_flow(loss, start, found.times, found.step_sizes)
        gf_jax.predict(loss, start, found.times, found.step_sizes)
        gf_jax.deviation(loss, start, found.times)
        gf_jax.curvature(loss, found.flow)
        gf_jax.theory.defects(loss, found.flow, 0.1)
        return found

    starts = [jnp.asarray(factor * START) for factor in (1.0, 1.5, -0.5)]
    first = whole(f, starts[0])
    before = counts.compiled
    second = whole(f, starts[1])
    assert counts.compiled == before
    program = gf_jax.prepare(f, starts[0])
    traced = len(calls)
    whole(program, starts[2])
    assert (counts.compiled, len(calls)) == (before, traced)
    assert second.run.metrics.loss[0, 0] != first.run.metrics.loss[0, 0]


def test_a_loss_that_never_changes_is_traced_once():
    calls = []

    def f(w):
        calls.append(1)
        return jnp.sum(w**2)

    loss = FixedLoss(f)
    programs = [prepare(loss, factor * START) for factor in (1, 2)]
    assert len(calls) == 1
    assert programs[0] is programs[1]
    prepare(loss, START, products="tensorfloat32")
    prepare(loss, np.ones(3, np.float32))
    assert len(calls) == 3  # of other precision, and of other shapes
    with pytest.raises(ValueError, match=r"^f: was prepared for products in highest precision"):
        prepare(programs[0], START, products="tensorfloat32")
