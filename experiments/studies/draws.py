"""Descent in batches drawn at random: how runs spread around their mean, and that around the flow.

    python -m experiments.main --experiment=draws

makes 64 runs with each of three step sizes, from one start, in batches of 10 examples drawn with
replacement at every step, and predicts from the flow alone how far a run stands from the mean
run, the mean run from the flow, and their mean loss from that of the flow.

    python -m experiments.main --experiment=draws --svag=4

takes four smaller, noisier steps for each, which tells whether the stochastic differential
equation is the right limit. `--order=shuffled` draws without replacement within an epoch, which
is measured and not predicted.
"""

import dataclasses
import time
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from rich.console import Console

import gf_jax
from experiments.cli.experiment import Experiment
from experiments.cli.options import option, positive, seed
from experiments.output import report
from experiments.output.figures import style
from experiments.process.mistakes import EXIT_DIVERGED, UsageError
from experiments.runs import descending, harness, store, structures
from experiments.runs.harness import NetworkWorkplace
from experiments.studies import groups
from gf_jax.descent.batches import CYCLIC, ORDERS, REPLACEMENT
from gf_jax.descent.segments import Trajectory
from gf_jax.optimizers.method import Method
from gf_jax.problems.objective import check_batch_size
from gf_jax.records import record

if TYPE_CHECKING:
    from experiments.output.figures import Axes, Figure

MOST_DRAWS = 100_000
SIGMAS = 3.0  # standard errors by which what is measured and what is predicted may differ
STEPS, WHAT = "Step sizes and time", "What to run"
NAMES = ("spread", "mean_to_flow", "loss_difference")
LABELS = ("spread", "mean to flow", "loss above")
LEGEND = f"""\
spread: root mean square distance of a run from the mean run. mean to flow:
distance of the mean run from gradient flow, free of the bias of so few runs.
loss above: mean loss of the runs less that of the flow. ±: standard error of
the draws, and of what is predicted all errors, with {SIGMAS:g} standard errors.
order: slope of its logarithm against that of the step size."""
TITLES = ("Spread of the runs", "Mean run from gradient flow", "Mean loss above that of the flow")
READINGS = (
    (
        "How far a run stands from the mean of all runs with its step size. Marks are measured, "
        "lines predicted from the flow; a quarter of the step size halves it."
    ),
    (
        "How far the mean of all runs stands from the flow. It is of the size of the step itself, "
        "so that a quarter of the step size makes a quarter of it. No mark: too few runs to tell."
    ),
    "How much higher the loss is on average than that of the flow.",
)


def _some_draws(count: int) -> str:
    inside = 2 <= count <= MOST_DRAWS
    return "" if inside else f"accepted is an integer from 2 to {MOST_DRAWS}"


def _some_samples(count: int) -> str:
    return "" if count >= 2 else "accepted is an integer from 2 on"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(groups.Arithmetic, groups.Segments, groups.Ratios):
    """What the experiment can be told."""

    step_size: float = 0.01
    iterations: int = 200
    ratios: tuple[int, ...] = groups.ratios_option((2, 4))
    snapshots: int = 20  # each of all runs
    draws: int = option(
        "Number of independent runs with every step size.", 64, WHAT, accepted=_some_draws
    )
    batch_size: int = option(
        "Number of examples in a batch, which every step draws; shuffled, a divisor of examples.",
        10,
        STEPS,
        accepted=positive,
    )
    order: str = option(
        "How batches are drawn.",
        REPLACEMENT,
        STEPS,
        choices={name: meaning for name, meaning in ORDERS.items() if name != CYCLIC},
    )
    svag: int = option(
        "Small steps that stand for one, of its size in all, along a noisier combination of two "
        "batches each; 1 is plain descent. As it grows, runs follow the stochastic equation.",
        1,
        STEPS,
        accepted=positive,
    )
    batch_seed: int = option("Seed of the draws of batches.", 0, STEPS, accepted=seed)
    samples: int = option(
        "Samples of the noise that the prediction follows; its error is as the root of it.",
        16,
        WHAT,
        accepted=_some_samples,
    )

    @property
    def method(self) -> Method:
        """How a step is made of gradients."""
        return Method(batch_size=self.batch_size)

    @property
    def sampling(self) -> dict[str, Any]:
        """How batches are drawn, as ``Classification.batches`` takes it."""
        return {"order": self.order, "svag": self.svag, "seed": self.batch_seed}

    @property
    def unpredicted(self) -> str:
        """Why nothing is predicted; empty if it is."""
        if self.order != REPLACEMENT:
            return (
                "Not predicted: within an epoch that is shuffled the first order of the spread "
                "cancels; take --order=replacement."
            )
        if not self.smooth:
            return "Not predicted: the loss has kinks; take --activation=tanh, for example."
        return ""

    @property
    def flow_runs(self) -> int:
        """As many trajectories as the flow amounts to; of the prediction none is kept."""
        return 1

    def check(self) -> None:
        """Raises UsageError on batches that cannot be drawn so."""
        super().check()
        try:
            check_batch_size(self.batch_size, self.examples, self.order)
        except ValueError as error:
            raise UsageError(f"--{error}") from None
        if self.svag > 1 and self.order != REPLACEMENT:
            raise UsageError(
                f"--svag={self.svag}: takes independent batches, which --order={self.order} does "
                "not draw; drop one of the two flags"
            )

    def unused(self) -> dict[str, str]:
        """Without a prediction its samples."""
        reason = "are of a prediction, and nothing is predicted here; drop the flag"
        return super().unused() | ({"samples": reason} if self.unpredicted else {})


@record
class Draws:
    """Many runs with every step size beside their flow.

    Attributes:
      network_label, data_label: what is trained on what.
      draws: number of runs with every step size.
      batch_size, svag: of the steps.
      step_sizes: of the runs, the largest first.
      times: of all numbers below.
      flow_loss, distance_from_init: of the flow.
      measured: what the runs amount to.
      predicted: the same without them; None if nothing is predicted.
    """

    network_label: str
    data_label: str
    draws: int
    batch_size: int
    svag: int
    step_sizes: np.ndarray
    times: np.ndarray
    flow_loss: np.ndarray
    distance_from_init: np.ndarray
    measured: gf_jax.Ensemble
    predicted: gf_jax.Ensemble | None


def run(options: Options) -> int:
    """Runs the experiment and writes its run directory.

    Returns:
      The exit status: 0, or 3 if a run diverged, or 130 if it was interrupted.

    Raises:
      UsageError: on data, weights or an output directory that are not accepted.
    """
    workplace = harness.begin(EXPERIMENT, options)
    started = time.perf_counter()
    outcome = descending.descend(workplace, options.schedule, options.arithmetic)
    if outcome is None or outcome.interrupted:
        return harness.interrupt(workplace, "the runs are not complete")
    try:
        flow, predicted = _flow(workplace)
    except KeyboardInterrupt:
        return harness.interrupt(workplace, "the flow is not known yet")
    saved = Draws(
        network_label=workplace.study.network_label,
        data_label=workplace.study.dataset.label,
        draws=options.draws,
        batch_size=options.batch_size,
        svag=options.svag,
        step_sizes=np.array(options.all_step_sizes),
        times=flow.times,
        flow_loss=flow.loss,
        distance_from_init=descending.distance_from_init(workplace.study, flow.params),
        measured=_measured(outcome.trajectory, flow),
        predicted=predicted,
    )
    seconds = {"descent": outcome.seconds, "all": time.perf_counter() - started}
    summary = summarise(saved) | {"unpredicted": options.unpredicted, "seconds": seconds}
    with harness.results(workplace):
        store.write_record(workplace.directory, "draws", saved)
    figure = harness.draw(workplace, lambda: draw(saved))
    _print(summary, workplace.console)
    for line in filter(None, (options.unpredicted, *summary["verdict"])):
        workplace.say(line)
    harness.end(workplace, summary, figure)
    return EXIT_DIVERGED if summary["diverged"] else 0


def _flow(workplace: NetworkWorkplace[Options]) -> tuple[gf_jax.Flow, gf_jax.Ensemble | None]:
    """The flow at the snapshots, and what is predicted of the runs, if it is."""
    options, study = workplace.options, workplace.study
    f, start = study.objective.loss, study.initial_params
    schedule = options.schedule
    times = schedule.clock().times(schedule.snapshot_iterations)
    sizes = {"times": len(times), "lanes": len(schedule.lanes)}
    if options.unpredicted:
        like = structures.of(gf_jax.Flow, start, times=len(times))
        flow = harness.solve_once(
            workplace,
            "gradient flow",
            lambda tell: gf_jax.gradient_flow(f, start, times, progress=tell),
            like,
        )
        return flow, None
    batches = study.objective.batches(options.batch_size, **options.sampling)
    found = harness.solve_once(
        workplace,
        "flow and prediction",
        lambda tell: gf_jax.predict_ensemble(
            *(f, start, times, options.all_step_sizes),
            batches=batches,
            samples=options.samples,
            seed=options.batch_seed,
            progress=tell,
        ),
        structures.of(gf_jax.EnsemblePrediction, start, **sizes),
    )
    return found.flow, found.ensemble


def _measured(trajectory: Trajectory, flow: gf_jax.Flow) -> gf_jax.Ensemble:
    """What the runs amount to at all times of the flow; NaN when all have diverged."""
    snapshots = trajectory.snapshot_iterations
    missing = len(flow.times) - len(snapshots)

    def whole(leaf: np.ndarray) -> np.ndarray:
        return np.concatenate([leaf, np.full((missing, *leaf.shape[1:]), np.nan, leaf.dtype)])

    losses = trajectory.metrics.loss[np.isin(trajectory.iterations, snapshots)]
    stack, losses = jax.tree.map(whole, (trajectory.snapshots, losses))
    return gf_jax.measure_ensemble(stack, losses, flow.params, flow.loss, flow.error)


def summarise(saved: Draws) -> dict[str, Any]:
    """The numbers of the table, at the last time, and a verdict."""
    sides = {"measured": saved.measured, "predicted": saved.predicted}
    ensembles = {name: each for name, each in sides.items() if each is not None}
    runs = [
        {"step_size": float(step_size)}
        | {
            f"{side}_{name}": _numbers(getattr(ensemble, name), lane)
            for side, ensemble in ensembles.items()
            for name in NAMES
        }
        for lane, step_size in enumerate(saved.step_sizes)
    ]
    orders = {
        name: [
            report.finite(each[-1])
            for each in getattr(saved.measured, name).order(saved.step_sizes)
        ]
        for name in NAMES
    }
    summary = {
        "network": saved.network_label,
        "data": saved.data_label,
        "draws": saved.draws,
        "batch_size": saved.batch_size,
        "svag": saved.svag,
        "time": float(saved.times[-1]),
        "loss": report.finite(saved.flow_loss[-1]),
        "distance_from_init": report.finite(saved.distance_from_init[-1]),
        "diverged": bool(not np.isfinite(saved.measured.loss_difference.value).all()),
        "runs": runs,
        "orders": orders,
        "beyond": _beyond(saved),
    }
    return summary | {"verdict": _verdict(summary, len(saved.times) * len(saved.step_sizes))}


def _numbers(estimate: gf_jax.Estimate, lane: int) -> dict[str, float | None]:
    """Of a step size at the last time."""
    return {name: report.finite(values[-1, lane]) for name, values in vars(estimate).items()}


def _beyond(saved: Draws) -> dict[str, int] | None:
    """At how many times and step sizes the prediction is off by more than both sides' errors."""
    if saved.predicted is None:
        return None
    counts = {}
    for name in NAMES:
        found, told = getattr(saved.measured, name), getattr(saved.predicted, name)
        noise = np.hypot(found.standard_error, told.standard_error)
        allowed = SIGMAS * noise + found.error + told.error
        counts[name] = int((np.abs(found.value - told.value) > allowed).sum())
    return counts


def _verdict(summary: dict[str, Any], count: int) -> list[str]:
    """How far runs and their mean stand from the flow, and whether that was predicted."""
    first, last = summary["runs"][0], summary["orders"]
    spread, mean = (first[f"measured_{name}"] for name in ("spread", "mean_to_flow"))
    travelled = summary["distance_from_init"]
    if spread["value"] is None or mean["value"] is None or not travelled:
        return ["Verdict: none, since runs with the largest step size diverged."]
    known = mean["value"] > SIGMAS * mean["standard_error"] + mean["error"]
    most = mean["value"] + SIGMAS * mean["standard_error"] + mean["error"]
    distance = f"by {mean['value']:.3g}" if known else f"by less than {most:.2g}"
    share = spread["value"] / travelled
    lines = [
        f"Verdict: in batches of {summary['batch_size']} with step size {first['step_size']:g}, a "
        f"run stands from the mean run by {spread['value']:.3g} at time {summary['time']:g}, "
        f"{share:.2g} of the distance {travelled:.4g} that the flow has travelled, and the mean "
        f"run from the flow {distance}."
    ]
    orders = [
        f"the {label} as the step size to the power {last[name][0]:.2f} ± {last[name][1]:.2f}"
        for name, label in zip(NAMES[:2], ("spread", "distance of the mean"), strict=True)
        if last[name][0] is not None
    ]
    if orders:
        lines.append(f"With the step size falls {' and '.join(orders)}.")
    if summary["beyond"] is not None:
        off = sum(summary["beyond"].values())
        lines.append(
            f"Predicted from the flow alone: of {len(NAMES) * count} numbers "
            + ("all are" if off == 0 else f"{len(NAMES) * count - off} are")
            + f" as measured, within {SIGMAS:g} standard errors and the error that was told."
        )
    return lines


def _print(summary: dict[str, Any], console: Console) -> None:
    rows = []
    for name, label in zip(NAMES, LABELS, strict=True):
        order, error = summary["orders"][name]
        for number, lane in enumerate(summary["runs"]):
            told = lane.get(f"predicted_{name}")
            found = lane[f"measured_{name}"]
            rows.append(
                (
                    "" if number else label,
                    f"{lane['step_size']:g}",
                    report.text(found["value"], ".3e"),
                    report.text(found["standard_error"], ".0e"),
                    "–" if told is None else report.text(told["value"], ".3e"),
                    "–" if told is None else report.text(_error(told), ".0e"),
                    "" if number or order is None else f"{order:.2f} ± {error:.2f}",
                )
            )
    title = (
        f"{summary['network']} on {summary['data']}\n{summary['draws']:,} runs with every step "
        f"size, at time {summary['time']:g}, where the loss of the flow is "
        f"{report.text(summary['loss'], '.5g')}"
    )
    heads = ("", "step size", "measured", "±", "predicted", "±", "order")
    report.show_table(console, title, heads, rows, legend=LEGEND, left=1)


def _error(numbers: dict[str, Any]) -> float | None:
    """All that a predicted number may be off by."""
    parts = numbers["standard_error"], numbers["error"]
    return None if None in parts else SIGMAS * parts[0] + parts[1]


def draw(saved: Draws) -> "Figure":
    """Draws spread, distance of the mean and loss against time; marks measured, lines predicted."""
    figure = style.new(16.5, 4.9)
    panels = figure.subplots(1, 3)
    for panel, name, title, reading in zip(panels, NAMES, TITLES, READINGS, strict=True):
        for lane, step_size in enumerate(saved.step_sizes):
            colour, label = style.colour(lane), rf"$\eta$ = {step_size:g}"
            _draw_lane(panel, saved, name, lane, colour, label)
        unit = "Euclidean distance, logarithmic"
        style.describe(panel, title, unit if name != "loss_difference" else "loss", reading)
        if name != "loss_difference" and any(
            np.nanmax(line.get_ydata(), initial=0) > 0 for line in panel.lines
        ):
            panel.set_yscale("log")
    title = f"{saved.draws} draws: {saved.network_label} on {saved.data_label}"
    return style.finish(figure, panels[0], title)


def _draw_lane(panel: "Axes", saved: Draws, name: str, lane: int, colour: str, label: str) -> None:
    """The marks of a step size with their standard errors, and its line with its errors."""
    found = getattr(saved.measured, name)
    value, error = found.value[:, lane], found.standard_error[:, lane]
    shown = np.where(found.measured[:, lane] | (name == "loss_difference"), value, np.nan)
    panel.plot(
        saved.times, shown, style.MARKS[lane % len(style.MARKS)], color=colour, label=label,
        markersize=4,
    )  # fmt: skip
    bars = np.stack([shown - error, shown + error, np.full_like(shown, np.nan)], axis=1)
    panel.plot(
        np.repeat(saved.times, 3), bars.ravel(), color=colour, linewidth=1,
        label=f"_{label}; standard error",
    )  # fmt: skip
    if saved.predicted is None:
        return
    told = getattr(saved.predicted, name)
    line, off = told.value[:, lane], told.within(1.0)[:, lane]
    panel.plot(saved.times, line, color=colour, linewidth=1.2, label=f"_{label}; predicted")
    low = line - off if name == "loss_difference" else np.maximum(line - off, line / 10)
    panel.fill_between(
        saved.times, low, line + off, color=colour, alpha=0.15, linewidth=0,
        label=f"_{label}; error of the prediction",
    )  # fmt: skip


EXPERIMENT = Experiment(
    name="draws",
    studies="many runs in batches drawn at random, and what they do together",
    question=(
        "Mostly a step follows the gradient of a few examples that are drawn at random, so that "
        "every run is another one. How far do runs spread, how far is their mean from gradient "
        "flow, and how much higher is their loss? All three follow from the flow alone."
    ),
    options=Options,
    run=run,
)
