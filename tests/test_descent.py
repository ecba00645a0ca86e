import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gf_jax
from gf_jax.descent import grouping, stepping

CURVATURES = np.array([0.5, 2.0, 7.0], np.float32)
START = {"x": np.array([1.0, -2.0, 0.5], np.float32)}


def quadratic(params):
    return 0.5 * jnp.sum(CURVATURES * params["x"] ** 2)


def plain_loop(f, params, step_size, steps):
    """Every iterate of one run, by a Python loop over a jitted gradient."""
    gradient = jax.jit(jax.grad(f))
    iterates = [params]
    for _ in range(steps):
        slope = gradient(iterates[-1])
        iterates.append(
            jax.tree.map(lambda p, g: p - jnp.float32(step_size) * g, iterates[-1], slope)
        )
    return iterates


def test_quadratic_in_closed_form():
    ratios, iterations, step_size = (1, 3, 4), 20, 0.05
    run = gf_jax.gradient_descent(
        quadratic, START, step_size=step_size, ratios=ratios, iterations=iterations
    )
    np.testing.assert_array_equal(run.iterations, np.arange(21))
    np.testing.assert_array_equal(run.snapshot_iterations, np.arange(1, 21))
    for lane, ratio in enumerate(ratios):
        k = np.arange(iterations + 1)[:, None] * ratio
        iterates = START["x"] * (1.0 - step_size / ratio * CURVATURES.astype(float)) ** k
        # 80 float32 steps, each rounding by at most half an ulp, and a sum of three squares.
        tolerance = {"rtol": 80 * 6e-8, "atol": 80 * 6e-8}
        losses = 0.5 * (CURVATURES * iterates**2).sum(axis=1)
        np.testing.assert_allclose(run.metrics.loss[:, lane], losses, **tolerance)
        np.testing.assert_allclose(run.snapshots["x"][:, lane], iterates[1:], **tolerance)
        travelled = np.linalg.norm(iterates - iterates[0], axis=1)
        np.testing.assert_allclose(run.metrics.distance_from_init[:, lane], travelled, **tolerance)
        slopes = np.linalg.norm(CURVATURES * iterates, axis=1)
        np.testing.assert_allclose(run.metrics.gradient_norm[:, lane], slopes, **tolerance)


@pytest.mark.parametrize("ratios", [(), (1,), (2,), (3, 2), (20, 2, 5, 10), (1, 4, 6)])
def test_lanes_equal_separate_plain_loops(ratios, small_problem):
    f, start = small_problem
    run = gf_jax.gradient_descent(f, start, step_size=0.1, ratios=ratios, iterations=6, snapshots=3)
    lanes = sorted({1, *ratios})
    assert run.metrics.loss.shape == (7, len(lanes))
    base = plain_loop(f, start, 0.1, 6)
    for lane, ratio in enumerate(lanes):
        loop = plain_loop(f, start, 0.1 / ratio, 6 * ratio)[::ratio]
        for snapshot, iteration in enumerate((2, 4, 6)):
            kept = jax.tree.map(lambda leaf, at=(snapshot, lane): leaf[at], run.snapshots)
            # A product of a stack sums in another order than that of one run: a few ulps of
            # a gradient of size one, times step size 0.1, in each of at most 120 steps.
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-6),
                kept,
                loop[iteration],
            )
        for iteration, params in enumerate(loop):
            row = jax.tree.map(lambda column, at=(iteration, lane): column[at], run.metrics)
            np.testing.assert_allclose(row.loss, f(params), rtol=5e-6)
            for ours, reference in (
                (row.distance_from_init, start),
                (row.distance_to_base, base[iteration]),
            ):
                expected = gf_jax.distance(params, reference)
                np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)
    assert not run.metrics.distance_to_base[:, 0].any()


def test_lanes_that_share_loops(monkeypatch, small_problem):
    """Two loops, as if seven lanes were many."""
    f, start = small_problem
    monkeypatch.setattr(stepping, "groups", functools.partial(grouping.groups, most=2))
    ratios = (1, 2, 3, 5, 8, 9, 20)
    run = gf_jax.gradient_descent(f, start, step_size=0.1, ratios=ratios, iterations=2)
    for lane, ratio in enumerate(ratios):
        loop = plain_loop(f, start, 0.1 / ratio, 2 * ratio)
        kept = jax.tree.map(lambda leaf, lane=lane: leaf[-1, lane], run.snapshots)
        # As above.
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-6), kept, loop[-1]
        )


@pytest.mark.parametrize(
    "lanes", [(1, 2), tuple(range(1, 200)), tuple(2**k for k in range(31)), (1, *range(900, 950))]
)
def test_groups_take_all_steps_and_few_more(lanes):
    found = grouping.groups(lanes)
    assert len(found) <= grouping.MOST_LOOPS
    assert [group.first for group in found[1:]] == [group.last + 1 for group in found[:-1]]
    assert (found[0].first, found[-1].last) == (1, len(lanes) - 1)
    for group in found:
        assert group.steps == lanes[group.last] - lanes[group.first - 1]
    needed = sum(lanes)
    assert needed <= grouping.evaluations(lanes) < 1.1 * needed


def test_a_dozen_lanes_waste_nothing_and_compile_a_loop_each():
    lanes = tuple(range(1, grouping.MOST_LOOPS + 2))
    assert grouping.evaluations(lanes) == sum(lanes)
    assert len(grouping.groups(lanes)) == len(lanes) - 1


def test_groups_are_the_best_of_all():
    lanes, most = (1, 2, 3, 7, 8, 20, 21), 3

    def cost(ends):
        """Gradients behind the first step, with groups that end at these lanes."""
        parts = itertools.pairwise((0, *ends, len(lanes) - 1))
        return sum((len(lanes) - 1 - a) * (lanes[b] - lanes[a]) for a, b in parts)

    best = min(map(cost, itertools.combinations(range(1, len(lanes) - 1), most - 1)))
    found = grouping.groups(lanes, most)
    assert sum((len(lanes) - group.first) * group.steps for group in found) == best


def test_distances_agree_with_snapshots(small_problem):
    f, start = small_problem
    run = gf_jax.gradient_descent(f, start, step_size=0.1, ratios=(2, 5), iterations=8)
    base = jax.tree.map(lambda leaf: leaf[:, :1], run.snapshots)
    expected = gf_jax.distance(run.snapshots, base, stack_axes=2)
    # The same numbers, summed inside and outside the compiled loop.
    np.testing.assert_allclose(run.metrics.distance_to_base[1:], expected, rtol=1e-6)


@pytest.mark.parametrize("segments", [2, 3, 12])
def test_segments_and_snapshots_change_nothing(segments, small_problem):
    f, start = small_problem
    options = {"step_size": 0.1, "ratios": (2, 3), "iterations": 12}
    whole = gf_jax.gradient_descent(f, start, **options, snapshots=12)
    parts = gf_jax.gradient_descent(f, start, **options, snapshots=5, segments=segments)
    jax.tree.map(np.testing.assert_array_equal, parts.metrics, whole.metrics)
    np.testing.assert_array_equal(parts.snapshot_iterations, [2, 4, 7, 9, 12])
    kept = jax.tree.map(lambda leaf: leaf[parts.snapshot_iterations - 1], whole.snapshots)
    jax.tree.map(np.testing.assert_array_equal, parts.snapshots, kept)


@pytest.mark.parametrize("ratios", [(2, 5, 10, 20), (3,), (1, 2)])
def test_every_evaluation_is_needed(ratios):
    """Counts evaluations as they happen, every lane of a stack for itself."""
    calls = []

    def f(params):
        jax.debug.callback(lambda x: calls.append(float(x)), params["x"][0])
        return quadratic(params)

    run = gf_jax.gradient_descent(f, START, step_size=0.01, ratios=ratios, iterations=4)
    jax.effects_barrier()
    needed = 4 * (1 + sum(set(ratios) - {1}))
    assert len(calls) == needed + 1  # and one at the initial point, for all lanes
    assert gf_jax.Schedule(0.01, ratios, 4).gradient_evaluations == len(calls)
    assert np.isfinite(run.metrics.loss).all()


def test_one_compilation_for_all_segments(caplog, small_problem):
    f, start = small_problem
    with jax.log_compiles(), caplog.at_level("WARNING"):
        gf_jax.gradient_descent(f, start, step_size=0.1, ratios=(2, 5), iterations=12, segments=6)
    compiled = [r.message for r in caplog.records if r.message.startswith("Compiling jit(run)")]
    assert len(compiled) == 1


def test_closed_over_data_is_an_argument_not_a_constant(generator):
    data = jnp.asarray(generator.normal(size=(300, 3)), jnp.float32)

    def f(params):
        return jnp.mean((data @ params["x"]) ** 2)

    from gf_jax.program.program import prepare

    pure, constants, *_ = prepare(f, START)
    assert [c.shape for c in constants] == [(300, 3)]
    text = str(jax.make_jaxpr(pure.loss)(constants, START))
    assert "HIGHEST" in text  # full float32 products, asked for where f is traced
    assert pure.loss(constants, START) == f(START)


def test_any_pytree_of_numbers():
    """Python numbers, NumPy scalars, lists and several dtypes are all parameters."""

    def f(params):
        number, (scalar, half) = params
        return (number - 1.0) ** 2 + jnp.float32(scalar) ** 2 + jnp.sum(half).astype(jnp.float32)

    start = [0.5, (np.float32(2.0), np.ones(2, np.float16))]
    run = gf_jax.gradient_descent(f, start, step_size=0.25, ratios=(2,), iterations=1)
    number, (scalar, half) = run.snapshots
    np.testing.assert_array_equal(number, [[0.75, 0.71875]])  # 1 - (1 - 2/4)/2, 1 - (1 - 2/8)^2/2
    np.testing.assert_array_equal(scalar, [[1.0, 1.125]])
    np.testing.assert_array_equal(half, [[[0.75, 0.75], [0.75, 0.75]]])
    assert half.dtype == np.float32  # no arithmetic is below it


def test_a_diverging_lane_leaves_the_others_alone():
    options = {"ratios": (2, 40), "iterations": 200}
    wild = gf_jax.gradient_descent(quadratic, START, step_size=1.0, **options)
    loss = wild.metrics.loss
    assert not np.isfinite(loss[-1, 0])
    assert np.isfinite(loss[:, 2]).all()
    alone = plain_loop(quadratic, START, 1.0 / 40, 200 * 40)[::40]
    # 8000 contracting float32 steps: errors stay at the level of one step's rounding.
    expected = np.array([quadratic(p) for p in alone])
    np.testing.assert_allclose(loss[:, 2], expected, rtol=1e-5, atol=1e-12)


class WithTameBase(gf_jax.Schedule):
    """The same program, in which the base run takes a step size at which it does not diverge."""

    @property
    def step_sizes(self):
        return (1e-3, *super().step_sizes[1:])


@pytest.mark.parametrize(
    ("activation", "arithmetic"),
    [
        ("linear", "compensated"),
        pytest.param("leaky_relu", "float32", marks=pytest.mark.long),
    ],
)
def test_a_diverging_lane_changes_no_bit_of_the_others(activation, arithmetic, digits):
    """Of the same stack: a product of one lane less would sum in another order."""
    network = gf_jax.problems.fully_connected((64, 12, 8, 10), activation)
    f = gf_jax.problems.classification(
        network, digits.images.reshape(-1, 64)[:60], digits.labels[:60]
    ).loss
    start = gf_jax.problems.xavier_uniform(jax.random.key(3), network.shapes)
    runs = [
        gf_jax.join(list(gf_jax.descent_segments(f, start, schedule, arithmetic=arithmetic)))
        for schedule in (kind(30.0, (300, 310), 12) for kind in (gf_jax.Schedule, WithTameBase))
    ]
    wild, tame = (run.metrics for run in runs)
    assert not np.isfinite(wild.loss[-1, 0])
    assert np.isfinite(tame.loss).all()
    for name in ("loss", "distance_from_init", "gradient_norm"):
        np.testing.assert_array_equal(getattr(wild, name)[:, 1:], getattr(tame, name)[:, 1:])
    snapshots = [jax.tree.map(lambda leaf: leaf[:, 1:], run.snapshots) for run in runs]
    jax.tree.map(np.testing.assert_array_equal, *snapshots)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("step_size", 0.0, "step_size: got 0.0"),
        ("step_size", "small", "step_size: got 'small'"),
        ("step_size", float("nan"), "step_size: got nan"),
        ("step_size", float("inf"), "step_size: got inf"),
        ("ratios", (2, 0), "ratios: got 0"),
        ("ratios", (2, -3), "ratios: got -3"),
        ("ratios", (2, 2.5), "ratios: got 2.5"),
        ("ratios", (2, 5, 2), "ratios: 2 is given more than once"),
        ("iterations", 0, "iterations: got 0"),
        ("snapshots", 0, "snapshots: got 0"),
        ("snapshots", 13, "accepted is 1 to the number of iterations, 12"),
        ("segments", 5, "such as 4 or 6"),
        ("segments", 0, "segments: got 0"),
    ],
)
def test_bad_schedules_are_refused(field, value, message):
    options = {"step_size": 0.1, "ratios": (2,), "iterations": 12, field: value}
    with pytest.raises(ValueError, match=message):
        gf_jax.gradient_descent(quadratic, START, **options)


@pytest.mark.parametrize(
    ("f", "params", "message"),
    [
        (quadratic, {"x": np.array([1, 2, 3])}, r"params\['x'\]: dtype int"),
        (quadratic, {}, "holds no arrays"),
        (lambda p: p["x"], START, "accepted is a floating-point scalar"),
        (lambda p: (quadratic(p), 1.0), START, "accepted is a floating-point scalar"),
    ],
)
def test_bad_functions_and_parameters_are_refused(f, params, message):
    with pytest.raises(ValueError, match=message):
        gf_jax.gradient_descent(f, params, step_size=0.1, ratios=(), iterations=1)


def test_default_schedule():
    schedule = gf_jax.Schedule(0.001, (2, 5, 10, 20), 10_000)
    assert (schedule.snapshots, schedule.segments) == (100, 100)
    assert schedule.gradient_evaluations == 380_001
    assert gf_jax.Schedule(0.001, (), 7).snapshots == 7
    assert gf_jax.Schedule(0.001, (), 10_007).segments == 1  # a prime


@pytest.mark.parametrize("arithmetic", ["compensated", "float64"])
def test_it_goes_on_from_any_segment_to_the_last_bit(arithmetic, small_problem):
    schedule = gf_jax.Schedule(0.1, (2, 3), 12, snapshots=5, segments=4)
    whole = [
        (part, [np.array(leaf) for leaf in state])
        for part, state in gf_jax.resumable_segments(
            *small_problem, schedule, arithmetic=arithmetic
        )
    ]
    for done in (1, 3, 4):
        rest = gf_jax.resumable_segments(
            *small_problem,
            schedule,
            arithmetic=arithmetic,
            resume_from=(3 * done, whole[done - 1][1]),
        )
        rest = [(part, [np.array(leaf) for leaf in state]) for part, state in rest]
        assert len(rest) == 4 - done
        for ours, expected in zip(rest, whole[done:], strict=True):
            jax.tree.map(np.testing.assert_array_equal, ours, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda done, state: (done + 1, state), "resume_from: 4 iterations are done; accepted is"),
        (lambda done, state: (0, state), "resume_from: 0 iterations are done"),
        (lambda done, state: (done, state[1:]), "resume_from: the state is of another run"),
        (lambda done, state: (done, [leaf[:1] for leaf in state]), "the state is of another run"),
    ],
)
def test_a_state_of_another_run_is_refused(change, message):
    schedule = gf_jax.Schedule(0.1, (2,), 12, segments=4)
    _, state = next(gf_jax.resumable_segments(quadratic, START, schedule))
    with pytest.raises(ValueError, match=message):
        list(gf_jax.resumable_segments(quadratic, START, schedule, resume_from=change(3, state)))
