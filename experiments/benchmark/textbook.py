"""The four networks as a textbook has them, in JAX, and descent as one would first write it.

Examples lie along the first axis, layers follow one another, convolution and pooling are
JAX's own. Parameters are those of ``gf_jax.problems.networks``.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int

from experiments.benchmark.workload import (
    FORMS,
    Ends,
    Form,
    Implementation,
    Workload,
    step_by_step,
    wait,
)
from gf_jax.problems.networks import Params

Loss = Callable[[Params, Array, Array], Array]


def loss_of(network: str) -> Loss:
    """The mean cross-entropy as a function of params, inputs and labels."""
    form = FORMS[network]

    def loss(params: Params, inputs: Array, labels: Array) -> Array:
        logits = _logits(form, params, inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return loss


def final_losses(workload: Workload, ends: Ends) -> Float[np.ndarray, " runs"]:
    """Losses where the runs end; NaN for those that have not arrived."""
    loss = jax.jit(loss_of(workload.network))
    inputs, labels = jnp.asarray(workload.inputs), jnp.asarray(workload.labels)
    return np.array([np.nan if end is None else float(loss(end, inputs, labels)) for end in ends])


def eager(workload: Workload) -> Implementation:
    """One step after the other, every operation dispatched on its own."""
    return _step_by_step("eager JAX", workload, _step(workload.network), planned=False)


def jitted_step(workload: Workload) -> Implementation:
    """The step compiled, called once per step of every run."""
    step = jax.jit(_step(workload.network))
    return _step_by_step("jitted step", workload, step, planned=True)


def scan_per_run(workload: Workload) -> Implementation:
    """One compiled scan per run and base iterations; a unit of work is all of them."""
    step, (start, inputs, labels) = _step(workload.network), _arrays(workload)

    @functools.partial(jax.jit, static_argnames="steps")
    def descend(
        params: Params, step_size: Array, inputs: Array, labels: Array, steps: int
    ) -> Params:
        def body(params: Params, _: None) -> tuple[Params, None]:
            return step(params, step_size, inputs, labels), None

        return lax.scan(body, params, length=steps)[0]

    def run(_: int) -> Ends:
        ends = [
            descend(start, size, inputs, labels, steps=ratio * workload.iterations)
            for ratio, size in zip(workload.ratios, workload.step_sizes, strict=True)
        ]
        return wait(ends)

    return Implementation("scan per run", 1, run)


def padded_vmap(workload: Workload) -> Implementation:
    """All runs under one vmap; a unit of work is one masked step of all of them."""
    step, (start, inputs, labels) = _step(workload.network), _arrays(workload)
    longest = max(workload.ratios)
    ratios, sizes = jnp.array(workload.ratios), jnp.array(workload.step_sizes)

    @jax.jit
    def descend(params: Params, inputs: Array, labels: Array, steps: Array) -> Params:
        def lane(ratio: Array, step_size: Array) -> Params:
            def body(number: Array, params: Params) -> Params:
                moved = step(params, step_size, inputs, labels)
                active = number % longest < ratio
                return jax.tree.map(lambda new, old: jnp.where(active, new, old), moved, params)

            return lax.fori_loop(0, steps, body, params)

        return jax.vmap(lane)(ratios, sizes)

    def run(units: int) -> Ends:
        ends = wait(descend(start, inputs, labels, units))
        last = units - (workload.iterations - 1) * longest  # masked steps in the last iteration
        return [
            jax.tree.map(lambda leaf, at=at: leaf[at], ends) if last >= ratio else None
            for at, ratio in enumerate(workload.ratios)
        ]

    return Implementation("padded vmap", workload.iterations * longest, run)


def _step(network: str) -> Callable[[Params, Array, Array, Array], Params]:
    gradient = jax.grad(loss_of(network))

    def step(params: Params, step_size: Array, inputs: Array, labels: Array) -> Params:
        slope = gradient(params, inputs, labels)
        return jax.tree.map(lambda p, g: p - step_size * g, params, slope)

    return step


def _step_by_step(
    name: str, workload: Workload, step: Callable, *, planned: bool
) -> Implementation:
    start, inputs, labels = _arrays(workload)
    sizes = [jnp.float32(size) for size in workload.step_sizes]
    return step_by_step(
        name,
        workload,
        lambda: start,
        lambda params, lane: step(params, sizes[lane], inputs, labels),
        wait,
        planned=planned,
    )


def _arrays(workload: Workload) -> tuple[Params, Float[Array, "..."], Int[Array, " examples"]]:
    return workload.start, jnp.asarray(workload.inputs), jnp.asarray(workload.labels)


def _logits(form: Form, params: Params, inputs: Array) -> Float[Array, "examples classes"]:
    activation = jax.nn.relu if form.rectified else lambda hidden: hidden
    hidden = inputs
    for layer, padding in (("conv_1", 2), ("conv_2", 0)):
        if layer in params:
            hidden = activation(_convolution(params[layer], hidden, form.stride, padding))
            hidden = _max_pool(hidden) if form.pool else hidden
    hidden = hidden.reshape(len(inputs), -1)
    *inner, last = [params[name] for name in ("dense_1", "dense_2", "dense_3")]
    for dense in inner:
        hidden = activation(_dense(dense, hidden))
    return _dense(last, hidden)


def _dense(layer: dict[str, Array], hidden: Array) -> Array:
    outputs = hidden @ layer["weight"].T
    return outputs + layer["bias"] if "bias" in layer else outputs


def _convolution(layer: dict[str, Array], images: Array, stride: int, padding: int) -> Array:
    pads = ((padding, padding), (padding, padding))
    outputs = lax.conv_general_dilated(
        images,
        layer["weight"],
        (stride, stride),
        pads,
        dimension_numbers=("NCHW", "OIHW", "NCHW"),
    )
    return outputs + layer["bias"][:, None, None] if "bias" in layer else outputs


def _max_pool(images: Array) -> Array:
    window = (1, 1, 2, 2)
    return lax.reduce_window(images, -jnp.inf, lax.max, window, window, "VALID")
