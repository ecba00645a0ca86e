"""The continuous limit of any optimiser, found from its program, against loops and closed forms."""

import contextlib
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import integrate

import gf_jax
from experiments.optimizers import adam, gaps
from experiments.optimizers import orders as orders_page
from experiments.optimizers.orders import OPTIMIZERS, network, orders
from gf_jax.flow import prediction
from gf_jax.flow.limit_flow import limit_from, limit_in_words
from gf_jax.flow.problem import flow_problem
from gf_jax.optimizers.momentum import OfTime
from gf_jax.optimizers.trial import LimitError

QUICK = ("Adam, decays 1 - 10h, 1 - h", "heavy ball, decay 1 - 2h")


def with_most_long(names):
    """All names, those that take a second or more marked as long unless they are of QUICK."""
    return [n if n in QUICK else pytest.param(n, marks=pytest.mark.long) for n in names]


@pytest.mark.parametrize("name", with_most_long(OPTIMIZERS))
def test_order_of_what_the_first_order_leaves_out(name):
    """One before, two after, as far as the next order allows: the transient of Adam is long."""
    optimizer, step_size = OPTIMIZERS[name]
    first, second = orders(optimizer, step_size / 2, time=0.5)
    np.testing.assert_allclose(first, 1, atol=0.12)
    np.testing.assert_allclose(second, 2, atol=0.25)


def loop(f, start, optimizer, step_size, steps):
    """Optax's own loop of one run, in float64; all iterates."""
    with jax.enable_x64(True):
        # Losses close over float32 data, which is what the library has of it, too.
        params = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), float), start)
        transformation = optimizer(step_size)

        def step(carry, _):
            params, state = carry
            updates, state = transformation.update(jax.grad(f)(params), state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        begin = params, transformation.init(params)
        return jax.device_get(jax.jit(lambda b: jax.lax.scan(step, b, length=steps)[1])(begin))


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.sgd,
        functools.partial(optax.adamw, b1=0.8, eps=0.1),
        lambda h: optax.adam(h, 1 - 10 * h, 1 - h),
        optax.lion,
        lambda h: optax.inject_hyperparams(optax.rmsprop)(learning_rate=h),
        lambda h: optax.MultiSteps(optax.adam(h), 3),
    ],
    ids=["sgd", "adamw", "scaled adam", "lion", "inject_hyperparams", "MultiSteps"],
)
def test_runs_are_those_of_optax(optimizer):
    """In float64 to rounding, with a state that the library need know nothing of."""
    f, start = network()
    run = gf_jax.gradient_descent(
        *(f, start),
        step_size=0.02,
        ratios=(3,),
        iterations=8,
        arithmetic="float64",
        optimizer=optimizer,
    )
    for lane, ratio in enumerate((1, 3)):
        expected = loop(f, start, optimizer, 0.02 / ratio, 8 * ratio)
        for name, leaf in expected.items():
            # inject_hyperparams and MultiSteps keep numbers in float32, so that eight digits of an
            # update of 0.02 are left; f32 literals of one form alone cost as much.
            np.testing.assert_allclose(
                run.snapshots[name][:, lane], leaf[ratio - 1 :: ratio], rtol=0, atol=1e-8
            )


def test_sgd_is_plain_descent_to_the_last_bit():
    f, start = network()
    options = {"step_size": 0.05, "iterations": 20, "ratios": (2,)}
    plain = gf_jax.compare(f, start, **options)
    same = gf_jax.compare(f, start, **options, optimizer=optax.sgd)
    with_state = gf_jax.compare(f, start, **options, optimizer=lambda h: optax.sgd(h, momentum=0.0))
    jax.tree.map(np.testing.assert_array_equal, same.run.metrics, plain.run.metrics)
    jax.tree.map(np.testing.assert_array_equal, same.predicted, plain.predicted)
    assert same.verdict == plain.verdict
    jax.tree.map(np.testing.assert_array_equal, with_state.run.metrics, plain.run.metrics)
    # Of this the second order is estimated, not known.
    assert np.abs(with_state.predicted - plain.distance).max() < with_state.predicted_error.max()


REFUSED = {
    "sign": (optax.sign_sgd, "jump where an entry of the gradient changes its sign"),
    "lion": (optax.lion, "jump where an entry of the gradient changes its sign"),
    "adam": (optax.adam, "larger eps, or decays that depend on the step size"),
    "adabelief": (optax.adabelief, "do not tend to a velocity"),
    "adagrad": (optax.adagrad, "not in proportion to the step size"),
    "amsgrad in time": (lambda h: optax.amsgrad(h, 1 - 99 * h, 1 - h), "largest of all values"),
    "amsgrad": (lambda h: optax.amsgrad(h, 0.9, 0.95, eps=0.1), "depend on where they came from"),
    "no step size": (lambda h: optax.scale_by_adam(eps=0.1), "not in proportion to the step size"),
    "schedule of steps": (
        lambda h: optax.sgd(optax.cosine_decay_schedule(h, 100)),
        "accepted are schedules of time",
    ),
    "noise": (lambda h: optax.noisy_sgd(h, key=0), "neither rest nor count"),
    "line search": (optax.lbfgs, "a step of it failed"),
    "misspelt": (lambda h: optax.sgd(h, momentun=0.9), "unexpected keyword argument"),
    "branches": (lambda h: optax.sgd(h if h > 0.1 else h / 2), "a step of it failed"),
    "root of h in a decay": (
        lambda h: optax.sgd(h, momentum=1 - jnp.sqrt(h)),
        "a power of the step size",
    ),
    "root of h": (lambda h: optax.sgd(h * (1 + jnp.sqrt(h))), "no whole number"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_limit_is_refused_by_the_property_that_it_lacks(name, monkeypatch):
    """In one line, before anything is run."""
    f, start = network()
    optimizer, why = REFUSED[name]
    monkeypatch.setattr("gf_jax.study.compare.descend", lambda *_: pytest.fail("it was run"))
    with pytest.raises(ValueError, match=why) as told:
        gf_jax.compare(f, start, step_size=0.01, iterations=100, optimizer=optimizer)
    assert str(told.value).startswith("optimizer: ")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("wrong", [optax.sgd(0.1), 0.1, "adam"])
def test_what_is_no_optimizer(wrong):
    f, start = network()
    for study in (gf_jax.compare, gf_jax.gradient_descent):
        with pytest.raises(ValueError, match=r"^optimizer: got .*; accepted is a function from"):
            study(f, start, step_size=0.01, iterations=10, ratios=(2,), optimizer=wrong)


class Kept(NamedTuple):
    """A state of one's own: a mean of all params so far, and how many they are."""

    mean: Any
    count: Any


def averaging(h):
    """Descent that keeps the mean of its iterates, which no step depends on."""

    def init(params):
        return Kept(jax.tree.map(jnp.copy, params), jnp.zeros((), jnp.int32))

    def update(gradient, state, params=None):
        count = state.count + 1
        mean = jax.tree.map(lambda a, p: a + (p - a) / count, state.mean, params)
        return jax.tree.map(lambda g: -h * g, gradient), Kept(mean, count)

    return optax.GradientTransformation(init, update)


def leapfrog(h):
    """A ball with friction, of a state without names."""

    def init(params):
        return jax.tree.map(jnp.zeros_like, params)

    def update(gradient, state, params=None):
        state = jax.tree.map(lambda v, g: v - h * (2 * v + g), state, gradient)
        return jax.tree.map(lambda v: h * v, state), state

    return optax.GradientTransformation(init, update)


def rounding(h):
    """Descent along gradients that are rounded to three digits; its limit is that of descent."""

    def update(gradient, state, params=None):
        short = jax.tree.map(lambda g: -h * g.astype(jnp.bfloat16).astype(g.dtype), gradient)
        return short, state

    return optax.GradientTransformation(lambda params: (), update)


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        (averaging, "an equation in the parameters alone"),
        (leapfrog, "an equation in the parameters and what it keeps"),
        (rounding, "an equation in the parameters alone"),
    ],
    ids=["averaging", "leapfrog", "rounding"],
)
def test_optimizers_of_ones_own(optimizer, words):
    f, start = network()
    assert limit_in_words(f, start, np.array([0.5]), 0.00125, optimizer) == words
    if optimizer is not rounding:  # whose runs are rounded
        _, second = orders(optimizer, 0.01, time=0.5)
        np.testing.assert_allclose(second, 2, atol=0.1)


def test_adam_in_closed_form():
    """θ' = −g/R, R = √(g² + ε), and its deviation, at the start (see the page on optimisers)."""
    beta, rho, epsilon = 0.9, 0.95, 0.01
    f, start = network()

    def adam(h):
        return optax.adam(h, beta, rho, eps=0, eps_root=epsilon)

    problem = flow_problem(f, start, [1.0], None)
    found = limit_from(problem, OfTime(adam), 0.001)
    limit, given = found.limit, found.given
    with problem.numbers.context():
        pure, data = problem.pure, problem.data

        def gradients(params):
            return jax.tree.map(lambda leaf: leaf[None], pure.gradient(data, params))

        def products(params, directions):
            return jax.tree.map(jnp.zeros_like, directions)  # of periods alone

        velocity, first, _, _ = limit.expansion(given, gradients, products, found.point)
        g, product = pure.linearize(data, problem.params)
        root = jax.tree.map(lambda x: jnp.sqrt(x**2 + epsilon), g)
        u = jax.tree.map(jnp.divide, g, root)
        known = (1 + rho) / (1 - rho)

        def deviation(r, along):
            c = 0.5 * ((1 + beta) / (1 - beta) - known + known * epsilon / r**2)
            return -c * along / r

        expected = jax.tree.map(deviation, root, product(u))
        # The polynomials through four step sizes are exact to ten digits, their slopes to six.
        for ours, theirs, rtol in ((velocity.params, u, 1e-9), (first.params, expected, 1e-5)):
            sign = -1 if ours is velocity.params else 1
            jax.tree.map(
                lambda a, b, s=sign, r=rtol: np.testing.assert_allclose(
                    a, s * b, rtol=r, atol=1e-9
                ),
                *(ours, theirs),
            )


def test_decoupled_decay_on_a_quadratic_in_closed_form():
    """x' = −(λ + w) x; e' = −(λ + w) e − ½ (λ + w)² x, so that e = −½ (λ + w)² t x."""
    curvatures, decay, times = jnp.array([1.0, 3.0]), 0.5, np.array([0.5, 1.0])
    start = jnp.array([1.0, -2.0])

    def optimizer(h):
        return optax.chain(optax.add_decayed_weights(decay), optax.sgd(h))

    found = gf_jax.deviation(
        *(lambda x: 0.5 * jnp.sum(curvatures * x**2), start, times),
        optimizer=optimizer,
        step_size=0.01,
    )
    rates = np.array([1.0, 3.0]) + decay
    expected = np.exp(-np.outer(times, rates)) * np.array([1.0, -2.0])
    np.testing.assert_allclose(found.flow.params, expected, atol=1e-6)
    np.testing.assert_allclose(
        found.coherent, -0.5 * rates**2 * times[:, None] * expected, rtol=1e-4
    )


def test_rmsprop_on_a_constant_gradient_in_closed_form():
    """From v = 0 it is v_k = (1 − ρ^k) g²: at fixed ρ what the first steps gain is e(0)."""
    rho, slope, epsilon = 0.8, 0.3, 0.05
    found = gf_jax.deviation(
        *(lambda x: slope * x[0], jnp.zeros(1), [0.5, 1.0]),
        optimizer=lambda h: optax.rmsprop(h, rho, eps=epsilon),
        step_size=0.01,
    )
    speed = slope / np.sqrt(slope**2 + epsilon)
    steps = slope / np.sqrt((1 - rho ** np.arange(1, 400)) * slope**2 + epsilon)
    np.testing.assert_allclose(found.flow.params[:, 0], [-0.5 * speed, -speed], rtol=1e-6)
    np.testing.assert_allclose(found.coherent[:, 0], -(steps - speed).sum(), rtol=1e-4)


def test_which_equation_it_is():
    f, start = network()

    def words(optimizer):
        return limit_in_words(f, start, np.array([1.0]), 0.001, optimizer)

    assert words(optax.sgd) == ""
    assert "mu and nu follow at once" in words(lambda h: optax.adam(h, eps=0.1))
    assert "in the parameters and mu and nu" in words(lambda h: optax.adam(h, 1 - 9 * h, 1 - h))
    assert "3 steps make a period" in words(lambda h: optax.MultiSteps(optax.sgd(h), 3))


def test_a_comparison(tmp_path):
    """Distances of the order of one, predictions within their errors, saved and read again."""
    f, start = network()
    found = gf_jax.compare(
        *(f, start),
        step_size=0.01,
        ratios=(2, 4),
        iterations=100,
        optimizer=lambda h: optax.adam(h, 1 - 10 * h, 1 - h),
        arithmetic="float64",
        label="tanh",
    )
    assert abs(found.order[-1] - 1) < 0.05
    assert (np.abs(found.predicted - found.distance) <= found.predicted_error)[1:].all()
    np.testing.assert_allclose(found.predicted[-1], found.distance[-1], rtol=0.03)
    assert "tanh, an optimiser of its own, 100 iterations to time 1" in str(found)
    assert "steps follow an equation in the parameters and mu and nu" in found.verdict
    assert "its continuous limit" in found.verdict
    found.save(tmp_path / "found.npz")
    again = gf_jax.load(tmp_path / "found.npz")
    assert (again.verdict, again.run.method) == (found.verdict, found.run.method)


def test_kinks_are_crossed_without_a_prediction():
    """The limit is solved across kinks; gaps are not predicted, which is said."""
    f, start = network()
    found = gf_jax.compare(
        lambda p: f({"first": jax.nn.relu(p["first"]), "second": p["second"]}),
        *(start,),
        step_size=0.01,
        ratios=(4, 64),
        iterations=60,
        optimizer=lambda h: optax.adam(h, 1 - 10 * h, 1 - h),
        arithmetic="float64",
    )
    assert found.kinks
    assert abs(found.order[-1] - 1) < 0.15  # runs meet kinks at phases of their own
    assert np.isnan(found.predicted).all()
    assert "No gaps are predicted" in found.verdict


def test_a_critical_point_and_what_moves_it_all_the_same():
    """Where the gradient is zero momentum stands still, and decoupled decay does not."""

    def f(w):
        return jnp.sum((w**2 - 1) ** 2)

    options = {"step_size": 0.01, "iterations": 50, "ratios": (2,)}
    still = gf_jax.compare(f, jnp.ones(2), **options, optimizer=gf_jax.heavy_ball(0.5))
    assert "critical point" in still.verdict
    decays = gf_jax.compare(
        f,
        jnp.ones(2),
        **options,
        optimizer=lambda h: optax.chain(optax.add_decayed_weights(0.1), optax.sgd(h)),
    )
    assert "critical point" not in decays.verdict
    assert np.isfinite(decays.distance).all()


def drawn(random):
    """An optimiser drawn from parts that occur, in text; each has a limit, or is refused."""
    decay = random.choice(["0.5", "0.8", "0.9", "1 - h", "1 - 5 * h"])
    other = random.choice(["0.7", "0.9", "1 - h", "1 - 3 * h"])
    parts = {
        "optax.trace({decay})": "0.2",
        "optax.trace({decay}, nesterov=True)": "0.2",
        "optax.ema({decay})": "1",
        "optax.ema({decay}, debias=False)": "1",
        "optax.scale_by_adam({decay}, {other}, eps=0.1)": "1",
        "optax.scale_by_adam({decay}, {other}, eps=0, eps_root=0.05)": "1",
        "optax.scale_by_rms({decay}, eps=0.1)": "1",
        "optax.add_decayed_weights(0.1)": "1",
        "optax.clip_by_global_norm(0.5)": "1",
        "optax.scale_by_trust_ratio()": "0.3",
        "optax.scale_by_schedule(lambda count: 1 / (1 + count * h))": "1",
        "optax.apply_every(2)": "0.5",
    }
    chosen = random.choice(list(parts), size=random.integers(1, 4), replace=False)
    scale = " * ".join(["h", *(parts[each] for each in chosen)])
    chain = ", ".join(each.format(decay=decay, other=other) for each in chosen)
    return f"lambda h: optax.chain({chain}, optax.scale(-{scale}))"


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 15))]
)
def test_drawn_optimizers_are_right_or_told(seed):
    """Distances in float64 loops from the limit are of order one and within the errors told."""
    text = drawn(np.random.default_rng(seed))
    f, start = network()
    with contextlib.suppress(LimitError):
        found = gf_jax.compare(
            *(f, start),
            step_size=0.004,
            ratios=(4, 16),
            iterations=250,
            snapshots=[50, 125, 250],
            optimizer=eval(text),
            arithmetic="float64",
        )
        check_drawn(found, text)


def check_drawn(found, text):
    off = np.abs(found.predicted - found.distance)
    # The finest runs are the nearest to where the expansion holds.
    assert (off <= found.predicted_error + found.resolution)[:, -1].all() or found.doubts, text
    slope = np.log(found.distance[-1, 1] / found.distance[-1, 2]) / np.log(4)
    assert abs(slope - 1) < 0.25 or found.doubts, (text, found.distance)


@pytest.mark.long
def test_the_figure_of_adam(tmp_path, capsys):
    path = tmp_path / "adam.png"
    adam.main([f"--figure={path}"])
    assert path.stat().st_size > 20_000
    said = capsys.readouterr().out.splitlines()
    near, far = (float(line.split(": ")[1].split()[0]) for line in said)
    assert near < far / 5


@pytest.mark.long
def test_the_table_of_orders(capsys, monkeypatch):
    """Of one row; the others are tested above."""
    monkeypatch.setattr(orders_page, "OPTIMIZERS", {"sgd": OPTIMIZERS["sgd"]})
    orders_page.main()
    assert "gradient flow" in capsys.readouterr().out


@pytest.mark.real_data
def test_gaps_on_mnist_are_within_what_is_told(mnist_dir, capsys):
    gaps.main([f"--data_dir={mnist_dir}", "--only=decoupled"])
    row = next(line for line in capsys.readouterr().out.splitlines() if "decoupled" in line)
    *shares, cost = row.split()[-5:]
    share, off, told, within = (float(text[:-1]) for text in shares)
    assert 0 < int(cost.replace(",", "")) < 20_000
    assert within == 100
    assert 0.01 < share < 1
    assert off < min(5, told)


@pytest.mark.parametrize("epsilon", [1e-2, 1e-3])
def test_what_is_told_holds_where_the_expansion_does_not(epsilon):
    """Behind the root of an average that is zero at first runs stand apart by the root of h."""
    base, rate = 1e-3, 100.0  # of forgetting: 0.9 at the base step size
    step_sizes, times = base / np.array([1, 4, 20]), base * np.array([32, 100])
    told = gf_jax.predict(
        *(jnp.sum, jnp.ones(1), times, step_sizes),
        optimizer=lambda h: optax.rmsprop(h, 1 - rate * h, eps=epsilon, eps_in_sqrt=False),
    )

    def velocity(root):
        """With the root of the time, in which it is smooth."""
        return 2 * root / (np.sqrt(-np.expm1(-rate * root**2)) + epsilon)

    limit = np.array([integrate.quad(velocity, 0, np.sqrt(time))[0] for time in times])
    assert (np.abs(1 - told.flow.params[:, 0] - limit) <= told.flow.error).all()
    for lane, h in enumerate(step_sizes):
        average = 1 - (1 - rate * h) ** np.arange(1, round(times[-1] / h) + 1)
        moved = np.cumsum(h / (np.sqrt(average) + epsilon))[np.round(times / h).astype(int) - 1]
        off = np.abs(told.to_flow[:, lane] - np.abs(moved - limit))
        assert (off <= told.to_flow_error[:, lane]).all()
        assert (off > 0.1 * told.to_flow[:, lane]).all()  # the case that this is about


def in_time(h):
    return optax.adam(h, b1=1 - 10 * h, b2=1 - h)


def test_gaps_hang_on_no_tolerance(monkeypatch):
    """The limit is solved as well as gaps need it: solved far better, they are the same."""
    f, start = network()
    found = []
    for of_limit, of_deviation in ((None, None), (1e-8, 1e-6)):
        if of_limit is not None:
            monkeypatch.setattr(prediction, "LIMIT_TOLERANCE", of_limit)
            monkeypatch.setattr(prediction, "DEVIATION_TOLERANCE", of_deviation)
        found.append(gf_jax.predict(f, start, [0.05, 0.1], [1e-3, 5e-4], optimizer=in_time))
    usual, exact = found
    assert usual.flow.statistics.steps < 0.7 * exact.flow.statistics.steps
    np.testing.assert_allclose(usual.to_base, exact.to_base, rtol=2e-3)
    np.testing.assert_allclose(usual.to_base_error, exact.to_base_error, rtol=0.3)
    assert np.all(np.abs(usual.to_base - exact.to_base) < 0.1 * exact.to_base_error + 1e-300)
