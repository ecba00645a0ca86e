"""The benchmark: what is measured, and what becomes of it."""

import contextlib
import dataclasses
import functools
import importlib
import itertools
import os
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from rich.console import Console

from experiments.benchmark import engine, figure, measuring, table, textbook, workload
from experiments.benchmark.measuring import Entrant, Make
from experiments.benchmark.workload import UnavailableError, Workload
from experiments.cli import command_line, usage
from experiments.cli.options import option, positive
from experiments.output import figures, report
from experiments.problems import problem
from experiments.problems.data import Dataset
from experiments.problems.networks import FULLY_CONNECTED, NETWORKS
from experiments.process import folders, streams
from experiments.process.mistakes import EXIT_INTERRUPTED, EXIT_USAGE, UsageError
from experiments.runs import harness, progress, store
from experiments.studies import groups, paper
from gf_jax.program.arithmetic import ARITHMETICS

# Roughly the seconds that a network takes to get ready, and to be measured once, per
# implementation and on two cores: for the estimate of the time left.
COSTS = {"linear": (3, 0.5), "relu": (3, 0.5), "conv_adapted": (6, 0.8), "lenet5": (20, 1.8)}
SWEEP = "relu"  # all its layers are products, which the linear network's are not
WIDTHS = (25, 50, 100, 200)  # of both hidden layers
SHARES = (8, 4, 2, 1)  # of the examples
STARTS = (1, 2, 4, 8)  # starting points
AGREEMENT = 1e-4  # of losses, relative: rounding is far below, a mistake far above
EXIT_DISAGREEMENT = 1
MEASURED = "What to measure"


def _networks(names: tuple[str, ...]) -> str:
    if not names or not set(names) <= set(workload.FORMS):
        unknown = next((name for name in names if name not in workload.FORMS), "")
        accepted = f"accepted are some of {', '.join(workload.FORMS)}"
        return usage.nearest(unknown, workload.FORMS) + accepted
    return "" if len(set(names)) == len(names) else "give every network once"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Runs(groups.Data):
    """On which networks, and with which step sizes, runs are made to be measured.

    Raises:
      UsageError: on values or combinations that are not accepted.
    """

    networks: tuple[str, ...] = option(
        f"Some of {', '.join(workload.FORMS)}, separated by commas.",
        tuple(workload.FORMS),
        MEASURED,
        value="NAME,...",
        accepted=_networks,
    )
    ratios: tuple[int, ...] = groups.ratios_option((1, 2, 5, 10, 20), MEASURED)
    output_dir: str | None = groups.output_dir()

    def check(self) -> None:
        """Raises UsageError on runs that the main program does not make."""
        super().check()
        self.runs(SWEEP)

    def runs(self, network: str) -> paper.Options:
        """The options of the main program for the same runs, whose rules hold here too."""
        # The fully connected ones have the names of their activations.
        dense = network not in NETWORKS
        return paper.Options.of(
            network=FULLY_CONNECTED if dense else network,
            activation=network if dense else None,
            ratios=self.ratios,
            dataset=self.dataset,
            data_dir=self.data_dir,
            examples=self.examples,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Runs):
    """What the benchmark is to do."""

    torch: bool | None = option(
        "Whether PyTorch takes part; if not given, where it is installed.", None, MEASURED
    )
    rounds: int = option(
        "How often everything is measured, in turn.", 5, MEASURED, accepted=positive
    )


def run(settings: Settings) -> int:
    """Measures, and writes the run directory.

    Networks that were complete when it was interrupted are kept, and those that fit into
    memory.

    Returns:
      The exit status: 0; 1 if the implementations do not make the same runs, 2 if memory does
      not suffice for all networks, 130 if it was interrupted.

    Raises:
      UsageError: on data, an output directory or PyTorch that are not there.
    """
    device = problem.device()
    torch, without = _pytorch(settings.torch)
    workloads = build_workloads(settings)
    directory = folders.create(settings.output_dir, "benchmark")
    console, dataset = Console(), next(iter(workloads.values())).study.dataset

    def say(text: str) -> None:
        console.print(text, soft_wrap=True, highlight=False, markup=False)

    harness.warn(dataset)
    say(f"{name_of(device)}; ratios {', '.join(map(str, _ratios(settings)))}")
    if without:
        say(f"without PyTorch: {without}")
    streams.keep(directory)
    values = dataclasses.asdict(settings)
    store.write_configuration(directory, values, dataset, ", ".join(settings.networks))
    summary: dict[str, Any] = {
        "data": dataset.label,
        "ratios": list(_ratios(settings)),
        "rounds": settings.rounds,
        "device": name_of(device),
        "torch": torch.description() if torch else None,
        "networks": [],
        "growth": [],
        "out_of_memory": [],
        "interrupted": False,
    }
    try:
        progress.solve(
            "benchmark", lambda tell: _measure(settings, workloads, torch, summary, tell)
        )
    except KeyboardInterrupt:
        # What was left behind may still add to it.
        summary = summary | {"networks": list(summary["networks"]), "interrupted": True}
    store.write_summary(directory, summary)
    if summary["networks"]:
        figures.attempt(lambda: figure.draw(summary), directory, say)
        table.show(summary, console)
    say(f"everything lies in {directory}")
    return _end(settings, summary, say)


def _end(settings: Settings, summary: dict[str, Any], say: Callable[[str], None]) -> int:
    """Says what is missing, and returns the exit status."""
    done = [network["network"] for network in summary["networks"]]
    kept = f"{len(done)} of {len(settings.networks)} networks are complete"
    if summary["interrupted"]:
        say(f"interrupted: this is less than was asked for, {kept}")
        return EXIT_INTERRUPTED
    if summary["out_of_memory"]:
        missing = ", ".join(summary["out_of_memory"])
        say(f"memory: too little for {missing}, {kept}; take a smaller --examples")
        return EXIT_USAGE
    agree = all(row["agrees"] for n in summary["networks"] for row in n["implementations"])
    return 0 if agree else EXIT_DISAGREEMENT


def name_of(device: jax.Device) -> str:
    """What outputs call the device."""
    cores = f", {os.cpu_count()} cores" if device.platform == "cpu" else ""
    return f"{device.device_kind}{cores}"


def _pytorch(wanted: bool | None) -> tuple[ModuleType | None, str]:
    """The module of PyTorch's forms; or None, and why.

    Raises:
      UsageError: if it is wanted and not there.
    """
    if wanted is False:
        return None, ""
    try:
        module = importlib.import_module("experiments.benchmark.pytorch")
        reason = module.missing_device()
    except ImportError as error:
        reason = f"{error}; install it by pip install -e '.[benchmark]'"
    if reason and wanted:
        raise UsageError(f"--torch: {reason}")
    return (None, reason) if reason else (module, "")


def build_workloads(settings: Settings) -> dict[str, Workload]:
    """The runs on every network, and on that of the sweeps."""
    datasets: dict[bool, Dataset] = {}
    names = dict.fromkeys((*settings.networks, SWEEP))
    return {network: build_workload(settings, network, datasets) for network in names}


def build_workload(settings: Runs, network: str, datasets: dict[bool, Dataset]) -> Workload:
    """The runs on a network.

    Args:
      settings: which they are.
      network: its name.
      datasets: those that were loaded, enlarged or not; what is missing is added.
    """
    options = settings.runs(network)
    if options.enlarged not in datasets:
        datasets[options.enlarged] = problem.load_data(options)
    study = problem.build(options, datasets[options.enlarged])
    return workload.of(network, study, _ratios(settings))


def _ratios(settings: Runs) -> tuple[int, ...]:
    return settings.runs(SWEEP).schedule.lanes


def _measure(
    settings: Settings,
    workloads: dict[str, Workload],
    torch: ModuleType | None,
    summary: dict[str, Any],
    tell: Callable[[float], Any],
) -> None:
    """Adds everything that is measured to the summary; tells the share that is done."""
    makers = _makers(settings.rounds, torch)
    sweeps = list(_sweep_points(workloads[SWEEP]))
    work = [
        len(makers) * (ready + settings.rounds * once)
        for ready, once in (COSTS[network] for network in settings.networks)
    ]
    ready, once = COSTS[SWEEP]
    total = sum(work) + len(sweeps) * (ready + settings.rounds * once)
    done = 0.0

    def advance(cost: float) -> None:
        nonlocal done
        done += cost
        tell(min(done / total, 1.0))  # rounding of the sum

    # The engine asks for full float32 products itself; the other forms are asked here.
    with ARITHMETICS["float32"].context():
        for network in settings.networks:
            with _room_for(network, summary["out_of_memory"]):
                measured = _network(workloads[network], makers, settings.rounds, advance)
                summary["networks"].append(measured)
        with _room_for("the growth", summary["out_of_memory"]):
            summary["growth"] = _growth(sweeps, settings.rounds, advance)


@contextlib.contextmanager
def _room_for(name: str, missing: list[str]) -> Iterator[None]:
    """Gives up what does not fit into memory, and adds its name to those that are missing."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not command_line.lacks_memory(error):
            raise
        missing.append(name)


def _makers(rounds: int, torch: ModuleType | None) -> list[Make]:
    return [
        textbook.eager,
        textbook.jitted_step,
        textbook.scan_per_run,
        textbook.padded_vmap,
        _engine(rounds),
        *([torch.eager, torch.compiled] if torch else []),
    ]


def _engine(rounds: int) -> Make:
    """This engine, called twice to make it ready and once in every round."""
    return functools.partial(engine.engine, calls=rounds + 2)


def _network(
    runs: Workload, makers: list[Make], rounds: int, advance: Callable[[float], None]
) -> dict[str, Any]:
    """All implementations on one network."""
    ready, once = COSTS[runs.network]
    runs = measuring.calibrated(runs)
    entrants, failures = [], []
    for make in makers:
        try:
            entrants.append(measuring.enter(runs, make))
        except UnavailableError as error:
            failures.append(str(error))
        advance(ready)
    times = measuring.rounds(entrants, rounds, lambda: advance(once))
    rows = [_row(runs, entrant, times[:, at]) for at, entrant in enumerate(entrants)]
    ours = compare(rows)
    products = engine.measure_products(runs)
    return {
        "network": runs.network,
        "label": runs.study.network_label,
        "data": runs.study.dataset.label,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(runs.start)),
        "iterations": runs.iterations,
        "implementations": rows,
        "failures": failures,
        "products": products._asdict() | {"share": products.seconds / ours["seconds"]["median"]},
    }


def _row(runs: Workload, entrant: Entrant, times: Float[np.ndarray, " rounds"]) -> dict[str, Any]:
    """The numbers of one implementation."""
    whole = entrant.implementation.whole
    return {
        "name": entrant.implementation.name,
        "seconds": _quartiles(times),
        "gradients_per_second": sum(runs.ratios) / float(np.median(times)),
        "compile_seconds": entrant.compile_seconds,
        "memory_bytes": entrant.memory.bytes,
        "memory_source": entrant.memory.source,
        "iterations_measured": entrant.units / whole * entrant.iterations,
        "losses": entrant.losses.tolist(),
    }


def compare(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Adds to every row how far its losses are from the engine's, whose row it returns."""
    (ours,) = (row for row in rows if row["name"] == "gf_jax")
    expected = np.array(ours["losses"])
    for row in rows:
        differences = np.abs(np.array(row["losses"]) / expected - 1)
        row["loss_difference"] = float(np.nanmax(differences))
        row["agrees"] = row["loss_difference"] < AGREEMENT
        row["losses"] = [report.finite(loss) for loss in row["losses"]]
    return ours


def _sweep_points(runs: Workload) -> Iterator[tuple[str, int, Workload]]:
    """What grows, how large it is, and the runs."""
    for count in range(1, len(runs.ratios) + 1):
        ratios = runs.ratios[:count]
        yield "steps", sum(ratios), runs._replace(ratios=ratios)
    dataset, examples = runs.study.dataset, len(runs.labels)
    for number in sorted({max(examples // share, 1) for share in SHARES}):
        fewer = dataset._replace(images=dataset.images[:number], labels=dataset.labels[:number])
        yield "examples", number, _changed(runs, fewer)
    for width in WIDTHS:
        yield "width", width, _changed(runs, dataset, widths=(width, width))
    for starts in STARTS:
        yield "starts", starts, _changed(runs, dataset, seeds=starts)


def _changed(runs: Workload, dataset: Dataset, **changes: Any) -> Workload:
    """The same runs on other data, a network of other widths, or from several starts."""
    options = paper.Options.of(activation=runs.network, ratios=runs.ratios, **changes)
    study, starts = problem.build(options, dataset), len(options.starts_of_seeds)
    return workload.of(runs.network, study, runs.ratios, starts)


def _growth(
    sweeps: list[tuple[str, int, Workload]], rounds: int, advance: Callable[[float], None]
) -> list[dict[str, Any]]:
    """How the engine's cost grows with one thing at a time, and the power that fits."""
    ready, once = COSTS[SWEEP]
    entrants = []
    for _, _, runs in sweeps:
        entrants.append(measuring.enter(measuring.calibrated(runs), _engine(rounds)))
        advance(ready)
    times = measuring.rounds(entrants, rounds, lambda: advance(once))
    growth = []
    columns = zip(sweeps, times.T, strict=True)
    for name, points in itertools.groupby(columns, key=lambda pair: pair[0][0]):
        kept = [(size, _quartiles(column)) for (_, size, _), column in points]
        medians = [quartiles["median"] for _, quartiles in kept]
        sizes = [size for size, _ in kept]
        slope = np.polyfit(np.log(sizes), np.log(medians), 1)[0] if len(sizes) > 1 else np.nan
        growth.append(
            {
                "with": name,
                "sizes": sizes,
                "seconds": [quartiles for _, quartiles in kept],
                "exponent": float(slope) if np.isfinite(slope) else None,
            }
        )
    return growth


def _quartiles(times: Float[np.ndarray, " rounds"]) -> dict[str, float]:
    lower, median, upper = np.percentile(times, (25, 50, 75))
    return {"median": float(median), "lower": float(lower), "upper": float(upper)}
