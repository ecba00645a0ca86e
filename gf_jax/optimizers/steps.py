"""The steps of an optimiser as a function: an optax transformation of every step size.

An optimiser is a function from the step size to an optax transformation. Its state is held as a
list of leaves, each over the power of the step size that it is of the size of.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from gf_jax.program.equations import equations_within
from gf_jax.program.lifting import Lifter
from gf_jax.program.rules import Settings

PyTree = Any
Optimizer = Callable[[Any], optax.GradientTransformation]
Powers = tuple[int | None, ...]

LINEAR = {"mul", "neg", "convert_element_type", "copy", "copy_p"}  # primitives of plain descent


def check_optimizer(optimizer: Any) -> None:
    """Raises ValueError unless an optimiser is a function."""
    if callable(optimizer) and not isinstance(optimizer, optax.GradientTransformation):
        return
    what = "a transformation" if hasattr(optimizer, "update") else repr(optimizer)
    raise ValueError(
        f"optimizer: got {what}; accepted is a function from the step size to an optax "
        "transformation: optax.adam, or lambda h: optax.sgd(h, momentum=0.9)"
    )


def check_steps(optimizer: Any, params: PyTree) -> None:
    """Raises ValueError unless an optimiser steps from params, with a step size that is traced."""
    check_optimizer(optimizer)

    def step(size: Array, params: PyTree) -> PyTree:
        transformation = optimizer(size)
        return transformation.update(params, transformation.init(params), params)[0]

    try:
        updates = jax.eval_shape(step, jax.ShapeDtypeStruct((), jnp.float32), params)
    except Exception as error:  # the optimiser is a program of the user's
        raise ValueError(failed(error)) from error
    given: Any = jax.tree.structure(params)
    if jax.tree.structure(updates) != given:
        raise ValueError(failed("its updates have another structure than params"))


def failed(error: Any) -> str:
    """The line that says why a step failed."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return (
        f"optimizer: a step of it failed ({reason}); accepted are optimisers whose update takes "
        "gradients, state and params, for any step size"
    )


def is_descent(optimizer: Optimizer, params: PyTree) -> bool:
    """Whether an optimiser is plain descent, −h times the gradient, by its program."""
    state = optimizer(1.0).init(params)
    ones = jax.tree.map(jnp.ones_like, params)
    if jax.tree.leaves(state) or rounds(optimizer, 1.0, ones, params):
        return False

    def updates(size: Array, gradient: PyTree) -> PyTree:
        return optimizer(size).update(gradient, state, params)[0]

    program = jax.make_jaxpr(updates)(1.0, params)
    if not {eqn.primitive.name for eqn in program.eqns} <= LINEAR:
        return False
    return all(
        bool((leaf == -size).all())
        for size in (0.5, 2.0)
        for leaf in jax.tree.leaves(updates(jnp.asarray(size), ones))
    )


def rounds(optimizer: Optimizer, size: float, gradient: PyTree, params: PyTree) -> bool:
    """Whether a step holds anything in less than the precision of params.

    Args:
      optimizer: the function of the step size.
      size: a step size.
      gradient: of a step.
      params: the point.
    """
    program = jax.make_jaxpr(
        lambda size: optimizer(size).update(gradient, optimizer(size).init(params), params)
    )(size)
    equations = equations_within(program.jaxpr)
    dtypes = {variable.aval.dtype for eqn in equations for variable in eqn.outvars}
    finfo: Any = jnp.finfo
    bits = finfo(jnp.result_type(*jax.tree.leaves(params))).bits
    return any(finfo(d).bits < bits for d in dtypes if jnp.issubdtype(d, jnp.floating))


class Stepper(NamedTuple):
    """How an optimiser steps, with its state as a list of leaves over powers of the step size.

    Attributes:
      optimizer: the function of the step size.
      structure: of its state.
      powers: p of every leaf, where it is of the size of h to the p; None is a leaf that never
        changes, and is what the optimiser of that step size starts with.
      lifts: whether its program is computed in the precision of params throughout, although it
        keeps some of its state in a lower one.
    """

    optimizer: Optimizer
    structure: Any
    powers: Powers
    lifts: bool

    def initial(self, size: Any, params: PyTree) -> list[Array]:
        """The state before the first step, over powers of the step size, in double precision."""
        leaves = map(jnp.asarray, jax.tree.leaves(self.optimizer(size).init(params)))
        return [
            leaf.astype(float) / size ** (power or 0)
            if jnp.issubdtype(leaf.dtype, jnp.floating)
            else leaf
            for leaf, power in zip(leaves, self.powers, strict=True)
        ]

    def update(
        self, size: Array, gradient: PyTree, leaves: list[Array], params: PyTree
    ) -> tuple[PyTree, list[Array]]:
        """Updates and state of one step; leaves are as the optimiser has them."""
        state = jax.tree.unflatten(self.structure, leaves)
        if not self.lifts:
            updates, after = self.optimizer(size).update(gradient, state, params)
        else:
            # Traced in single precision, in which nothing is cast to a lower one.
            narrow = jax.tree.map(_narrow, (size, gradient, params))
            declared = jax.eval_shape(
                lambda size, _, params: self.optimizer(size).init(params), *narrow
            )
            program, shapes = jax.make_jaxpr(
                lambda size, *rest: self.optimizer(size).update(*rest), return_shape=True
            )(*narrow[:2], declared, narrow[2])
            lifter = Lifter(Settings.now("highest"), jnp.float64)
            arguments = jax.tree.leaves((size, gradient, state, params))
            results: Any = jax.tree.unflatten(
                jax.tree.structure(shapes), lifter.run(program, arguments)
            )
            updates, after = results
        pairs = zip(jax.tree.leaves(after), leaves, strict=True)
        return updates, [jnp.asarray(new, jnp.result_type(old)) for new, old in pairs]


def steps_of(
    stepper: Stepper,
    size: Array,
    gradients: PyTree,
    params: PyTree,
    leaves: list[Array],
) -> tuple[PyTree, PyTree, list[Array]]:
    """Some steps along given gradients, leaves (steps, ...).

    Returns:
      The velocities of all steps, and params and state behind them. Leaves of the state are over
      the powers of the step size.
    """

    def step(carry: tuple[PyTree, list[Array]], gradient: PyTree) -> tuple[Any, PyTree]:
        params, leaves = carry
        updates, after = stepper.update(size, gradient, leaves, params)
        params = jax.tree.map(lambda p, u: p + u, params, updates)
        return (params, after), jax.tree.map(lambda u: u / size, updates)

    powers, own = stepper.powers, leaves
    if None in powers:
        own = stepper.initial(size, params)
    leaves = [
        first if p is None else leaf for leaf, first, p in zip(leaves, own, powers, strict=True)
    ]
    scales = [size ** (power or 0) for power in powers]
    leaves = [leaf * s if p else leaf for leaf, s, p in zip(leaves, scales, powers, strict=True)]
    if jax.tree.leaves(gradients)[0].shape[0] == 1:
        only = jax.tree.map(lambda leaf: leaf[0], gradients)
        (params, leaves), velocity = step((params, leaves), only)
        velocities = jax.tree.map(lambda leaf: leaf[None], velocity)
    else:
        (params, leaves), velocities = jax.lax.scan(step, (params, leaves), gradients)
    leaves = [leaf / s if p else leaf for leaf, s, p in zip(leaves, scales, powers, strict=True)]
    return velocities, params, leaves


compiled_steps = jax.jit(steps_of, static_argnums=0)


def _narrow(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.float32)
