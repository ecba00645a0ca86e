import jax
import jax.numpy as jnp
import pytest

import gf_jax
from gf_jax.program import compiling


@pytest.fixture
def forgetful():
    compiling._known.cache_clear()
    yield
    compiling._known.cache_clear()


def test_options_that_xla_does_not_know_are_left_out(monkeypatch, forgetful):
    monkeypatch.setattr(compiling, "QUICKLY", {"xla_no_such_option": 1, **compiling.QUICKLY})
    assert compiling.jit(lambda x: x + 1, quickly=True)(1.0) == 2
    known = compiling._known("cpu")
    assert "xla_no_such_option" not in known
    assert known["xla_backend_optimization_level"] == 0


def test_on_other_devices_nothing_is_asked_of_the_compiler(forgetful):
    assert compiling._known("gpu") is None


def test_what_takes_long_is_compiled_to_be_fast():
    few, many = jnp.ones((20, 4)), jnp.ones((4000, 4))
    programs = [
        gf_jax.prepare(lambda w, x=x: jnp.sum((x @ w) ** 2), jnp.ones(4)) for x in (few, many)
    ]
    small, large = (program.pure for program in programs)
    assert small.small
    assert not large.small
    assert small.brief(compiling.CHEAP)
    assert not small.brief(compiling.CHEAP + 1)
    assert not large.brief(compiling.CHEAP // 2)


def test_large_problems_are_compiled_as_ever(monkeypatch):
    asked = []

    def noted(function, *, quickly, **options):
        asked.append(quickly)
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
    assert asked == [True, False, False]
