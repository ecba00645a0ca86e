"""Batches drawn anew at every step: their order, what many runs do together, and its prediction."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gf_jax
from gf_jax.descent import batches as drawing
from gf_jax.descent.batches import REPLACEMENT, SHUFFLED
from tests.conftest import WITH_FLOW, check_page

SIGMAS = 4.0  # a comparison of ten numbers fails once in two thousand seeds, and these are fixed


def zero(x):
    return 0.0 * x


def counted(x, index):
    """The gradient is a power of ten for each index: a run of step size 1 is a tally."""
    return -x * 10.0**index


def ran(f, start, batches, **options):
    defaults = {"step_size": 1.0, "ratios": (), "arithmetic": "float64"}
    return gf_jax.gradient_descent(f, start, batches=batches, **(defaults | options))


def quadratic(curvature):
    """½ λ x², and one of two examples whose gradients are off by 1 and −1."""

    def f(x):
        return 0.5 * curvature * x**2

    return f, lambda x, index: f(x) + x * (2.0 * index - 1)


@pytest.mark.parametrize("curvature", [1.0, 2.5])
@pytest.mark.parametrize("svag", [1, 2, 4, 8, 16])
def test_stationary_variance(curvature, svag):
    """s/(λ(2 − sλ/l)): of λ = 1 and s = 0.5 that is 1/3 for l = 1, and 1/4 for the equation."""
    (f, loss), size = quadratic(curvature), 0.5
    batches = gf_jax.Batches(loss, 2, REPLACEMENT, svag=svag, seed=svag)
    options = {"step_size": size, "iterations": 40, "snapshots": (20, 30, 40), "draws": 2000}
    # 20 steps on, what is left of the start is (1 - λs)^40 or less.
    squares = ran(f, jnp.array(0.0), batches, **options).snapshots[..., 0] ** 2
    # Of each draw the mean over times, which are not independent of each other.
    found = squares.mean(axis=0)
    error = found.std(ddof=1) / np.sqrt(len(found))
    exact = size / (curvature * (2 - size * curvature / svag))
    assert abs(found.mean() - exact) < SIGMAS * error
    assert error < 0.02 * exact


def test_steps_are_those_of_a_loop():
    """The mean gradient of the parts that the keys give, in NumPy; both halves of svag."""
    targets = np.random.default_rng(0).normal(size=(7, 3))

    def loss(x, index):
        return 0.5 * jnp.sum((x - jnp.asarray(targets)[index]) ** 2 * (1 + index))

    def f(x):
        return jax.vmap(lambda index: loss(x, index))(jnp.arange(7)).mean()

    for svag in (1, 3):
        batches = gf_jax.Batches(loss, 7, REPLACEMENT, size=2, svag=svag, seed=5)
        options = {"step_size": 0.1, "ratios": (2,), "iterations": 4, "draws": 3}
        run = ran(f, np.zeros(3), batches, **options)
        turns = drawing.first_turn(batches, (1, 2), (3, 2))
        turn, sampling = drawing.Turn(None, turns.key[1, 1]), drawing.sampling_of(batches)

        def slope(x, turn, sampling=sampling):
            indices, turn = drawing.take(sampling, turn)
            rows = [(x - targets[index]) * (1 + index) for index in np.asarray(indices)]
            return np.mean(rows, axis=0), turn

        x, more = np.zeros(3), np.sqrt(2 * svag - 1)
        for _ in range(8 * svag):
            first, turn = slope(x, turn)
            if svag > 1:
                second, turn = slope(x, turn)
                first = (1 + more) / 2 * first + (1 - more) / 2 * second
            x = x - 0.05 / svag * first
        np.testing.assert_allclose(run.snapshots[-1, 1, 1], x, rtol=1e-12)  # float64


def test_lanes_and_draws_are_independent_and_uniform():
    draws, options = 500, {"iterations": 12, "ratios": (2, 4), "draws": 500}
    batches = gf_jax.Batches(lambda x, index: -x * index, 5, REPLACEMENT, size=3, seed=1)
    run = ran(zero, jnp.array(0.0), batches, **options)
    sums = np.diff(run.snapshots[..., 0], axis=0, prepend=0.0) * 3  # of three indices, 0 to 4
    variance = 3 * (25 - 1) / 12
    error = np.sqrt(variance / sums.size)
    assert abs(sums.mean() - 6) < SIGMAS * error
    of_lanes = run.snapshots[-1]
    correlations = np.corrcoef(of_lanes.T)[np.triu_indices(3, 1)]
    assert (np.abs(correlations) < SIGMAS / np.sqrt(draws)).all()
    # Draws beside each other, and steps behind each other.
    for first, second in ((sums[:, :-1], sums[:, 1:]), (sums[:-1], sums[1:])):
        found = np.corrcoef(first.ravel(), second.ravel())[0, 1]
        assert abs(found) < SIGMAS / np.sqrt(first.size)


def test_a_run_draws_the_same_whatever_runs_beside_it():
    batches = gf_jax.Batches(lambda x, index: -x * index, 64, REPLACEMENT, seed=7)
    options = {"iterations": 6, "ratios": (2, 4), "draws": 3}
    run = ran(zero, jnp.array(0.0), batches, **options).snapshots
    fewer = ran(zero, jnp.array(0.0), batches, **options | {"ratios": (4,), "draws": 2}).snapshots
    np.testing.assert_array_equal(run[:, :2, [0, 2]], fewer)
    single = ran(zero, jnp.array(0.0), batches, **options | {"draws": None}).snapshots
    np.testing.assert_array_equal(run[:, 0], single)
    starts = ran(zero, jnp.zeros(3), batches, **options | {"draws": None}, starts=True).snapshots
    np.testing.assert_array_equal(run, starts)
    other = ran(zero, jnp.array(0.0), batches._replace(seed=8), **options).snapshots
    assert (other != run).any()


def test_shuffled_epochs_have_every_part_once_in_any_order():
    draws = 6000
    batches = gf_jax.Batches(counted, 3, SHUFFLED, seed=2)
    run = ran(zero, jnp.array(0.0), batches, iterations=6, draws=draws).snapshots[..., 0]
    steps = np.diff(run, axis=0, prepend=0.0)
    orders = [steps[:3].T, steps[3:].T]
    for order in orders:  # 6 of them, each a sixth of the draws: χ² of 5 has mean 5, deviation 3.2
        found, counts = np.unique(order, axis=0, return_counts=True)
        assert (np.sort(found, axis=1) == [1, 10, 100]).all()
        expected = draws / 6
        assert len(counts) == 6
        assert (np.square(counts - expected) / expected).sum() < 5 + SIGMAS * 3.2
    # The second epoch is no repetition of the first.
    same = (orders[0] == orders[1]).all(axis=1).mean()
    assert abs(same - 1 / 6) < SIGMAS * np.sqrt(5 / 36 / draws)
    run = ran(zero, jnp.array(0.0), gf_jax.Batches(counted, 6, SHUFFLED, size=2), iterations=6)
    np.testing.assert_array_equal(run.snapshots[2::3, 0], np.array([1, 2]) * 111111 / 2)


@pytest.mark.parametrize(
    ("order", "svag", "draws"), [(REPLACEMENT, 1, 3), (REPLACEMENT, 2, None), (SHUFFLED, 1, 3)]
)
def test_a_resumed_run_has_the_same_bits(order, svag, draws):
    f, loss = quadratic(1.3)
    batches = gf_jax.Batches(lambda x, i: loss(x, i % 2), 8, order, size=2, svag=svag, seed=4)
    schedule = gf_jax.Schedule(0.1, (3,), 12, segments=4)
    options = {"batches": batches, "draws": draws}

    def parts(**more):
        made = gf_jax.resumable_segments(f, jnp.array(1.0), schedule, **options, **more)
        return [(part, [np.array(leaf) for leaf in state]) for part, state in made]

    whole = parts()
    rest = parts(resume_from=(6, whole[1][1]))
    joined = gf_jax.join([part for part, _ in (*whole[:2], *rest)])
    once = gf_jax.gradient_descent(
        f, jnp.array(1.0), step_size=0.1, ratios=(3,), iterations=12, **options
    )
    for found in (gf_jax.join([part for part, _ in whole]), joined):
        jax.tree.map(np.testing.assert_array_equal, found, once)


def test_the_gradient_of_a_draw_is_one_of_the_mean():
    """Gradients of single examples would take 10,000 numbers each, 40 MB in all."""
    inputs, needed = jnp.ones((4, 100)), []

    def loss(w, index):
        return jnp.square(jnp.tanh(w @ inputs[index])).sum()

    segments = gf_jax.descent_segments(
        lambda w: loss(w, 0),
        jnp.ones((100, 100)),
        gf_jax.Schedule(0.1, (), 2),
        batches=gf_jax.Batches(loss, 4, REPLACEMENT, size=1000),
        check_memory=needed.append,
    )
    next(segments)
    assert needed[0].device < 10e6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"order": "random"}, "batches: order is 'random'; accepted are cyclic, replacement, shuf"),
        ({"size": 0}, "batches: size is 0; accepted is a positive integer"),
        ({"size": 2.0}, "batches: size is 2.0; accepted is a positive integer"),
        ({"order": "cyclic", "size": 2}, "batches: size is 2; in cyclic order a part is a batch"),
        ({"order": SHUFFLED, "size": 4}, "batches: size is 4; shuffled, accepted are divisors"),
        ({"svag": 0}, "batches: svag is 0; accepted is a positive integer"),
        ({"order": SHUFFLED, "svag": 2}, "batches: svag is 2, which takes independent batches"),
        ({"seed": -1}, "batches: seed is -1; accepted is an integer from 0"),
        ({"seed": 2**32}, "batches: seed is 4294967296; accepted is an integer from 0"),
        ({"number": 0}, "batches: number is 0; accepted is a positive integer"),
    ],
)
def test_wrong_batches_are_refused(changes, message):
    batches = gf_jax.Batches(counted, 6, REPLACEMENT)._replace(**changes)
    with pytest.raises(ValueError, match=message):
        ran(zero, jnp.array(0.0), batches, iterations=1)


@pytest.mark.parametrize(
    ("order", "options", "message"),
    [
        (REPLACEMENT, {"draws": 0}, "draws: got 0; accepted is a positive integer"),
        (REPLACEMENT, {"draws": 2.5}, "draws: got 2.5; accepted is a positive integer"),
        (REPLACEMENT, {"draws": 2, "starts": True}, "draws: got 2 beside starts; accepted is one"),
        ("cyclic", {"draws": 2}, "draws: got 2, and nothing is drawn, so that all runs would be"),
    ],
)
def test_wrong_draws_are_refused(order, options, message):
    with pytest.raises(ValueError, match=message):
        ran(zero, jnp.zeros(2), gf_jax.Batches(counted, 6, order), iterations=1, **options)


def test_draws_need_batches():
    with pytest.raises(ValueError, match="draws: got 2, and nothing is drawn"):
        gf_jax.gradient_descent(
            zero, jnp.array(0.0), step_size=1.0, ratios=(), iterations=1, draws=2
        )


# Two examples of a unit with tanh and one weight, of which all paths can be followed.
RATES, WANTED, BEGIN, END = np.array([1.5, 0.7]), np.array([-0.5, 0.8]), 1.2, 1.0


def of_example(x, index):
    return 0.5 * (jnp.tanh(jnp.asarray(RATES)[index] * x) - jnp.asarray(WANTED)[index]) ** 2


def of_both(x):
    return (of_example(x, 0) + of_example(x, 1)) / 2


def all_paths(steps):
    """Mean and variance over every sequence of examples, each as likely."""
    x = np.array([BEGIN])
    for _ in range(steps):
        t = np.tanh(RATES[:, None] * x)
        x = (x - END / steps * (t - WANTED[:, None]) * (1 - t**2) * RATES[:, None]).ravel()
    return x.mean(), x.var()


def equations(svag=1):
    """Flow, C and m at the end, by a solver of their own: θ, C, m with Σ of one example."""
    with jax.enable_x64(True):
        first, second, third = (jax.grad(of_both), jax.grad(jax.grad(of_both)), None)
        third = jax.grad(second)

        def slope(y):
            z, c, m = y
            each = jnp.stack([jax.grad(of_example)(z, i) for i in (0, 1)])
            g, h = first(z), second(z)
            return jnp.stack(
                [-g, -2 * h * c + each.var(), -h * m - h * g / (2 * svag) - third(z) * c / 2]
            )

        def step(_, y, length=END / 500):
            a = slope(y)
            b = slope(y + length / 2 * a)
            c = slope(y + length / 2 * b)
            d = slope(y + length * c)
            return y + length / 6 * (a + 2 * b + 2 * c + d)

        return np.asarray(jax.lax.fori_loop(0, 500, step, jnp.array([BEGIN, 0.0, 0.0])))


def test_what_the_equations_leave_out_is_of_second_order():
    flow, c, m = equations()
    off = []
    for steps in (4, 8, 16):
        size, (mean, variance) = END / steps, all_paths(steps)
        off.append([abs(mean - flow - size * m), abs(variance - size * c)])
    orders = np.log2(np.array(off)[:-1] / np.array(off)[1:])
    np.testing.assert_allclose(orders[-1], 2, atol=0.15)


@pytest.mark.parametrize("svag", [1, 4])
def test_predictions_solve_the_equations(svag):
    flow, c, m = equations(svag)
    size = 0.01
    found = gf_jax.predict_ensemble(
        *(of_both, jnp.array(BEGIN), [END], [size]),
        batches=gf_jax.Batches(of_example, 2, REPLACEMENT, svag=svag),
        samples=2000,
    )
    np.testing.assert_allclose(found.flow.params, flow, rtol=1e-6)
    slope, bend = jax.grad(of_both), jax.grad(jax.grad(of_both))
    exact = {
        "spread": np.sqrt(size * c),
        "mean_to_flow": size * abs(m),
        "loss_difference": size * (slope(flow) * m + bend(flow) * c / 2),
    }
    for name, value in exact.items():
        estimate = getattr(found.ensemble, name)
        assert abs(estimate.value - value) < estimate.within(SIGMAS), name
        if svag == 1:  # else both parts of m nearly cancel
            assert estimate.standard_error < 0.1 * abs(value)


def small_network():
    """The squared error of a tanh network on 12 examples, that of one, and a start."""
    generator = np.random.default_rng(3)
    inputs, targets = generator.normal(size=(12, 3)), generator.normal(size=12)

    def loss(params, index):
        row, wanted = jnp.asarray(inputs)[index], jnp.asarray(targets)[index]
        return (jnp.tanh(row @ params["first"]) @ params["second"] - wanted) ** 2

    def f(params):
        return jax.vmap(lambda index: loss(params, index))(jnp.arange(12)).mean()

    start = {"first": generator.normal(size=(3, 2)), "second": generator.normal(size=2)}
    return f, loss, start


@pytest.mark.parametrize("order", [REPLACEMENT, SHUFFLED])
def test_a_network_does_what_is_predicted(order):
    f, loss, start = small_network()
    batches = gf_jax.Batches(loss, 12, order, size=2, seed=1)
    options = {"step_size": 0.08, "ratios": (2, 4), "iterations": 25, "snapshots": (5, 15, 25)}
    run = ran(f, start, batches, **options, draws=1000)
    told = gf_jax.predict_ensemble(
        *(f, start, run.snapshot_times, run.step_sizes), batches=batches, samples=200
    )
    flow = told.flow
    found = gf_jax.measure_ensemble(
        *(run.snapshots, run.metrics.loss[run.snapshot_iterations]),
        *(flow.params, flow.loss, flow.error),
    )
    for name, expected in (("spread", 0.5), ("mean_to_flow", 1.0), ("loss_difference", 1.0)):
        measured, predicted = getattr(found, name), getattr(told.ensemble, name)
        noise = np.hypot(measured.standard_error, predicted.standard_error)
        allowed = SIGMAS * noise + measured.error + predicted.error
        assert (np.abs(measured.value - predicted.value) < allowed).all(), name
        if order == SHUFFLED:
            continue  # of which the spread has another order in every place of an epoch
        slope, error = measured.order(run.step_sizes)
        # What the leading order leaves out is up to a tenth of the largest step's.
        assert abs(slope[-1] - expected) < SIGMAS * error[-1] + 0.1


def test_errors_of_the_grid_are_told():
    """At first one step of the grid has to do: λ times its length is 0.5. Nothing else is off."""
    rates, times = np.array([1.0, 10.0]), np.array([0.05, 0.5, 1.0])

    def loss(x, index):
        return 0.5 * jnp.sum(rates * x**2) + jnp.sum(x * (2.0 * index - 1))

    found = gf_jax.predict_ensemble(
        *(lambda x: 0.5 * jnp.sum(rates * x**2), jnp.ones(2), times, [1e-9]),
        batches=gf_jax.Batches(loss, 2, REPLACEMENT),
        samples=4000,
    ).ensemble
    decays = np.exp(-rates * times[:, None])
    exact = np.sqrt(1e-9 * ((1 - decays**2) / (2 * rates)).sum(axis=1, keepdims=True))
    spread = found.spread
    assert (np.abs(spread.value - exact) < spread.within(SIGMAS)).all()
    # m is that of full batches, as the third derivative is 0: no sample has any noise.
    exact = 1e-9 * np.linalg.norm(0.5 * rates**2 * times[:, None] * decays, axis=1)[:, None]
    mean = found.mean_to_flow
    assert (mean.standard_error < 1e-6 * exact).all()
    off = np.abs(mean.value - exact)
    assert (off < mean.error).all()
    assert (mean.error < 0.1 * exact).all()


def test_few_draws_are_not_biased():
    """Five normal draws in two dimensions, four thousand times, around a mean apart by (0.3, 0)."""
    times, draws, apart = 4000, 5, 0.3
    stack = np.random.default_rng(0).normal((apart, 0), 1, (times, draws, 1, 2))
    found = gf_jax.measure_ensemble(
        *(stack, stack[..., 0], np.zeros((times, 2)), np.zeros(times), np.zeros(times))
    )
    assert abs(np.square(found.spread.value).mean() - 2) < SIGMAS * np.sqrt(2 / times)
    assert abs(found.loss_difference.value.mean() - apart) < SIGMAS / np.sqrt(draws * times)
    errors = found.loss_difference.standard_error
    assert abs(np.square(errors).mean() - 1 / draws) < 0.02  # 4 deviations are 0.0089
    # The root of a square that may be negative is biased; the square is not.
    more = np.random.default_rng(1).normal((apart, 0), 1, (50, 2000, 1, 2))
    mean = gf_jax.measure_ensemble(
        *(more, more[..., 0], np.zeros((50, 2)), np.zeros(50), np.zeros(50))
    ).mean_to_flow
    scatter = mean.value.std(ddof=1)
    assert abs(mean.value.mean() - apart) < SIGMAS * scatter / np.sqrt(50)
    assert 0.7 < mean.standard_error.mean() / scatter < 1.4  # 50 of them know it to a tenth


def test_orders_with_their_errors():
    sizes = np.array([0.1, 0.05, 0.025])
    estimate = gf_jax.Estimate(3 * sizes[None] ** 0.5, np.full((1, 3), 0.01), np.zeros((1, 3)))
    order, error = estimate.order(sizes)
    assert order == pytest.approx(0.5)
    # Three in a row: the slope is the difference of the ends' logarithms over log 4.
    ends = 0.01 / estimate.value[0, [0, 2]]
    assert error == pytest.approx(np.hypot(*ends) / np.log(4))
    unknown = gf_jax.Estimate(estimate.value, estimate.value, estimate.error)
    assert np.isnan(unknown.order(sizes)).all()


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        (
            {"order": SHUFFLED},
            {"step_sizes": [0.1, 0.3]},
            "times: got 1, between two steps of step size 0.3; accepted with shuffled batches are",
        ),
        ({"order": "cyclic"}, {}, "batches: their order is 'cyclic': they are not random, and"),
        ({"size": 0}, {}, "batches: size is 0; accepted is a positive integer"),
        (
            {"order": SHUFFLED, "svag": 2},
            {},
            "batches: size is 1 and svag 2; shuffled, accepted are divisors of their number, 2, an",
        ),
        ({}, {"samples": 1}, "samples: got 1; accepted is an integer from 2 on"),
        ({}, {"seed": -1}, "seed: got -1; accepted is an integer from 0"),
    ],
)
def test_what_is_not_predicted_is_said(changes, options, message):
    batches = gf_jax.Batches(of_example, 2, REPLACEMENT)._replace(**changes)
    options = {"step_sizes": [0.1], "batches": batches} | options
    with pytest.raises(ValueError, match=message):
        gf_jax.predict_ensemble(of_both, jnp.array(BEGIN), [END], **options)


def test_kinks_and_single_runs_are_not_predicted():
    batches = gf_jax.Batches(of_example, 2, REPLACEMENT)
    with pytest.raises(ValueError, match="f: has kinks; accepted for predictions of ensembles"):
        gf_jax.predict_ensemble(jnp.abs, jnp.array(1.0), [END], [0.1], batches=batches)
    with pytest.raises(ValueError, match="batches: their order is 'replacement', and runs are"):
        gf_jax.predict(of_both, jnp.array(BEGIN), [END], [0.1], batches=batches)
    with pytest.raises(ValueError, match="snapshots: of 1 draw; accepted are two draws or more"):
        gf_jax.measure_ensemble(
            *(np.zeros((1, 1, 1, 2)), np.zeros((1, 1, 1)), np.zeros((1, 2)), np.zeros(1)),
            np.zeros(1),
        )


def test_parts_have_to_be_of_f():
    batches = gf_jax.Batches(of_example, 2, REPLACEMENT)
    with pytest.raises(ValueError, match="batches: the mean gradient of the parts is off by"):
        gf_jax.predict_ensemble(
            *(lambda x: of_both(x) / 2, jnp.array(BEGIN), [END], [0.1]), batches=batches
        )


def test_a_loss_without_curvature_and_a_flow_that_ends():
    """Of f = x with noise of variance 1 the spread is √(s t); x' = x² is at 1/(1 - t)."""
    linear = gf_jax.Batches(lambda x, index: x * (2.0 * index), 2, REPLACEMENT)
    times = [0.0, 0.5, 1.0]
    found = gf_jax.predict_ensemble(
        *(lambda x: x, jnp.array(0.0), times, [0.01]), batches=linear, samples=500
    ).ensemble
    exact = np.sqrt(0.01 * np.array(times))[:, None]
    assert (np.abs(found.spread.value - exact) <= found.spread.within(SIGMAS)).all()
    assert (found.spread.error <= 1e-9).all()
    assert (found.mean_to_flow.value < 1e-9).all()
    ended = gf_jax.predict_ensemble(
        lambda x: -(x**3) / 3,
        *(jnp.array(1.0), [0.5, 2.0], [0.01]),
        batches=gf_jax.Batches(lambda x, i: -(x**3) / 3 + x * (i - 0.5), 2, REPLACEMENT),
    )
    assert not ended.flow.statistics.complete
    assert np.isnan(ended.ensemble.spread.value[1]).all()


RUN = ("--experiment=draws", *WITH_FLOW[:3], "--widths=4", "--snapshots=3", "--draws=16")


@pytest.mark.parametrize(
    ("flags", "verdict"),
    [
        ((), "Verdict: in batches of 10"),
        (("--order=shuffled", "--batch_size=20"), "Verdict: in shuffled batches of 20"),
    ],
)
def test_the_experiment(flags, verdict, invoke, tmp_path):
    folder = tmp_path / "run"
    status, out, err = invoke(*RUN, *flags, "--step_size=0.02", f"--output_dir={folder}")
    assert status == 0, err
    for text in ("16 runs with every step size", verdict, "Predicted from"):
        assert text in " ".join(out.split())
    assert "Not predicted" not in out
    summary = json.loads((folder / "summary.json").read_text())
    with np.load(folder / "draws.npz") as saved:
        assert saved["measured.spread.value"].shape == (3, 3)
        for lane, (side, name) in itertools.product(
            range(3), itertools.product(("measured", "predicted"), ("spread", "mean_to_flow"))
        ):
            for part in ("value", "standard_error", "error"):
                number = summary["runs"][lane][f"{side}_{name}"][part]
                assert number == pytest.approx(saved[f"{side}.{name}.{part}"][-1, lane])
    assert (folder / "figure.png").exists()
    check_page(folder)


def test_what_the_experiment_does_not_predict(invoke, tmp_path):
    folder = tmp_path / "run"
    status, out, err = invoke(*RUN, "--activation=relu", f"--output_dir={folder}")
    assert status == 0, err
    assert "Not predicted: the loss has kinks" in " ".join(out.split())
    with np.load(folder / "draws.npz") as saved:
        assert not [name for name in saved.files if name.startswith("predicted")]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--draws=1",), "--draws=1: accepted is an integer from 2 to 100000"),
        (("--noise_samples=1",), "--noise_samples=1: accepted is an integer from 2 on"),
        (("--batch_size=0",), "--batch_size=0: accepted is a positive integer"),
        (("--order=shuffled", "--batch_size=7"), "--batch_size: got 7; accepted are divisors"),
        (("--order=cyclic",), "--order=cyclic: unknown; accepted are replacement, shuffled"),
        (("--order=shuffled", "--svag=2"), "--svag=2: takes independent batches"),
        (
            ("--activation=relu", "--noise_samples=4"),
            "--noise_samples: are of a prediction, and nothing is",
        ),
        (("--momentum=0.5",), "--momentum: has no effect on --experiment=draws"),
    ],
)
def test_wrong_flags(flags, message, invoke):
    status, out, err = invoke(*RUN, *flags)
    assert (status, out) == (2, "")
    assert message in err
