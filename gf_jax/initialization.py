"""Random starting points, drawn from shapes alone."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from gf_jax.networks import Params, Shapes


def xavier_uniform(key: Array, shapes: Shapes, *, scale: float = 1.0) -> Params:
    """Xavier (Glorot) uniform weights and zero biases, times an overall scale.

    A weight is uniform on [-a, a] with a = sqrt(6 / (fan_in + fan_out)); for a
    convolution kernel both fans include its 25 taps.

    Args:
      key: JAX random key.
      shapes: ``{layer: {kind: shape}}``, weights as (outputs, inputs, ...).
      scale: factor on every parameter; below one starts nearer to zero.

    Source: Glorot & Bengio, AISTATS 2010, equation 16.
    """
    draw = jax.nn.initializers.glorot_uniform(in_axis=1, out_axis=0)
    keys = iter(jax.random.split(key, len(shapes)))
    return {
        layer: {
            kind: scale * draw(layer_key, shape, jnp.float32)
            if kind == "weight"
            else jnp.zeros(shape, jnp.float32)
            for kind, shape in kinds.items()
        }
        for layer_key, (layer, kinds) in zip(keys, shapes.items(), strict=True)
    }
