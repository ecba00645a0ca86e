"""Models as users have them: what is no array of floating-point numbers is held fixed."""

import equinox as eqx
import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import gf_jax

X = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
OPTIONS = {"step_size": 0.05, "iterations": 8, "ratios": (2,)}


def model_of(**changes):
    """Every kind of leaf that a model may hold beside its weights."""
    return {
        "w": jnp.array([0.3, -0.2, 0.5, 0.1]),
        "shift": 0.5,  # a Python float moves, as in jax.grad
        "power": 2,
        "words": np.arange(16) % 4,
        "square": True,
        "activation": jnp.tanh,
        "name": "model",
        "nothing": None,
        "key": jax.random.key(0),
    } | changes


def loss(model):
    noise = jax.random.normal(model["key"], (16,))
    out = model["activation"](X[model["words"]] @ model["w"] + 0.1 * noise) - model["shift"]
    assert model["name"] == "model"
    assert model["nothing"] is None
    return jnp.mean(out ** model["power"] if model["square"] else out**4)


def by_hand(model):
    """The same with nothing but floats among the parameters."""
    moving = {"w": model["w"], "shift": jnp.asarray(model["shift"])}
    return lambda params: loss(model | params), moving


def test_what_is_no_float_is_held_fixed():
    model = model_of()
    f, moving = by_hand(model)
    found, expected = gf_jax.compare(loss, model, **OPTIONS), gf_jax.compare(f, moving, **OPTIONS)
    jax.tree.map(np.testing.assert_array_equal, found.run.metrics, expected.run.metrics)
    np.testing.assert_array_equal(found.distance, expected.distance)
    assert found.snapshots["w"].shape == (8, 2, 4)
    assert found.flow["shift"].shape == (8,)
    held = {"power", "words", "square", "activation", "name", "nothing", "key"}
    assert {name for name, part in found.flow.items() if part is None} == held


CHANGES = {
    "power": 4,
    "words": (np.arange(16) + 1) % 4,
    "square": False,
    "activation": jnp.sin,
    "key": jax.random.key(1),
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_model_is_another_loss(name):
    """What is compiled for one held leaf serves no other one, however alike they look."""
    programs = [
        gf_jax.prepare(loss, each) for each in (model_of(), model_of(**{name: CHANGES[name]}))
    ]
    values = [
        p.pure.once("loss", lambda p=p: jax.jit(p.pure.loss))(p.data, by_hand(model_of())[1])
        for p in programs
    ]
    expected = [loss(model_of()), loss(model_of(**{name: CHANGES[name]}))]
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    assert abs(expected[1] - expected[0]) > 1e-3
    with pytest.raises(ValueError, match=r"^params: what is held fixed .* prepare f anew$"):
        programs[0].moving(model_of(**{name: CHANGES[name]}))
    assert jax.tree.leaves(programs[0].moving(model_of()))


def test_pieces_take_models_and_their_moving_part():
    model = model_of()
    program, (f, moving) = gf_jax.prepare(loss, model), by_hand(model)
    flow = gf_jax.gradient_flow(loss, model, [0.1, 0.2])
    np.testing.assert_array_equal(
        flow.params["w"], gf_jax.gradient_flow(f, moving, [0.1, 0.2]).params["w"]
    )
    found = gf_jax.curvature(program, flow.params)  # what a flow is made of has no held leaves
    assert found.lambda_max.value.shape == (2,)
    whole = eqx.combine(flow.params, program.held)
    np.testing.assert_array_equal(
        gf_jax.theory.defects(loss, whole, 0.1), gf_jax.theory.defects(program, flow.params, 0.1)
    )
    starts = model | jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), moving)
    runs = gf_jax.gradient_descent(loss, starts, **OPTIONS, starts=True)
    single = gf_jax.gradient_descent(loss, model, **OPTIONS)
    np.testing.assert_allclose(runs.metrics.loss[:, 0], single.metrics.loss, rtol=1e-6)


def test_batches_are_of_the_whole_model():
    def of_batch(model, index):
        rows = jax.lax.dynamic_slice_in_dim(X, 8 * index, 8)
        return jnp.mean(model["activation"](rows @ model["w"]) ** model["power"])

    def f(model):
        return (of_batch(model, 0) + of_batch(model, 1)) / 2

    model = {"w": jnp.ones(4), "power": 2, "activation": jnp.tanh}
    batches = gf_jax.Batches(of_batch, 2)
    found = gf_jax.gradient_descent(f, model, **OPTIONS, batches=batches)
    assert (np.diff(found.metrics.loss[:, 0]) < 0).all()


class Layer(eqx.Module):
    weight: jax.Array
    rate: float  # of an attribute a float is a setting
    activation: object

    def __call__(self, x):
        return self.activation(x @ self.weight) * self.rate


def test_settings_of_equinox_stay_as_they_are():
    layer = Layer(jnp.ones(4), 0.5, jax.nn.gelu)
    found = gf_jax.gradient_descent(lambda m: jnp.mean(m(X) ** 2), layer, **OPTIONS)
    assert found.snapshots.rate is None
    assert found.snapshots.weight.shape == (8, 2, 4)


class Dropped(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(4, 3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(nnx.tanh(self.linear(x)))


def test_a_model_of_nnx_with_random_keys():
    model = Dropped(nnx.Rngs(0))
    found = gf_jax.gradient_descent(lambda m: jnp.mean((m(X) - 1) ** 2), model, **OPTIONS)
    assert found.snapshots.linear.kernel.shape == (8, 2, 4, 3)
    assert int(model.dropout.rngs.count[...]) == 0  # the user's own is untouched


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (3, r"^params: type int, and no leaf is a floating-point array; accepted is a pytree"),
        ({"n": np.arange(3)}, r"^params\['n'\]: dtype int64, and no leaf"),
        (flax.linen.Dense(3), r"^params: type Dense, .* of a flax.linen model give what init ret"),
        ({"w": np.ones(2, complex), "b": np.ones(2)}, r"^params\['w'\]: dtype complex128; acc"),
        ({}, r"^params: the pytree holds no arrays$"),
    ],
)
def test_what_holds_no_weights_is_refused(params, message):
    with pytest.raises(ValueError, match="(?i)" + message):
        gf_jax.compare(loss, params, **OPTIONS)
