import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gf_jax
from gf_jax.program import compiling
from gf_jax.program.compiling import Speed


@pytest.fixture
def forgetful():
    compiling._known.cache_clear()
    yield
    compiling._known.cache_clear()


def test_options_that_xla_does_not_know_are_left_out(monkeypatch, forgetful):
    wanted = {"xla_no_such_option": 1, **compiling.OPTIONS[Speed.QUICKEST]}
    monkeypatch.setitem(compiling.OPTIONS, Speed.QUICKEST, wanted)
    assert compiling.jit(lambda x: x + 1, speed=Speed.QUICKEST)(1.0) == 2
    known = compiling._known("cpu", Speed.QUICKEST)
    assert "xla_no_such_option" not in known
    assert known["xla_backend_optimization_level"] == 0


def test_on_other_devices_nothing_is_asked_of_the_compiler(forgetful):
    assert compiling._known("gpu", Speed.QUICK) is None


def test_what_takes_long_is_compiled_to_be_fast():
    few, many = jnp.ones((20, 4)), jnp.ones((4000, 4))
    programs = [
        gf_jax.prepare(lambda w, x=x: jnp.sum((x @ w) ** 2), jnp.ones(4)) for x in (few, many)
    ]
    small, large = (program.pure for program in programs)
    assert (small.flow_speed, large.flow_speed) == (Speed.QUICKEST, Speed.FULL)
    assert small.speed(compiling.CHEAP) == Speed.QUICKEST
    assert small.speed(compiling.CHEAP + 1) == large.speed(compiling.CHEAP // 2) == Speed.FULL


X = jax.random.normal(jax.random.key(0), (16, 4))
NOISE = jax.random.gumbel(jax.random.key(1), (16, 4))


@pytest.mark.parametrize(
    "combine",
    [
        lambda s: jnp.max(s, axis=1),
        lambda s: jnp.where(s == s.max(axis=1, keepdims=True), s, 0.1 * s),
        lambda s: jnp.sort(s, axis=1)[:, 1],
        lambda s: jax.lax.cummax(s, axis=1),
        lambda s: jax.nn.softmax(s, axis=1),
        lambda s: jnp.maximum(s, s[:, ::-1]),
        jax.nn.relu,
    ],
    ids=["max", "equal", "sort", "cummax", "softmax", "maximum", "relu"],
)
def test_a_value_is_equal_to_itself_however_fast_it_was_compiled(combine):
    """As XLA does not see to at its lowest level: a sum there is fused, or not, as it comes."""

    def f(w):
        return jnp.sum(combine((X * w + NOISE) / 0.7) ** 2)

    points = jnp.array([0.3, -0.2, 0.5, 0.1]) + 0.013 * np.arange(20)[:, None]
    pure = gf_jax.prepare(f, points[0])
    slope = compiling.jit(pure.pure.gradient, speed=pure.pure.flow_speed)
    for point in points:
        np.testing.assert_allclose(slope(pure.data, point), jax.grad(f)(point), rtol=1e-3)


def test_large_problems_are_compiled_as_ever(monkeypatch):
    asked = []

    def noted(function, *, speed, **options):
        asked.append(speed)
        return jax.jit(function, **options)

    monkeypatch.setattr("gf_jax.descent.segments.jit", noted)
    for size, iterations in ((7, 10), (7, 100_000), (700_000, 10)):
        x = jnp.ones((size, 3))
        next(
            gf_jax.resumable_segments(
                lambda w, x=x: jnp.sum((x @ w) ** 2),
                jnp.zeros(3),
                gf_jax.Schedule(1e-9, (2,), iterations, segments=100 if iterations > 10 else 1),
            )
        )
    assert asked == [Speed.QUICKEST, Speed.FULL, Speed.FULL]


def test_programs_are_given_up_where_a_process_has_many_mappings(monkeypatch, tmp_path):
    def study(shift):
        w, times = jnp.arange(3.0), [0.1]
        return gf_jax.gradient_flow(lambda w: jnp.sum((jnp.tanh(w) - shift) ** 2), w, times)

    def mappings():
        return compiling.MAPPINGS.read_text().count("\n")

    if not compiling.MAPPINGS.exists():
        pytest.skip("only Linux limits the mappings of a process, and lists them")
    few, first = mappings(), study(0.1)
    many = mappings()
    assert many > few
    limit = tmp_path / "limit"
    limit.write_text(str(int((many + 20) / compiling.CROWDED)))
    monkeypatch.setattr(compiling, "MOST_MAPPINGS", limit)
    for shift in (0.2, 0.3, 0.4):
        study(shift)
    each = many - few  # that one study takes, and a little more, is all that was added
    assert mappings() < many + 1.5 * each
    again = study(0.1)
    np.testing.assert_array_equal(again.params, first.params)
