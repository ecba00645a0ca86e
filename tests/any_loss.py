"""Random small losses, what the library makes of them, and whether that is so.

    python -m tests.any_loss 1000 [--first=0] [--processes=2]

prints how many are right, told, refused, wrong and raised, and the seeds of each failure.
"""

import argparse
import collections
import multiprocessing
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tests.loss_parts import ALL, KINKED
from tests.losses import cases

FAILURES = ("wrong", "raised", "refused")
# Half of the losses are smooth: a part is taken from those without kinks, or from all.
PLAIN = 0.5
NONE_OFTEN = 0.5  # share of losses that leave out a part that may be left out
OFTEN = 50  # losses between which the counts are told


class Built(NamedTuple):
    """A random loss, the options of its comparison, and the names of its parts."""

    loss: cases.Loss
    options: dict
    parts: dict[str, str]

    @property
    def kinked(self) -> bool:
        return any(name in KINKED.get(part, ()) for part, name in self.parts.items())


def build(seed: int) -> Built:
    """The loss of a seed."""
    generator = np.random.default_rng(seed)
    parts = _chosen(generator)
    key = jax.random.key(seed)
    start = _start(generator)
    inputs, targets = (ALL[part][parts[part]](key) for part in ("inputs", "targets"))
    activation, mixer, guard, halt, penalty = (
        ALL[part][parts[part]] for part in ("activation", "mixer", "guard", "stop", "penalty")
    )
    activation = ALL["wrapper"][parts["wrapper"]](activation)

    def body(p, inputs, targets):
        hidden = mixer(activation(inputs @ p["w"] + p["b"]))
        out = halt(guard(hidden @ p["v"]))
        return ALL["loss"][parts["loss"]](out, targets) + penalty(p)

    options = {
        "step_size": float(generator.choice([0.02, 0.05, 0.1])),
        "iterations": int(generator.integers(20, 61)),
        "ratios": [(2,), (2, 5), (2, 5, 10)][generator.integers(3)],
        "snapshots": [None, 4, 10][generator.integers(3)],
    }
    return Built(cases.drawn(body, start, inputs=inputs, targets=targets), options, parts)


def _chosen(generator) -> dict[str, str]:
    plain, parts = generator.random() < PLAIN, {}
    for part, choices in ALL.items():
        names = [n for n in choices if not plain or n not in KINKED.get(part, ())]
        left_out = "none" in names and generator.random() < NONE_OFTEN
        parts[part] = "none" if left_out else str(generator.choice(names))
    return parts


def _start(generator):
    w = generator.choice(["drawn", "drawn", "zeros", "equal"])
    weights = {
        "drawn": generator.normal(size=(4, 3)) / 2,
        "zeros": np.zeros((4, 3)),
        "equal": np.full((4, 3), 0.3),
    }[w]
    start = {
        "w": jnp.asarray(weights, jnp.float32),
        "b": jnp.asarray(generator.normal(size=3) * generator.integers(0, 2) / 4, jnp.float32),
        "v": jnp.asarray(generator.normal(size=3) / 2 + 0.2, jnp.float32),
    }
    return start | [{}, {"nothing": None}, {"empty": ()}][generator.integers(3)]


def outcome(seed: int) -> tuple[str, str]:
    """A word for what becomes of the loss of a seed, and what is to be said of it."""
    built = build(seed)
    word, why = cases.outcome(built.loss, built.options)
    return word, f"{why} ({built.options}; {', '.join(built.parts.values())})"


def _outcome(seed: int) -> tuple[int, bool, str, str]:
    return seed, build(seed).kinked, *outcome(seed)


def main(count: int, first: int, processes: int) -> int:
    table, failures = collections.Counter(), []

    def tell():
        for (kind, word), number in sorted(table.items()):
            print(f"{kind:>10} {word:>8} {number:5d}", flush=True)

    with multiprocessing.get_context("spawn").Pool(processes, maxtasksperchild=50) as pool:
        for seed, kinked, word, why in pool.imap_unordered(_outcome, range(first, first + count)):
            kind = "with kinks" if kinked else "smooth"
            table[kind, word] += 1
            if word in FAILURES or (word == "told" and not kinked):
                failures.append(seed)
                print(f"{seed}: {kind}, {word}: {why}", flush=True)
            if table.total() % OFTEN == 0:
                tell()
    tell()
    print("seeds:", *sorted(failures))
    return int(any(word in FAILURES for _, word in table))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    raise SystemExit(main(**vars(parser.parse_args())))
