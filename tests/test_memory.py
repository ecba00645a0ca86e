"""Runs that do not fit into memory, and how much of it there is."""

import jax
import pytest

import gf_jax
from experiments.process import memory
from experiments.process.mistakes import UsageError
from gf_jax.descent.placement import Memory
from tests.conftest import SMALL, WITH_FLOW
from tests.test_descent import START, quadratic

GIB = 2**30


def test_memory_is_told_before_anything_is_computed():
    def refuse(needed):
        raise MemoryError(needed)

    schedule = gf_jax.Schedule(0.1, (2,), 12, snapshots=4, segments=1)
    calls = []

    def f(params):
        jax.debug.callback(lambda x: calls.append(x), params["x"][0])
        return quadratic(params)

    with pytest.raises(MemoryError) as refused:
        list(gf_jax.descent_segments(f, START, schedule, check_memory=refuse))
    jax.effects_barrier()
    assert not calls
    (needed,) = refused.value.args
    weights = 2 * 3 * 4  # two lanes, three weights, four bytes
    # At least the state in and out, which is one, and the snapshots; a few hundred bytes.
    assert (1 + 4) * weights < needed.device < 10_000
    assert needed.devices == 1
    # Snapshots of one segment, which are not copied, and metrics, which are.
    assert needed.host == 4 * weights + 2 * (2 * 12 * 4 * 4)
    assert needed.disk == 0


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_run_that_does_not_fit_is_refused(seeds, invoke, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 2**14)
    folder = tmp_path / "large"
    status, _, err = invoke(*SMALL, f"--seeds={seeds}", f"--output_dir={folder}")
    assert status == 2
    line = err.splitlines()[-1]
    assert "error: memory: the run needs about 0." in line
    assert "0.0156 MiB are free on this machine" in line
    assert ("--seeds or --" in line) == (seeds > 1)
    assert not folder.exists()


PIXELS = ("--coordinates=pixels", *WITH_FLOW, "--ratios=2,3")
DEEP = ("--experiment=deep_linear", *WITH_FLOW[:3], "--seeds=3", "--depths=2,3")


@pytest.mark.parametrize(
    ("arguments", "numbers"),
    [
        # times x (the flow and its deviation; with kinks all runs) x weights
        (PIXELS, 12 * 2 * 6 * (64 + 10)),
        ((*PIXELS, "--activation=relu"), 12 * 3 * 6 * (64 + 10)),
        ((*PIXELS, "--experiment=predict"), 12 * 2 * 6 * (64 + 10)),
        ((*PIXELS[:-1], "--experiment=large_steps"), 12 * 6 * (64 + 10)),
        ((*PIXELS[:-1], "--experiment=curvature"), 12 * 6 * (64 + 10)),
        # times x data sets x starts x weights of three layers
        (DEEP, 13 * 2 * (3 + 1) * (50 * 2 + 2 * 2 + 2)),
    ],
)
def test_a_flow_that_does_not_fit_is_refused_at_once(
    arguments, numbers, invoke, tmp_path, monkeypatch
):
    needs = []

    def refuse(needed, **_):
        needs.append(needed)
        raise UsageError("memory: too little")

    monkeypatch.setattr(memory, "check", refuse)
    folder = tmp_path / "large"
    status, out, err = invoke(*arguments, f"--output_dir={folder}")
    assert (status, out, err) == (2, "", "error: memory: too little\n")
    assert not folder.exists()
    assert needs == [Memory(8 * numbers, 1, 2 * 8 * numbers)]


def container(root, files, groups):
    """A root folder with the system's files, the machine having 8 GiB free."""
    files = {"proc/meminfo": "MemFree: 1 kB\nMemAvailable: 8388608 kB\n"} | files
    files["proc/self/cgroup"] = groups
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def group(folder, version, limit, taken, cached):
    """Files of a control group, in GiB."""
    names = {1: ("limit_in_bytes", "usage_in_bytes"), 2: ("max", "current")}[version]
    total = "total_" if version == 1 else ""
    cache = f"active_file 1\n{total}active_file {cached * GIB}\n{total}inactive_file {GIB}\n"
    return {
        f"{folder}/memory.{names[0]}": f"{limit if limit == 'max' else limit * GIB}\n",
        f"{folder}/memory.{names[1]}": f"{taken * GIB}\n",
        f"{folder}/memory.stat": f"anon 5\n{cache}file 17\n",
    }


V1, V2 = "sys/fs/cgroup/memory", "sys/fs/cgroup"


@pytest.mark.parametrize(
    ("files", "groups", "free"),
    [
        ({}, "", 8),
        ({}, "0::/\n", 8),  # no files of it
        (group(V2, 2, 4, 3, 1), "0::/\n", 4 - 3 + 1 + 1),
        (group(V2, 2, 64, 3, 1), "0::/\n", 8),  # the machine has less
        (group(V2, 2, "max", 3, 1), "0::/\n", 8),
        (group(V2, 2, 4, 6, 0), "0::/\n", 0),  # more than it may
        (group(f"{V2}/a/b", 2, "max", 1, 0) | group(f"{V2}/a", 2, 5, 3, 0), "0::/a/b\n", 3),
        (group(V1, 1, 6, 5, 2), "9:cpu:/x\n4:memory:/docker/0\n", 6 - 5 + 2 + 1),
        (group(f"{V1}/a", 1, 6, 5, 2), "4:hugetlb,memory:/a\n", 6 - 5 + 2 + 1),
        (group(f"{V1}/b", 1, 6, 5, 2), "4:memory:/a\n0::/\n", 8),  # another's
    ],
)
def test_available_memory_in_containers(files, groups, free, tmp_path):
    assert memory.available(container(tmp_path, files, groups)) == free * GIB


def test_available_memory_of_a_system_that_does_not_tell(tmp_path):
    assert memory.available(tmp_path) is None


def test_available_memory_here():
    free = memory.available()
    assert free is None or 0 <= free < 2**50
