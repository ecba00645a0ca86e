"""The whole study in one call, on a problem whose descent and flow are known in closed form."""

import collections
import dataclasses
import pickle
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gf_jax

RATES = {"a": np.array([1.0, 4.0]), "b": np.array(0.5)}
START = {"a": jnp.array([1.0, -2.0]), "b": jnp.array(3.0)}
OPTIONS = {"step_size": 0.02, "iterations": 20, "ratios": (2, 5), "snapshots": 4}


def quadratic(params):
    terms = jax.tree.map(lambda rate, p: jnp.sum(rate * p**2) / 2, RATES, params)
    return sum(jax.tree.leaves(terms))


@pytest.fixture(scope="module")
def told():
    return []


@pytest.fixture(scope="module")
def found(told):
    return gf_jax.compare(
        quadratic,
        START,
        **OPTIONS,
        curvature=True,
        label="quadratic <b>",
        progress=lambda what, share: told.append((what, share)),
    )


def test_distances_are_those_of_the_closed_form(found):
    rates, start = np.array([1.0, 4.0, 0.5]), np.array([1.0, -2.0, 3.0])
    times = np.array([0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(found.times, times, rtol=1e-12)
    for lane, step_size in enumerate((0.02, 0.01, 0.004)):
        steps = np.round(times / step_size)[:, None]
        descent = (1 - step_size * rates) ** steps * start
        exact = np.linalg.norm(descent - np.exp(-rates * times[:, None]) * start, axis=1)
        # Snapshots are float32: weights of 3 with a spacing of 2.4e-7.
        np.testing.assert_allclose(found.distance[:, lane], exact, atol=5e-7)
        # First order in steps whose product with the largest rate is 0.08 and less.
        np.testing.assert_allclose(found.predicted[:, lane], exact, rtol=0.03)
    np.testing.assert_allclose(found.order, 1, atol=0.03)  # likewise
    np.testing.assert_allclose(found.curvature.lambda_max.value, 4, rtol=1e-6)
    assert found.kinks == 0


@pytest.mark.oldest
def test_it_prints_as_a_table_with_a_verdict(found):
    lines = str(found).splitlines()
    assert lines[0] == "quadratic <b>, 20 iterations to time 0.4"
    assert [line.split()[0] for line in lines[3:6]] == ["0.02", "0.01", "0.004"]
    assert f"{found.distance[-1, 1]:.3e} ± " in lines[4]
    assert found.verdict.startswith("Verdict: descent with step size 0.02 stays in sight of")
    assert found.verdict.split(". ")[0] in str(found)
    page = found._repr_html_()
    assert "quadratic &lt;b&gt;" in page
    assert page.count("<tr>") == 4


@pytest.mark.oldest
def test_it_draws_itself(found):
    panels = found.plot().axes
    assert len(panels) == 6
    assert panels[0].get_ylabel() == "loss"
    np.testing.assert_array_equal(panels[0].lines[0].get_ydata(), found.run.metrics.loss[:, 0])


def test_progress_of_every_part_is_told(found, told):
    parts = [what for what, _ in told]
    assert list(dict.fromkeys(parts)) == [
        *("descent", "prediction", "rounding", "gradient flow", "curvature")
    ]
    assert ("descent", 1.0) in told


@pytest.mark.oldest
def test_what_is_saved_is_read_again(found, tmp_path):
    found.save(tmp_path / "found.npz")
    again = gf_jax.load(tmp_path / "found.npz")
    assert str(again) == str(found)
    pairs = [(found, again)]
    while pairs:
        one, other = pairs.pop()
        if dataclasses.is_dataclass(one):
            pairs += [(vars(one)[name], vars(other)[name]) for name in vars(one)]
        elif isinstance(one, dict):
            assert sorted(one) == sorted(other)
            pairs += [(one[name], other[name]) for name in one]
        elif isinstance(one, tuple):
            assert type(one) is type(other)
            pairs += zip(one, other, strict=True)
        elif one is None or isinstance(one, str):
            assert one == other or (one, other) == ("quadratic <b>", "quadratic <b>")
        else:
            assert np.asarray(one).dtype == np.asarray(other).dtype
            np.testing.assert_array_equal(one, other)
    again.save(tmp_path / "again.npz")
    names = [zipfile.ZipFile(tmp_path / f"{n}.npz").namelist() for n in ("found", "again")]
    assert names[0] == names[1]


class Stranger:
    """Would leave a trace if it were unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("a stranger's object was unpickled",))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kinks": np.array([Stranger()], object)}, "never loaded"),
        ({"format": np.array(99)}, "newer gf_jax"),
        ({"run.iterations": None}, "iterations"),
        ({"run.metrics.loss": np.zeros((3, 3))}, "loss is float64 of shape"),
        ({"snapshots.a": np.zeros((4, 7, 2))}, "a is float64 of shape"),
        ({"flow.a": np.zeros((3, 2))}, "a is float64 of shape"),
        ({"run.network_label": np.array([255, 254], np.uint8)}, "utf-8"),
    ],
)
def test_files_of_strangers_do_no_harm(found, tmp_path, change, words):
    path = tmp_path / "found.npz"
    found.save(path)
    with np.load(path) as archive:
        arrays = dict(archive) | change
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(ValueError, match=words) as raised:
        gf_jax.load(path)
    assert len(str(raised.value).splitlines()) == 1


def test_what_is_no_archive_is_refused(tmp_path):
    path = tmp_path / "found.npz"
    path.write_bytes(pickle.dumps(Stranger()))
    with pytest.raises(ValueError, match="holds no comparison"):
        gf_jax.load(path)
    with pytest.raises(ValueError, match=r"\.npz"):
        gf_jax.Comparison(None, None).save(tmp_path / "found.txt")


def test_without_the_flow_there_is_none(found):
    alone = gf_jax.compare(quadratic, START, **OPTIONS, flow=False)
    np.testing.assert_array_equal(alone.run.metrics.loss, found.run.metrics.loss)
    assert alone.verdict == "Verdict: none, since there is no flow to compare with."
    assert "from the flow" not in str(alone)
    with pytest.raises(ValueError, match="flow=True"):
        _ = alone.distance


def test_without_predictions_the_flow_is_the_same(found):
    alone = gf_jax.compare(quadratic, START, **OPTIONS, predict=False)
    np.testing.assert_array_equal(alone.distance, found.distance)
    assert "predicted" not in str(alone)


def test_any_pytree_and_numpy_data(found):
    """A named tuple, and rates that are first met in float32 and then in float64."""
    pair = collections.namedtuple("pair", ("a", "b"))

    def f(params):
        return quadratic({"a": params.a, "b": params.b})

    jax.jit(f)(pair(**START))  # keeps the rates in float32
    other = gf_jax.compare(f, pair(**START), **OPTIONS)
    # The same program on other names: equal but for the order of sums.
    np.testing.assert_allclose(other.distance, found.distance, rtol=1e-6)
    np.testing.assert_allclose(other.resolution, found.resolution, rtol=1e-2)


@pytest.mark.oldest
def test_kinks_are_told():
    found = gf_jax.compare(
        lambda w: jnp.sum(jnp.abs(w - 0.1)) + jnp.sum(w**2), jnp.array([0.5, 0.3]), **OPTIONS
    )
    assert found.kinks == 2
    assert "The loss has kinks" in str(found)


def test_runs_that_diverge_are_told():
    found = gf_jax.compare(lambda w: jnp.sum(w**4), jnp.array([9.0]), **OPTIONS | {"ratios": ()})
    assert found.run.reference is None
    assert "Warning: the run with step size 0.02 (ratio 1) diverged" in str(found)


@pytest.mark.parametrize(
    ("f", "params", "options", "words"),
    [
        (quadratic, START, {"starts": True}, "starts: compare takes one"),
        (quadratic, START, {"curvature": True, "flow": False}, "curvature: "),
        (quadratic, START, {"step_size": -1.0}, "step_size: got -1.0"),
        (quadratic, {"n": jnp.arange(2)}, {}, r"params\['n'\]: dtype int32, and no leaf is"),
        (quadratic, {"k": jax.random.key(0)}, {}, r"params\['k'\]: dtype key.*nnx.split"),
        (quadratic, {"act": jnp.tanh}, {}, r"params\['act'\]: type "),
        (
            lambda w: jax.lax.while_loop(lambda x: x < 9, lambda x: 2 * x, w),
            1.0,
            {},
            "f: JAX cannot differentiate it",
        ),
        (lambda w: w, jnp.ones(2), {}, "f: returns"),
    ],
)
def test_mistakes_are_told_in_one_line(f, params, options, words):
    with pytest.raises(ValueError, match=words) as raised:
        gf_jax.compare(f, params, **OPTIONS | options)
    assert len(str(raised.value).splitlines()) == 1


def test_a_step_size_past_the_edge_of_stability_is_told():
    """The curvature along the first weight is exp(1 - w[1]): 1 at first, at last past 2 / 0.9."""

    def sharpens(w):
        return jnp.exp(1 - w[1]) * w[0] ** 2 / 2 + (w[1] + 1) ** 2 / 200

    def bent(w):
        return jnp.abs(w[0]) + w[1] ** 2

    def study(f, **options):
        return gf_jax.compare(f, np.array([0.1, 1.0], np.float32), ratios=(), **options)

    found = study(sharpens, step_size=0.9, iterations=400)
    (sentence,) = (each for each in found.doubts if "edge of stability" in each)
    assert sentence.startswith("With step size 0.9 the loss rises at time ")
    at = round(float(sentence.split("at time ")[1].split(":")[0]) / 0.9)
    changes = np.diff(found.run.metrics.loss[:, 0])
    assert changes[at - 1] > 0
    assert (changes[: at - 1] <= 0).all()
    near = found.snapshots[np.searchsorted(found.run.snapshot_iterations, at), 0]
    # Snapshots are every fourth iteration, in which the curvature changes by less.
    assert np.exp(1 - near[1]) > 0.95 * 2 / 0.9
    across = study(bent, step_size=0.3, iterations=30)  # a kink, where it may rise at any step size
    assert (np.diff(across.run.metrics.loss, axis=0) > 0).any()
    assert not any("edge of stability" in each for each in across.doubts)
