"""Losses as users write them: what is claimed of each holds by an independent reference."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gf_jax
from tests.losses import CASES
from tests.losses.cases import KEY, START, drawn, known, mean_square, outcome, x, y
from tests.reference_flow import judged, reference

# One of every kind: draws, kinks, stopped gradients, stiffness, points of no gradient, guards.
QUICK = {
    "dropout_by_bernoulli",
    "zeros_before_relu",
    "half_stopped",
    "rates_over_eight_decades",
    "loss_of_zero",
    "critical_point",
    "where_of_log_and_line",
    "where_with_other_constants",
    "lasso",
}
LONG = {
    "dropout_of_flax_linen",
    "zeros_before_maximum",
    "simsiam",
    "jitted_with_numpy_arrays",
    "masked_attention",
    "segment_max",
    "relu_network_of_twenty_steps_0",
    "equation_by_odeint",
    "lstm_with_float32_state",
    "tangent_that_is_not_the_derivative",
}
NAMED = {case.name: case for case in CASES}
SHORT = {"step_size": 0.05, "iterations": 10, "ratios": (2,)}
assert set(NAMED) >= QUICK | LONG


def parameters():
    for case in CASES:
        slow = pytest.mark.long if case.name in LONG else pytest.mark.thorough
        yield pytest.param(case, id=case.name, marks=() if case.name in QUICK else slow)


def also_long(*values):
    """Values that what stands beside them covers in part."""
    return [pytest.param(value, marks=pytest.mark.long) for value in values]


@pytest.mark.parametrize("case", list(parameters()))
def test_what_is_claimed_of_a_loss_holds(case):
    word, why = outcome(case.make(), case.options)
    assert word in case.accepted, f"{word}: {why}"


PLAIN = drawn(lambda w, x, y: mean_square(x @ w - y), START, x=x, y=y)


# Values that were found by hand, with steps of which the flow's are a twentieth.
@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("dropout_by_bernoulli", [3.0e-3, 1.5e-3, 6.1e-4, 3.0e-4]),
        ("half_stopped", [7.6e-3]),
        ("where_of_log_and_line", [8.7e-3, 4.3e-3]),
        ("rates_over_eight_decades", [2.7e-5, 1.3e-5]),
    ],
)
def test_the_reference_knows_the_values_found_by_hand(name, right):
    case = NAMED[name]
    loss, options = case.make(), case.options
    ratios = (1, *options.get("ratios", (2, 5, 10)))
    step_size, iterations = options["step_size"], options["iterations"]
    found = reference(loss.g, loss.data, loss.start, step_size, [iterations], ratios)
    shown = [float(f"{distance:.1e}") for distance in found.distance[0, : len(right)]]
    np.testing.assert_array_equal(shown, right)


def test_the_reference_knows_a_quadratic():
    rates, times = np.array([1.0, 4.0]), np.array([0.4, 1.0])
    found = reference(
        lambda w, rates: jnp.sum(rates * w**2) / 2, rates, jnp.ones(2), 0.1, [4, 10], (1, 2)
    )
    for lane, step_size in enumerate((0.1, 0.05)):
        runs = (1 - step_size * rates) ** np.round(times / step_size)[:, None]
        exact = np.linalg.norm(runs - np.exp(-rates * times[:, None]), axis=1)
        np.testing.assert_allclose(found.distance[:, lane], exact, rtol=1e-7)
    assert (found.error < 1e-8).all()


def test_the_reference_slides_along_a_kink():
    """To |w| + w²/2 from 0.3 the flow comes at time log(1.3), and stays."""
    found = reference(
        lambda w, _: jnp.abs(w) + w**2 / 2, (), jnp.array(0.3), 0.01, [10, 50, 100], (1,)
    )
    times = np.array([0.1, 0.5, 1.0])
    exact = 0.3 - np.maximum(1.3 * np.exp(-times) - 1, 0)
    assert (np.abs(found.travelled - exact) <= found.error + 1e-8).all()  # of float32: 0.3


def test_the_reference_crosses_a_jump_of_the_gradient():
    """To (w - 4.2)² below zero, and to (w - 2.2)² above it."""
    crossed = np.log(4.7 / 4.2) / 2
    for time in (0.1, 0.15):
        found = reference(
            lambda w, _: jnp.sum((w - jnp.where(w > 0, 2.2, 4.2)) ** 2),
            *((), jnp.array(-0.5), 0.05, [round(time / 0.05)], (1,)),
        )
        exact = 0.5 + 2.2 * (1 - np.exp(-2 * (time - crossed)))
        assert abs(found.travelled[0] - exact) <= found.error[0]


@pytest.fixture
def untouched(monkeypatch):
    """Fails if JAX's caches are cleared or its configuration changes."""
    monkeypatch.setattr(jax, "clear_caches", lambda: pytest.fail("JAX's caches were cleared"))
    before = dict(jax.config.values)
    yield
    assert dict(jax.config.values) == before


def test_a_jitted_loss_works_afterwards(untouched):
    inputs, targets = np.random.default_rng(0).normal(size=(16, 4)), np.linspace(-1, 1, 16)
    counts = np.arange(16) % 3
    kept = [array.copy() for array in (inputs, targets, counts)]
    f = jax.jit(lambda w: mean_square(inputs @ w - targets + counts))
    before = f(START)
    gf_jax.compare(f, START, **SHORT)
    assert f(START) == before
    assert jnp.isfinite(jax.grad(f)(START + 1)).all()
    assert jnp.isfinite(jax.vmap(f)(jnp.ones((3, 4)))).all()
    for array, copy in zip((inputs, targets, counts), kept, strict=True):
        np.testing.assert_array_equal(array, copy)
        assert array.dtype == copy.dtype


def test_a_type_error_of_the_loss_is_told(untouched):
    def f(w):
        return mean_square(x @ w - y) + "one"

    with pytest.raises((TypeError, ValueError), match=r"str|f:"):
        gf_jax.compare(f, START, **SHORT)


def test_a_loss_is_studied_again_as_before(untouched):
    first, second = (gf_jax.compare(PLAIN.f, START, **SHORT) for _ in range(2))
    np.testing.assert_array_equal(first.distance, second.distance)
    np.testing.assert_array_equal(first.predicted, second.predicted)


def check(loss, **options):
    word, why = outcome(loss, {**SHORT, **options})
    assert word == "right", f"{word}: {why}"


@pytest.mark.parametrize(
    "options",
    [
        {"segments": 5},
        {"ratios": [3]},
        {"arithmetic": "float64"},
        *also_long({"snapshots": [1, 3]}, {"snapshots": (10,)}),
        *also_long({"step_size": np.float32(0.05)}, {"iterations": np.int64(10)}),
    ],
    ids=str,
)
def test_options_in_the_forms_that_people_give(options):
    check(PLAIN, **options)


def test_one_ratio():
    found = gf_jax.compare(PLAIN.f, START, **{**SHORT, "ratios": 2})
    assert found.step_sizes.tolist() == [0.05, 0.025]


def of_leaves(start):
    """A loss of parameters in a form of the user's own."""

    def body(p, x, y):
        w = jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(p)])
        return mean_square(x @ w - y)

    return drawn(body, start, x=x, y=y)


@pytest.mark.parametrize(
    "start",
    [
        {"w": START, "empty": (), "nothing": None},
        [0.3, -0.2, 0.5, 0.1],
        *also_long(
            np.array([0.3, -0.2, 0.5, 0.1]),
            [np.float32(0.3), jnp.array(-0.2), np.array([0.5, 0.1], np.float32)],
            {"w": START, "none_at_all": jnp.zeros((0, 3))},
            (START[:2], [{"b": START[2:]}]),
        ),
    ],
    ids=["empty", "python_floats", "numpy_float64", "scalars", "no_entries", "nested"],
)
def test_params_of_all_forms(start):
    check(of_leaves(start))


def test_params_committed_to_a_device():
    check(of_leaves(jax.device_put(START, jax.devices()[0])))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, *also_long(jnp.float16)])
def test_params_of_half_precision(dtype):
    word, why = outcome(of_leaves(START.astype(dtype)), SHORT)
    assert word in ("right", "told"), why


@pytest.mark.parametrize(
    "start",
    [
        {"w": START.astype(complex)},
        {},
        None,
        {"w": jnp.array([jnp.nan, 1, 2, 3])},
    ],
    ids=["complex", "nothing", "none", "nan"],
)
def test_params_that_cannot_be_are_told_in_a_line(start):
    with pytest.raises(ValueError, match=r"^params\b") as told:
        gf_jax.compare(lambda p: mean_square(x @ p["w"].real - y), start, **SHORT)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "f",
    [
        lambda w: x @ w - y,
        lambda w: jnp.sum(w > 0),
        lambda w: jnp.sum(w * 1j),
        lambda w: (jnp.sum(w), w),
        lambda w: None,
        lambda w: 1.0 * jax.lax.while_loop(lambda v: v.sum() < 9, lambda v: 2 * v, w).sum(),
        lambda w: jnp.sum(jnp.sqrt(w - w)),
        lambda w: jnp.sum(jnp.where(w > 9, jnp.sqrt(w - 9), w)),
        lambda w: jnp.sum(jnp.log(w - 1)),
    ],
    ids=["vector", "int", "complex", "pair", "none", "while", "root_of_zero", "unsafe_root", "nan"],
)
def test_losses_that_cannot_be_are_told_in_a_line(f):
    with pytest.raises(ValueError, match=r"^f: ") as told:
        gf_jax.compare(f, START, **SHORT)
    assert "\n" not in str(told.value)


def test_a_python_number_of_the_params_is_told():
    with pytest.raises((ValueError, TypeError, jax.errors.ConcretizationTypeError)):
        gf_jax.compare(lambda w: float(w.sum()) * w.sum(), START, **SHORT)


def test_a_transformation_without_a_step_size_is_refused():
    with pytest.raises(ValueError, match=r"^optimizer: got a transformation; accepted") as told:
        gf_jax.gradient_descent(PLAIN.f, START, **SHORT, optimizer=optax.sgd(1.0))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "name", ["half_stopped", *also_long("zeros_before_relu", "masked_attention")]
)
def test_strict_promotion(name):
    case = NAMED[name]
    loss = case.make()
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        found = gf_jax.compare(loss.f, loss.start, **case.options)
    word, why = judged(found, known(loss, case.options, found.run))
    assert word in case.accepted, why


@pytest.mark.parametrize(
    "name", ["dropout_by_bernoulli", *also_long("half_stopped", "zeros_before_relu")]
)
def test_under_x64(name):
    case = NAMED[name]
    with jax.enable_x64(True):
        word, why = outcome(case.make(), case.options)
    assert word in case.accepted, why


def test_float64_params_under_x64():
    with jax.enable_x64(True):
        start = jnp.array([0.3, -0.2, 0.5, 0.1], jnp.float64)
        draws = jax.random.normal(KEY, (16, 4), jnp.float64)
        loss = drawn(lambda w, draws: mean_square(draws @ w - y), start, draws=draws)
        check(loss, arithmetic="float64")


def found_or_refused(f, start, **options):
    """The comparison, or the line that refuses it."""
    try:
        return gf_jax.compare(f, start, **SHORT, **options), ""
    except ValueError as refused:
        return None, str(refused)


@pytest.mark.long  # the generator has loops, which compile for long
def test_a_draw_that_depends_on_params_is_no_data():
    """Its float64 form would draw otherwise, so there is no reference but honesty."""
    found, refused = found_or_refused(
        lambda w: mean_square(jax.random.gamma(KEY, jnp.exp(w)) - 1), START
    )
    assert "\n" not in refused
    assert found is None or found.doubts or found.run.reference.measured[-1].all()


def test_a_critical_point_is_told_at_once():
    loss = NAMED["critical_point"].make()
    found, refused = found_or_refused(loss.f, loss.start)
    said = refused if found is None else " ".join(found.doubts)
    assert "critical" in said or "gradient is zero" in said


def test_a_lane_that_diverges_leaves_the_others():
    loss = drawn(lambda w: jnp.sum(w**4), START * 4)
    found = gf_jax.compare(loss.f, loss.start, step_size=0.4, iterations=20, ratios=(20,))
    assert not np.isfinite(found.distance[-1, 0])
    right = known(loss, {"step_size": 0.4}, found.run)
    off = np.abs(found.distance[-1, 1] - right.distance[-1, 1])
    assert off <= 2 * found.resolution[-1, 1] + right.error[-1]


def test_constants_of_the_loss_that_change_meanwhile():
    """The study is of f as it was when it was called."""
    inputs = np.array(x)

    def f(w):
        return mean_square(inputs @ w - y)

    def spoil(what, share):
        inputs[:] = np.nan

    found = gf_jax.compare(f, START, **SHORT, progress=spoil)
    assert judged(found, known(PLAIN, SHORT, found.run))[0] == "right"


def test_callbacks_say_how_they_are_mapped():
    """Runs of several step sizes are one call, in which a callback is called for all of them."""

    def called(method):
        @jax.custom_vjp
        def outside(h):
            shape = jax.ShapeDtypeStruct(h.shape, h.dtype)
            return jax.pure_callback(lambda v: np.asarray(np.sin(v)), shape, h, vmap_method=method)

        outside.defvjp(lambda h: (outside(h), h), lambda h, g: (g * jnp.cos(h),))
        return lambda w: jnp.sum(outside(w) ** 2)

    options = {"step_size": 0.1, "ratios": (2,), "iterations": 5, "arithmetic": "float64"}
    with pytest.raises(ValueError, match=r"^f: JAX cannot compute it at several points .*vmap_m"):
        gf_jax.gradient_descent(called(None), START, **options)
    found = gf_jax.gradient_descent(called("sequential"), START, **options)
    plain = gf_jax.gradient_descent(lambda w: jnp.sum(jnp.sin(w) ** 2), START, **options)
    np.testing.assert_allclose(found.metrics.loss, plain.metrics.loss, rtol=1e-6)
