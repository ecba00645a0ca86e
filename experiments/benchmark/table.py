"""What the benchmark shows in numbers."""

from typing import Any

from rich.console import Console

from experiments.output import report

COLUMNS = ("", "time", "quartiles", "gradients/s", "compile", "memory")
LEGEND = """\
time: milliseconds per base iteration of all runs, median and quartiles.
gradients/s: evaluations that the runs need (so none masked) per second.
compile: seconds for tracing, lowering and compiling.
memory: MB, of the largest compiled program as the compiler plans it; r: by
which the process grew instead."""

OTHERS = ("PyTorch eager", "padded vmap", "eager JAX")
RATIO_COLUMNS = ("", "PyTorch", "padded", "eager", "products", "GFLOP", "rate", "share")
RATIO_LEGEND = """\
PyTorch (eager), padded (vmap), eager (JAX): their time over that of gf_jax.
products: milliseconds for the matrix products of a base iteration, each called
alone in float32, the runs stacked as gf_jax has them; GFLOP: of all of them;
rate: GFLOP/s of them alone; share: their time over that of gf_jax, above 100 %
where products are so small that calling them counts."""

GROWTH = {
    "steps": "steps per base iteration, as ratios are added",
    "examples": "examples",
    "width": "width of both hidden layers",
    "starts": "starting points, from each of which all runs are made",
}


def show(summary: dict[str, Any], console: Console) -> None:
    """Prints the table, the ratios and the growth of cost."""
    title = (
        f"{summary['data']}, {summary['device']}\n"
        f"ratios {', '.join(map(str, summary['ratios']))}, {summary['rounds']} rounds"
    )
    rows: list[tuple[str, ...]] = []
    for network in summary["networks"]:
        rows.append((network["network"],))
        rows += [_cells(row) for row in network["implementations"]]
    report.show_table(console, title, COLUMNS, rows, legend=LEGEND, left=1)
    rows = [_ratios(network) for network in summary["networks"]]
    report.show_table(
        console, "how many times faster gf_jax is", RATIO_COLUMNS, rows, legend=RATIO_LEGEND, left=1
    )
    for line in [*_growth(summary), *_agreement(summary)]:
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    seconds, memory = row["seconds"], row["memory_bytes"]
    resident = " r" if row["memory_source"] == "resident" else ""
    return (
        f"  {row['name']}",
        _significant(1e3 * seconds["median"]),
        f"{_significant(1e3 * seconds['lower'])}–{_significant(1e3 * seconds['upper'])}",
        _significant(row["gradients_per_second"]),
        f"{row['compile_seconds']:.1f}",
        "" if memory is None else f"{memory / 1e6:,.1f}{resident}",
    )


def _ratios(network: dict[str, Any]) -> tuple[str, ...]:
    medians = {row["name"]: row["seconds"]["median"] for row in network["implementations"]}
    products = network["products"]
    return (
        network["network"],
        *(
            _significant(medians[name] / medians["gf_jax"]) if name in medians else ""
            for name in OTHERS
        ),
        _significant(1e3 * products["seconds"]),
        f"{products['flops'] / 1e9:.3g}",
        f"{products['flops'] / products['seconds'] / 1e9:.0f}",
        f"{products['share']:.0%}",
    )


def _growth(summary: dict[str, Any]) -> list[str]:
    if not summary["growth"]:
        return []
    lines = ["", "gf_jax on the fully connected ReLU network, milliseconds per base iteration:"]
    for sweep in summary["growth"]:
        points = ", ".join(
            f"{size}: {_significant(1e3 * seconds['median'])}"
            for size, seconds in zip(sweep["sizes"], sweep["seconds"], strict=True)
        )
        power = report.text(sweep["exponent"], ".2f")
        lines.append(f"  by {GROWTH[sweep['with']]}: {points}; grows as its power {power}")
    return lines


def _agreement(summary: dict[str, Any]) -> list[str]:
    """Whether all implementations made the same runs, and which are missing."""
    lines = []
    for network in summary["networks"]:
        lines += [f"{network['network']}: no {failure}" for failure in network["failures"]]
        for row in network["implementations"]:
            if not row["agrees"]:
                lines.append(
                    f"WARNING: on {network['network']}, {row['name']} ends with losses that differ "
                    f"by a share of {row['loss_difference']:.0e}: it does not make the same runs"
                )
    differences = [
        row["loss_difference"] for n in summary["networks"] for row in n["implementations"]
    ]
    return [*lines, f"all losses agree within a share of {max(differences):.0e}"]


def _significant(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"
