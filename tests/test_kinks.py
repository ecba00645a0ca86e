import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gf_jax
from gf_jax.program.kinks import gate, step

POINTS = np.array([-3.0, -0.7, 0.4, 2.5])


MASK = np.array([True, False, True, True])


def size(f, params=POINTS):
    return gate(f, params).size


def variance(x):
    """As fast normalisation layers take it."""
    return jnp.maximum(0.0, jnp.mean(jnp.square(x)) - jnp.square(jnp.mean(x)))


def nn_max_pool(x):
    """Windows of two, as layers of libraries take them."""
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (2,), (2,), "VALID")


def attention(x):
    """A causal head on four tokens of one channel each."""
    scores = jnp.where(jnp.tri(4, dtype=bool), jnp.outer(x, x), -jnp.inf)
    return jnp.sum(jax.nn.softmax(scores) @ x)


def of_the_largest(x):
    largest = jnp.max(x)
    return jnp.sum(jnp.where(x == largest, x, 0.1 * x)) + largest


def recurrent(x):
    """Four rounds of which each has a ReLU, and a carry that starts without parameters."""

    def body(state, x):
        state = jax.nn.relu(0.5 * state + x)
        return state, state**2

    last, rows = jax.lax.scan(body, jnp.zeros_like(x[0]), x)
    return last + rows.sum()


@jax.custom_vjp
def straight_through(x):
    return jnp.maximum(x, 0.0)


straight_through.defvjp(lambda x: (straight_through(x), None), lambda _, ct: (ct,))


@jax.custom_jvp
def binarised(x):
    """A sign whose derivative is taken to be one near zero."""
    return jnp.sign(x)


binarised.defjvps(lambda t, _, x: jnp.where(jnp.abs(x) < 1, t, 0.0))


@jax.custom_jvp
def ramp_by_cosine(x):
    """Whose rule has no kinks, and is not the derivative."""
    return jnp.maximum(x, 0.0)


ramp_by_cosine.defjvps(lambda t, _, x: jnp.cos(x) * t)


@jax.custom_jvp
def winner(x, y):
    """Of two operands, of which the second has three times its derivative."""
    return jnp.maximum(x, y)


@winner.defjvp
def _(primals, tangents):
    return winner(*primals), jnp.where(primals[0] > primals[1], tangents[0], 3 * tangents[1])


@pytest.mark.parametrize(
    ("f", "kinks"),
    [
        (lambda x: jax.nn.relu(x).sum(), 4),
        (lambda x: jax.nn.leaky_relu(x, 0.1).sum(), 4),
        (lambda x: jnp.maximum(x, x[::-1]).sum(), 4),
        (lambda x: jnp.minimum(x, 1.0).sum() + jnp.abs(x).sum(), 8),
        (lambda x: jnp.where(x > 1, x, 1.0).sum(), 4),
        (lambda x: jnp.clip(x, -1.0, 1.0).sum(), 8),
        (lambda x: jax.checkpoint(lambda y: jax.nn.relu(y) * y)(x).sum(), 4),
        (lambda x: jax.jit(lambda y: jax.nn.relu(y))(x).sum(), 4),
        (lambda x: jnp.sum(x * (x > 0)), 4),
        (lambda x: jnp.where((x > 0) & MASK, x, 0.0).sum(), 4),
        (lambda x: jnp.where((x > 0)[:, None], jnp.ones(2), x[:, None]).sum(), 8),
        (lambda x: jnp.sum(x * jnp.sign(x)), 4),
        (lambda x: jnp.where(jax.lax.stop_gradient(x) > 0, x, 0.0).sum(), 4),
        (lambda x: jnp.maximum(0.0, jnp.sum(x**2) - jnp.sum(x) ** 2), 1),  # no variance
        (lambda x: jnp.maximum(0.0, jnp.mean(x) ** 2 - jnp.mean(x**2)), 1),
        (lambda x: jax.lax.clamp(-1.0, x, 1.0).sum(), 8),
        (lambda x: jnp.max(x) + jnp.min(x[:3]), 3 + 2),
        (lambda x: nn_max_pool(x).sum(), 2),
        (recurrent, 4),
        (lambda x: jax.lax.fori_loop(0, 3, lambda _, y: jnp.abs(y) - 1, x).sum(), 12),
        (lambda x: jax.lax.cond(x[0] > 0, jnp.sum, lambda x: jnp.sum(x**2), x), 1),
        (lambda x: jax.lax.cond(MASK[0], jax.nn.relu, jnp.sin, x).sum(), 4),
        # By the rule of a custom_jvp, which need not be the derivative.
        (lambda x: jnp.sum(x * binarised(x)), 4 + 4),
        (lambda x: jnp.sum(x * ramp_by_cosine(x)), 0),
        (lambda x: jnp.sum(winner(x, 2 * x[::-1]) ** 2), 4),
        (lambda x: jax.lax.scan(lambda c, y: (binarised(c * y) + x, c), x, x)[0].sum(), 32),
        # Smooth, though made of max, abs or where inside.
        (lambda x: jnp.sum(x * jax.nn.relu(POINTS)) + jnp.sum(jnp.where(POINTS > 0, x, 0)), 0),
        (lambda x: jnp.sum(jax.nn.softmax(x) * POINTS) + jax.nn.log_softmax(x)[0], 0),
        (attention, 0),
        (lambda x: jnp.sum((x - x.mean()) * jax.lax.rsqrt(variance(x) + 1e-3) * POINTS), 0),
        (lambda x: jnp.sqrt(jnp.maximum(0.0, jnp.var(x))), 0),
        (lambda x: jnp.sum(x * jax.lax.stop_gradient(jnp.abs(x))), 0),
        (lambda x: jnp.abs(jnp.sum(jnp.exp(x))) + jnp.linalg.norm(x), 0),
        (lambda x: jax.lax.scan(lambda c, y: (jnp.tanh(c + y), c), 0.0, x)[0], 0),
        (lambda x: jax.lax.cond(MASK[0], jnp.cos, jnp.sin, x).sum(), 0),
        (lambda x: straight_through(x).sum(), 0),  # its own derivative stands
        (lambda x: jax.nn.softplus(x).sum(), 0),
        (lambda x: jax.nn.logsumexp(x), 0),
        (lambda x: jax.nn.gelu(x).sum() + jnp.tanh(x).sum(), 0),
        (lambda x: jnp.where(jnp.arange(4) > 1, x, x**2).sum(), 0),
        # What is equal to the largest entry is a mask that changes where that entry does.
        (of_the_largest, 3 + 4),
        (lambda x: jnp.where(x == 0, 1.0, jnp.where(x != x, 0.0, x)).sum(), 0),
        # Guards against what no number is are none, of what kinks have chosen neither.
        (lambda x: jnp.logaddexp(jnp.clip(x, -0.5, 9.0), 0.0).sum(), 8),
        (lambda x: jnp.nan_to_num(jnp.abs(x)).sum(), 4),
    ],
)
def test_kinks_are_found_and_the_gated_form_is_the_function(f, kinks):
    with jax.enable_x64(True):
        x = jnp.asarray(POINTS)
        gated = gate(f, x)
        assert gated.size == kinks
        gates = [step(z) for z in gated.kinks(x)]
        for given in (gates, None):
            value, gradient = jax.value_and_grad(lambda x, g=given: gated.both(x, g)[0])(x)
            np.testing.assert_allclose(value, f(x), rtol=1e-14)
            np.testing.assert_allclose(gradient, jax.grad(f)(x), rtol=1e-14, atol=1e-14)


def test_between_the_sides_the_largest_entry_has_its_equal():
    """Its gate is between 0 and 1 where a run slides, and the largest is then no entry at all."""
    x, share = jnp.array([1.0, 2.0]), 0.3
    sides = 1.9 * x + 0.1 * x.sum()
    gated = gate(of_the_largest, x)
    gates = [jnp.array([share]), jnp.array([share, 1 - share])]
    value, _ = gated.both(x, gates)
    np.testing.assert_allclose(value, share * sides[0] + (1 - share) * sides[1], rtol=1e-6)


def test_kinks_of_the_networks(generator):
    convolutional = 6 * 14 * 14 + 16 * 5 * 5
    expected = [
        (gf_jax.problems.fully_connected((9, 6, 5, 10)), 0),
        (gf_jax.problems.fully_connected((9, 6, 5, 10), "relu"), 6 + 5),
        (gf_jax.problems.fully_connected((9, 6, 5, 10), "leaky_relu"), 6 + 5),
        (gf_jax.problems.conv_adapted(), convolutional + 120 + 84),
        # Of each pooled pixel three comparisons, and ReLU behind them.
        (gf_jax.problems.lenet5(), 4 * convolutional + 120 + 84),
    ]
    for network, kinks in expected:
        inputs = generator.normal(size=(7, *network.input_shape)).astype(np.float32)
        f = gf_jax.problems.classification(network, inputs, np.arange(7)).loss
        assert (
            size(f, gf_jax.problems.xavier_uniform(jax.random.key(0), network.shapes)) == 7 * kinks
        )


def test_a_gate_tells_the_jump_of_the_gradient(small_problem):
    """Across one kink the gradient jumps by its derivative in the gate."""
    f, params = small_problem
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), params)
        gated = gate(f, params)
        find, gradient = jax.jit(gated.kinks), jax.jit(jax.grad(f))
        kinks = find(params)
        unit, example = np.unravel_index(np.abs(kinks[1].z).argmin(), kinks[1].z.shape)
        # Move the weights of that unit of the second layer until the kink is at zero.
        normal = jax.jit(jax.grad(lambda p: gated.kinks(p)[1].z[unit, example]))(params)
        length = sum(jnp.vdot(n, n) for n in jax.tree.leaves(normal))
        for _ in range(3):
            z = find(params)[1].z[unit, example]
            params = jax.tree.map(lambda p, n, z=z: p - z / length * n, params, normal)
        sides = [
            gradient(jax.tree.map(lambda p, n, s=s: p + s * n, params, normal))
            for s in (1e-9, -1e-9)
        ]
        gates = [step(z) for z in find(params)]
        change = [jnp.zeros_like(g) for g in gates]
        change[1] = change[1].at[unit, example].set(1.0)
        of_gates = jax.jit(lambda g: jax.grad(lambda p: gated.both(p, g)[0])(params))
        _, jump = jax.jvp(of_gates, (gates,), (change,))
    for above, below, expected in zip(*map(jax.tree.leaves, (*sides, jump)), strict=True):
        np.testing.assert_allclose(above - below, expected, atol=1e-7)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(jump)) > 1e-3


def guarded(w):
    """Whose sides are finite where they are taken only."""
    return jax.lax.cond(w[0] > 0, lambda w: jnp.sum(jnp.sqrt(w[0]) * w), jnp.sum, w)


@pytest.mark.parametrize(
    ("f", "point"),
    [
        (lambda x: jnp.sum(jax.nn.relu(x) * jnp.arange(1.0, 5.0)), np.zeros(4)),
        (lambda x: jnp.sum(jnp.maximum(x, 0) + jnp.minimum(0, x) ** 2), np.zeros(4)),
        (lambda x: jnp.sum(jnp.abs(x)), np.zeros(4)),
        (lambda x: jnp.sum(jnp.where(x >= 0, x, 0.1 * x)), np.zeros(4)),
        (lambda x: jnp.sum(jnp.where(x > 0, x, 0.1 * x)), np.zeros(4)),
        (lambda x: jnp.sum(jnp.where(x <= 0, x, 0.1 * x)), np.zeros(4)),
        (lambda x: jnp.sum(jnp.where((x >= 0) & (x <= 0), x, 3 * x)), np.zeros(4)),
        (lambda x: jnp.sum(jnp.clip(x, 0, 1)), np.zeros(4)),
        (lambda x: jnp.sum(jax.lax.clamp(0.0, x, 1.0)), np.zeros(4)),
        (lambda x: jnp.sum(jax.nn.relu6(x) + jax.nn.leaky_relu(x)), np.zeros(4)),
        (lambda x: jnp.sum(jax.nn.elu(x) + jax.nn.hard_tanh(x + 1)), np.zeros(4)),
        (lambda x: jnp.max(x[:3]) + jnp.min(x), np.zeros(4)),
        (lambda x: pool(x), np.zeros(4)),
        (lambda w: jnp.sum(jnp.where(w > 0, jnp.log(w), w - 1)), np.array([0.5, -0.5])),
        (lambda w: jnp.max(jnp.where(jnp.arange(4) < 2, w, -jnp.inf)), POINTS),
        (lambda w: jnp.max(w, where=jnp.arange(4) < 2, initial=-jnp.inf), POINTS),
        (guarded, np.array([-0.5, 1.0])),
        (guarded, np.array([0.5, 1.0])),
    ],
)
def test_gates_are_as_jax_differentiates(f, point):
    """On the kinks themselves, and where the side that is not taken is no number."""
    with jax.enable_x64(True):
        x = jnp.asarray(point)
        gated = gate(f, x)
        assert gated.size > 0
        stack = jnp.stack([x, x + 1e-3])
        for gates in ([step(kink) for kink in gated.kinks(x)], None):
            gradient = jax.grad(lambda x, g=gates: gated.both(x, g)[0])(x)
            np.testing.assert_allclose(gradient, jax.grad(f)(x), rtol=1e-14, atol=1e-14)
        lanes = jax.vmap(jax.grad(lambda x: gated.both(x, None)[0]))(stack)
        np.testing.assert_allclose(lanes, jnp.stack([jax.grad(f)(x) for x in stack]), rtol=1e-14)


def pool(x):
    return jnp.sum(jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (2,), (1,), "VALID"))
