"""Comparisons and run directories made without computing, and files of them that are damaged."""

import copy
import dataclasses
import io
import json
import math
import warnings
import zipfile

import numpy as np

import gf_jax
from experiments.runs import store
from gf_jax.optimizers.method import Method
from gf_jax.study.files import write_json
from gf_jax.study.record import Reference, Run

RATIOS = (1, 2, 5)
NUMBERS = [
    *(np.nan, np.inf, -np.inf, -1.0, 0.0, -0.0, 0.5, 1e-45, 5e-324, 1e19, 1e38, -1e300, 1.7e308),
    *(2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, -(2**63), 1),
]
DTYPES = ["f2", "f4", "f8", ">f4", ">f8", "f16", "i1", "u1", "i2", "i4", "i8", ">i8", "u8", "?"]
DTYPES += ["c8", "U3", "S2", "V3", "M8[s]"]
TEXTS = [b"\x1b[2J", b"$\\frac$", b"\xff\xfe", b"[bold]", b"\x00", "é\u202e\u200b".encode(), b"\n"]
VALUES = [
    *(None, True, False, 0, 1, -1, 0.5, 1e308, -1e308, 10**18, 10**25, "", "0.1", "$x\x1b[2J[b]"),
    *("x" * 5_000, "\ud800\u202e", [], {}, [1], ["a", 2.5], {"a": {"b": [1]}}, [[[[[]]]]]),
]
RAW = [b"NaN", b"Infinity", b"1e999", b"9" * 5_000, b"[" * 900 + b"]" * 900, b'{"a": 1, "a": 2}']


def run(generator, *, seeds=(), flow=True, method=None, diverged=False, short=False):
    """A run with numbers of no meaning but of the right kinds."""
    method, iterations = method or Method(), np.arange(21)
    kept = np.array([], int) if short else np.array([5, 10, 15, 20])
    lanes = (len(seeds), 3) if seeds else (3,)

    def norms(*shape):
        return np.sort(generator.random((*shape, *lanes)), axis=0).astype(np.float32)

    metrics = gf_jax.Metrics(*(norms(21) for _ in range(4)))
    metrics.distance_to_base[..., 0] = 0
    if diverged:
        metrics.loss[12:, ..., 0] = np.nan
    fields = ("network", "data", 0.1, RATIOS, iterations, metrics, kept, norms(len(kept)))
    found = Run(*fields, _reference(generator, lanes) if flow else None, seeds, method=method)
    return dataclasses.replace(found, doubts=("The flow may be known less well than it says.",))


def _reference(generator, lanes):
    def points(*shape):
        return generator.random((4, *lanes[:-1], *shape))

    work = np.full(lanes[:-1], 100) if len(lanes) > 1 else 100
    far = points(3)
    near = [far, far / 50, points(3) > 0.3, far * 1.01, far * 0.99, points()]
    return Reference(points(), points(), points() / 99, *near, *[work] * 3, far / 90)


def comparisons(generator):
    """Of several kinds: with all there is, with as little as there can be, and in between."""
    momentum = Method(0.9, nesterov=True, batch_size=7)
    snapshots = {
        "dense.kernel": generator.random((4, 3, 2, 2)).astype(np.float32),
        "dense.bias": generator.random((4, 3)),
    }
    flow = {name: leaf[:, 0].astype(float) for name, leaf in snapshots.items()}
    ends = [gf_jax.theory.Eigenvalue(generator.random(4), generator.random(4)) for _ in range(2)]
    curvature = gf_jax.Curvature(*ends, 30)
    plain, alone = run(generator), run(generator, flow=False, diverged=True)
    return [
        gf_jax.Comparison(dataclasses.replace(plain, accuracy=None), snapshots, flow, curvature, 2),
        gf_jax.Comparison(run(generator, method=momentum), snapshots, flow),
        gf_jax.Comparison(dataclasses.replace(alone, doubts=()), snapshots),
    ]


def run_directories(folder, generator):
    """Run directories of several kinds."""
    many, plain = Method(0.5), Method()
    kinds = [
        {"method": plain},
        {"seeds": (3, 4), "method": many},
        {"flow": False, "diverged": True},
        {"flow": False, "short": True},
    ]
    for number, options in enumerate(kinds):
        directory, saved = folder / str(number), run(generator, **options)
        directory.mkdir()
        write_json(directory / "configuration.json", description(saved))
        store.write_metrics(directory, saved)
        points = (len(saved.snapshot_iterations), *saved.metrics.loss.shape[1:])
        store.write_snapshots(directory, saved, {"dense_1": {"weight": np.ones((*points, 2))}})
        if saved.reference is not None:
            store.write_flow(directory, saved, {"dense_1": {"weight": np.ones((*points[:-1], 2))}})
        store.write_summary(directory, {"interrupted": True, "seconds": 1.5})
        yield directory


def description(saved):
    configuration = {"experiment": "paper", "step_size": saved.step_size, "ratios": [2, 5]}
    configuration |= {"iterations": 20, "snapshots": 4, "widths": [6], "dataset": "digits"}
    configuration |= {"network": "fully_connected", "activation": "linear", "flow": True}
    configuration |= {"seed": 0, "init_scale": 1.0, "arithmetic": "compensated", "mesh": "auto"}
    return {
        "configuration": configuration,
        "network": saved.network_label,
        "data": {"label": saved.data_label, "source": "here", "mean": 0.1, "std": 0.2},
        "device": {"platform": "cpu", "kind": "cpu", "count": 1},
        "versions": {"python": "3.11", "jax": "0.10"},
        "digests": {"data": "0" * 64, "initial_params": "1" * 64},
        "command": ["main", "--ratios=2,5"],
        "started": "2026-01-01T00:00:00",
        "resumed": [{"at": "2026-01-02T00:00:00"}],
    }


class Npz:
    """A file of arrays to be damaged, taken apart once."""

    def __init__(self, content):
        self.content = content
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            self.members = {name: archive.read(name) for name in archive.namelist()}

    def mutant(self, generator):
        """The file with one to three things wrong with it."""
        if generator.random() < 0.15:
            return damaged_bytes(self.content, generator)
        members = list(self.members.items())
        for _ in range(generator.choice([1, 1, 2, 3])):
            _change(members, generator)
        file = io.BytesIO()
        packed = zipfile.ZIP_DEFLATED if generator.random() < 0.1 else zipfile.ZIP_STORED
        with zipfile.ZipFile(file, "w", packed) as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names that are there twice
            for name, content in members:
                archive.writestr(zipfile.ZipInfo(name), content, packed)
        return file.getvalue()


def damaged_bytes(content, generator):
    """Bits flipped, or cut off, or bytes put in."""
    way, at = generator.integers(3), generator.integers(len(content))
    if way == 0:
        return content[:at]
    if way == 1:
        return content[:at] + generator.bytes(generator.integers(1, 9)) + content[at:]
    changed = bytearray(content)
    for place in generator.integers(len(content), size=generator.integers(1, 4)):
        changed[place] ^= 1 << generator.integers(8)
    return bytes(changed)


def _change(members, generator):
    """One thing goes wrong with one member, or with two."""
    at, other = generator.integers(len(members), size=2)
    (name, content), (_, strange) = members[at], members[other]
    way = generator.integers(15)
    if way == 0 and len(members) > 1:
        del members[at]
    elif way == 1:
        members[at] = (name, strange)
    elif way == 2:
        members.append((name, strange if generator.random() < 0.5 else content))
    elif way == 3:
        members[at] = (_name(name, generator), content)
    elif way == 4:
        members[at] = (name, _header(content, generator))
    else:
        members[at] = (name, _array(content, generator))


def _name(name, generator):
    prefix, _, last = name.rpartition(".npy")[0].rpartition(".")
    choices = [
        "\x1b[2J" + name,
        name[:-4] + "x" * 3_000 + ".npy",
        f"{last}.npy",
        f"snapshots.{name}",
    ]
    choices += [f"{prefix}.{last}.{last}.npy", "run.seeds.npy", "run.accuracy.npy", "seed.npy"]
    choices += ["doubts.npy", "run.doubts.npy", "flow.new.npy", "batch_size.npy", "momentum.npy"]
    return choices[generator.integers(len(choices))]


def _header(content, generator):
    """The same data under another header."""
    shapes = ["()", "(1,)", "(-1,)", "(0,)", "(10**12,)", "(2, 2)", "(4, 3)", f"({2**70}, 0)", "x"]
    descr = DTYPES[generator.integers(len(DTYPES))]
    shape = shapes[generator.integers(len(shapes))]
    order = bool(generator.integers(2))
    text = f"{{'descr': {descr!r}, 'fortran_order': {order}, 'shape': {shape}, }}\n"
    version = generator.integers(1, 4)
    size = len(text) if generator.random() < 0.9 else int(generator.integers(2**16))
    start = b"\x93NUMPY" + bytes([version, 0]) + size.to_bytes(2 if version == 1 else 4, "little")
    return start + text.encode() + content[128:]


def _array(content, generator):
    """Another array in its place."""
    file = io.BytesIO()
    try:
        with np.errstate(all="ignore"):
            np.save(file, _changed(np.load(io.BytesIO(content)), generator))
    except Exception:  # it was damaged before, or is not of numbers
        return content
    return file.getvalue()


def _changed(array, generator):
    way = generator.integers(12)
    if way == 0:
        return array.astype(DTYPES[generator.integers(len(DTYPES))])
    if way == 1:
        shapes = [(-1,), (1, *array.shape), (*array.shape, 1), array.shape[::-1], (array.size, 1)]
        return array.reshape(shapes[generator.integers(len(shapes))])
    if way == 2:
        return array[: generator.integers(3)] if array.ndim else array[None]
    if way == 3:
        return np.repeat(array, generator.integers(1, 4), axis=0) if array.ndim else array * 3
    if array.dtype == np.uint8:
        parts = [TEXTS[generator.integers(len(TEXTS))] for _ in range(3)] + [array.tobytes()]
        text = b"".join(parts) * (1 if generator.random() < 0.9 else 2_000)
        return np.frombuffer(text, np.uint8)
    if way == 4 and array.dtype.kind == "f":
        return array * 10.0 ** generator.integers(-320, 309)
    if way == 5:
        changed = bytearray(array.tobytes())
        if changed:
            changed[generator.integers(len(changed))] ^= 1 << generator.integers(7)
        return np.frombuffer(bytes(changed), array.dtype).reshape(array.shape)
    return _with_numbers(array, generator)


def _with_numbers(array, generator):
    """Some entries, or all of them, are another number."""
    changed, number = array.copy(), NUMBERS[generator.integers(len(NUMBERS))]
    if changed.dtype.kind in "iu" and not math.isfinite(number):
        number = -1
    if changed.dtype.kind in "iu":
        limits = np.iinfo(changed.dtype)
        number = min(max(int(number), limits.min), limits.max)
    if generator.random() < 0.3 or not changed.size:
        changed[...] = number
    else:
        where = generator.integers(changed.size, size=generator.integers(1, 4))
        changed.reshape(-1)[where] = number
    return changed


def mutant_json(content, generator):
    """A JSON file with something wrong: its bytes, a value, a name, or what is no JSON."""
    way = generator.integers(10)
    if way == 0:
        return damaged_bytes(content, generator)
    if way == 1:
        raw = RAW[generator.integers(len(RAW))]
        values = [at for at in range(len(content)) if content[at : at + 2] == b": "]
        at = values[generator.integers(len(values))] + 2
        return content[:at] + raw + content[content.index(b"\n", at) - 1 :]
    found = json.loads(content)
    for _ in range(generator.integers(1, 3)):
        _change_value(found, generator)
    return json.dumps(found).encode()


def _change_value(found, generator):
    holders = [found] if generator.random() < 0.3 else [h for h in found.values() if h]
    holders = [each for each in holders if isinstance(each, (dict, list))] or [found]
    holder = holders[generator.integers(len(holders))]
    places = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
    place = places[generator.integers(len(places))]
    way = generator.integers(6)
    if way == 0:
        del holder[place]
    elif way == 1 and isinstance(holder, dict):
        holder["\x1b[2J" + "x" * int(generator.integers(2_000))] = holder.pop(place)
    else:
        holder[place] = copy.deepcopy(VALUES[generator.integers(len(VALUES))])
