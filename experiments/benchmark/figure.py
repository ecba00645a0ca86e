"""Figure of what a base iteration costs."""

from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.output.figures import style

if TYPE_CHECKING:
    from experiments.output.figures import Axes, Figure

HORIZONTAL = {
    "steps": "steps per base iteration",
    "examples": "examples",
    "width": "width of both hidden layers",
    "starts": "starting points",
}


def draw(summary: dict[str, Any]) -> "Figure":
    """Draws the time of every implementation, and how the engine's grows.

    Upper row: medians and quartiles, one panel per network, with the time that the matrix
    products take alone. Lower row: marks with quartiles, and the power that fits.

    Returns:
      The figure.
    """
    networks, growth = summary["networks"], summary["growth"]
    rows = 2 if growth else 1
    figure = style.new(16.5, 4.7 * rows)
    upper, *lower = figure.subfigures(rows, 1, squeeze=False).flat
    panels = upper.subplots(1, len(networks), squeeze=False, sharey=True)[0]
    for axes, network in zip(panels, networks, strict=True):
        _bars(axes, network)
    if growth:
        curves = lower[0].subplots(1, len(growth), squeeze=False, sharey=True)[0]
        for axes, sweep in zip(curves, growth, strict=True):
            _growth(axes, sweep)
        curves[0].set_ylabel("ms per base iteration, logarithmic")
        lower[0].suptitle("gf_jax on the fully connected ReLU network")
    ratios = ", ".join(map(str, summary["ratios"]))
    title = (
        f"Cost of a base iteration with ratios {ratios}: {summary['data']}, on {summary['device']}"
    )
    return style.finish(figure, panels[0], title)


def _bars(axes: "Axes", network: dict[str, Any]) -> None:
    """Time of every implementation; that of this engine is marked."""
    rows = network["implementations"]
    names = [row["name"] for row in rows]
    medians, errors = _milliseconds([row["seconds"] for row in rows])
    for row, (name, value) in enumerate(zip(names, medians, strict=True)):
        colour = style.COLOURS[2 if name == "gf_jax" else 1]
        axes.errorbar(
            value,
            row,
            xerr=errors[:, row : row + 1],
            fmt="o",
            color=colour,
            capsize=3,
            markersize=8,
        )
        axes.annotate(
            f"{value:#.3g}" if value < 100 else f"{value:,.0f}",
            (value + errors[1, row], row),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=colour,
        )
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    products = 1e3 * network["products"]["seconds"]
    axes.axvline(
        products, color="0.4", linestyle=":", label="gf_jax's matrix products, measured alone"
    )
    axes.set_xscale("log")
    axes.set_xlim(min(products, medians.min()) / 1.6, medians.max() * 6)
    axes.set(
        title=network["label"].replace(" network", "\nnetwork"),
        xlabel="ms per base iteration, logarithmic",
    )
    axes.grid(visible=True, alpha=0.25)


def _growth(axes: "Axes", sweep: dict[str, Any]) -> None:
    sizes = np.array(sweep["sizes"], float)
    medians, errors = _milliseconds(sweep["seconds"])
    axes.errorbar(sizes, medians, errors, fmt="o", color=style.COLOURS[2], capsize=2)
    if sweep["exponent"] is not None:
        middle = np.exp(np.log(medians).mean() - sweep["exponent"] * np.log(sizes).mean())
        axes.plot(
            sizes,
            middle * sizes ** sweep["exponent"],
            "--",
            color="0.4",
            linewidth=1,
            label=f"power {sweep['exponent']:.2f}",
        )
        axes.legend(frameon=False)
    axes.set(xscale="log", yscale="log", xlabel=f"{HORIZONTAL[sweep['with']]}, logarithmic")
    axes.set_title(f"by {sweep['with']}")
    axes.set_xticks(sizes, [f"{size:,.0f}" for size in sizes])
    axes.minorticks_off()
    axes.grid(visible=True, alpha=0.25)


def _milliseconds(seconds: list[dict[str, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Medians, and the distances of the quartiles from them, in milliseconds."""
    table = 1e3 * np.array([[row["median"], row["lower"], row["upper"]] for row in seconds])
    medians, lower, upper = table.T
    return medians, np.array([medians - lower, upper - medians])
