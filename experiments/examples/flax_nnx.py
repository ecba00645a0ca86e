"""Does descent on a model from flax.nnx stay near its flow?

    pip install -e ".[examples]" && python -m experiments.examples.flax_nnx

A layer of ReLU with layer normalisation on 100 of scikit-learn's handwritten digits.
The model is given as it is. ReLU has kinks: gf_jax finds them in the program of the loss and takes
them into account. Half a minute on one laptop core. Descent with step size
0.02 stays in sight of its flow, at 1.7 % of the distance that the flow travels.
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from sklearn.datasets import load_digits

import gf_jax


class Network(nnx.Module):
    """A normalised hidden layer of ReLU between two linear maps."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(64, 24, rngs=rngs)
        self.norm = nnx.LayerNorm(24, rngs=rngs)
        self.last = nnx.Linear(24, 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits of the ten digits."""
        return self.last(nnx.relu(self.norm(self.first(images))))


def main(iterations: int = 60) -> gf_jax.Comparison:
    """Prints the comparison, and returns it."""
    digits = load_digits()
    images, labels = jnp.asarray(digits.data[:100] / 16), jnp.asarray(digits.target[:100])

    def loss(network: Network) -> jax.Array:
        logits = network(images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    comparison = gf_jax.compare(
        loss,
        Network(nnx.Rngs(0)),
        step_size=0.02,
        iterations=iterations,
        label="flax.nnx network on digits",
    )
    print(comparison)
    return comparison


if __name__ == "__main__":
    main()
