"""Does descent on a convolutional network of a million parameters stay near its flow?

    python -m experiments.examples.million

Two convolutions in plain JAX and two wide dense layers, 1,073,818 parameters, all of it smooth, on
100 of scikit-learn's handwritten digits. What is larger than 256 MiB, here the flow with its
deviation, lies in temporary files while it is measured. Five minutes on two cores, in 2.2 GiB of
memory. Descent with step size 0.1 ends 4.2 % of the way from its flow, where 4.2 % are predicted.
"""

import resource

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import gf_jax


def patches(images: jax.Array, stride: int) -> jax.Array:
    """The 3×3 windows of images of shape (examples, rows, columns, channels)."""
    rows, columns = images.shape[1:3]
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifts = [
        padded[:, i : i + rows : stride, j : j + columns : stride]
        for i in range(3)
        for j in range(3)
    ]
    return jnp.concatenate(shifts, axis=-1)


def main(iterations: int = 20, width: int = 2048) -> gf_jax.Comparison:
    """Prints the comparison and the memory that it took, and returns it."""
    shapes = {"first": (9, 16), "second": (144, 32), "dense": (512, width), "logits": (width, 10)}
    digits = load_digits()
    images, labels = jnp.asarray(digits.images[:100, ..., None] / 16), digits.target[:100]

    def loss(params: dict[str, jax.Array]) -> jax.Array:
        h = jax.nn.silu(patches(images, 1) @ params["first"])
        h = jax.nn.silu(patches(h, 2) @ params["second"]).reshape(len(images), -1)
        logits = jax.nn.silu(h @ params["dense"]) @ params["logits"] + params["bias"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    keys = jax.random.split(jax.random.key(0), len(shapes))
    params = {
        name: jax.random.normal(key, shape) / jnp.sqrt(shape[0])
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
    params["bias"] = jnp.zeros(10)
    found = gf_jax.compare(
        *(loss, params),
        step_size=0.1,
        iterations=iterations,
        snapshots=min(10, iterations),
        ratios=(2, 5),
        label="a convolutional network",
    )
    print(found)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"at most {peak:.2g} GiB of memory")
    return found


if __name__ == "__main__":
    main()
