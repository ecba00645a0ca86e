"""The paper's distances and losses predicted from the flow alone, without running descent.

    python -m experiments.main --experiment=predict --ratios=2,5,10,20

solves gradient flow and its first-order deviation once and tells the gap between
descent at any two step sizes: ten seconds on two CPU cores for the default linear
network, where the runs take minutes. On MNIST the gap between step sizes 0.001 and
0.00005 is predicted to end near 7e-4, where the flow has travelled 2.55. Networks with
kinks take a tenth of the gradient evaluations of the runs, see ``gf_jax.predict``.
"""

import dataclasses
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

import gf_jax
from experiments.cli.experiment import Experiment
from experiments.output import report
from experiments.output.figures import style
from experiments.problems.networks import NETWORKS
from experiments.problems.options import is_smooth
from experiments.process.mistakes import UsageError
from experiments.runs import descending, harness, store, structures
from experiments.studies import groups
from gf_jax.problems.activations import ACTIVATIONS
from gf_jax.records import record

if TYPE_CHECKING:
    from experiments.output.figures import Figure

KINK_WARNING = """\
The loss has kinks. Where two runs pass one on different sides they part for
good, and which side a run takes may hang on less than any prediction knows."""
READINGS = (
    (
        "Grey: how far the flow moves. Below it, how far each step size is from the largest "
        "one. The larger the space between, the less the step size matters."
    ),
    ("The lower curves of the first panel alone, on a logarithmic axis."),
    ("How far descent is from the flow, for each step size: in proportion to it."),
    (
        "How far the loss of descent is from that of the flow at equal times. Dips are where the "
        "sign changes."
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(groups.Momentum, groups.Ratios):
    """What the experiment can be told."""

    @classmethod
    def by_largest(cls, step_sizes: tuple[float, ...], given: dict[str, Any]) -> dict[str, Any]:
        """Fields that say the same as the step sizes, of which a smooth flow takes any."""
        network = given.get("network", cls.network), given.get("activation", cls.activation)
        known = network[0] in NETWORKS and network[1] in ACTIVATIONS  # others are refused later
        if known and is_smooth(*network):  # no iterations would have to meet
            return {"step_size": max(step_sizes), "ratios": ()}
        return super().by_largest(step_sizes, given)

    @property
    def flow_runs(self) -> int:
        """As many trajectories as the flow and what it predicts amount to."""
        return self.prediction_runs()

    @property
    def arithmetics(self) -> tuple[str, ...]:
        """None: nothing descends."""
        return ()

    def check(self) -> None:
        """Raises UsageError if nothing can be predicted."""
        super().check()
        if not self.predicts:
            smooth = [name for name, each in ACTIVATIONS.items() if each.smooth]
            raise UsageError(
                f"{self.method_given}: its gaps are predicted for losses without kinks; accepted "
                f"is --activation={' or '.join(smooth)}"
            )


@record
class Prediction:
    """Predicted distances between flow and descent, and losses, told without running descent.

    Attributes:
      network_label, data_label: what is trained on what.
      step_sizes: step sizes of descent, the largest first.
      times: times of the prediction.
      loss: training loss of the flow, shape (times,).
      distance_from_init: distance of the flow from the initial point, likewise.
      to_flow: predicted distance to the flow, shape (times, step sizes).
      to_base: predicted distance to descent with the largest step size, likewise.
      loss_difference: predicted loss of descent less that of the flow, likewise.
      momentum: its decay, 0 for plain descent.
      loss_unit: what the loss is measured in.
      flow_name: what the flow is called.
    """

    network_label: str
    data_label: str
    step_sizes: np.ndarray
    times: np.ndarray
    loss: np.ndarray
    distance_from_init: np.ndarray
    to_flow: np.ndarray
    to_base: np.ndarray
    loss_difference: np.ndarray
    momentum: float = 0.0
    loss_unit: str = "nats"
    flow_name: str = "gradient flow"


def run(options: Options) -> int:
    """Runs the experiment and writes its run directory.

    Returns:
      The exit status: 0, or 130 if it was interrupted.

    Raises:
      UsageError: on data, weights or an output directory that are not accepted.
    """
    workplace = harness.begin(EXPERIMENT, options)
    study, started = workplace.study, time.perf_counter()
    step_sizes, times = np.array(options.all_step_sizes), options.schedule.snapshot_iterations
    like = structures.of(
        gf_jax.Prediction, study.initial_params, times=len(times), lanes=len(step_sizes)
    )
    try:
        prediction = harness.solve_once(
            workplace,
            "prediction",
            lambda tell: gf_jax.predict(
                study.objective.loss,
                study.initial_params,
                options.schedule.clock(options.method.time_scale).times(times),
                step_sizes,
                optimizer=options.chosen_optimizer,
                progress=tell,
            ),
            like,
        )
    except KeyboardInterrupt:
        return harness.interrupt(workplace, "nothing is predicted yet")
    flow = prediction.flow
    saved = Prediction(
        network_label=study.network_label,
        data_label=study.dataset.label,
        step_sizes=prediction.step_sizes,
        times=flow.times,
        loss=flow.loss,
        distance_from_init=descending.distance_from_init(study, flow.params),
        to_flow=prediction.to_flow,
        to_base=prediction.to_base,
        loss_difference=prediction.loss - flow.loss[:, None],
        momentum=options.method.momentum,
        loss_unit=study.objective.of_outputs.unit,
        flow_name=options.method.flow_name,
    )
    summary = summarise(saved, prediction, time.perf_counter() - started)
    with harness.results(workplace):
        store.write_record(workplace.directory, "prediction", saved)
    figure = harness.draw(workplace, lambda: draw(saved))
    _print(summary, workplace.console)
    workplace.say(summary["verdict"])
    harness.end(workplace, summary, figure)
    return 0


def summarise(saved: Prediction, prediction: gf_jax.Prediction, seconds: float) -> dict[str, Any]:
    """The numbers of the table: everything at the last time."""
    return {
        "network": saved.network_label,
        "data": saved.data_label,
        "verdict": _verdict(saved),
        "time": float(saved.times[-1]),
        "loss": report.finite(saved.loss[-1]),
        "distance_from_init": report.finite(saved.distance_from_init[-1]),
        "runs": [
            {
                "step_size": float(step_size),
                "predicted_to_flow": report.finite(saved.to_flow[-1, lane]),
                "predicted_gap": report.finite(saved.to_base[-1, lane]),
                "predicted_loss_difference": report.finite(saved.loss_difference[-1, lane]),
                "loss_error": report.finite(prediction.loss_error[-1, lane]),
            }
            for lane, step_size in enumerate(saved.step_sizes)
        ],
        "error": report.finite(prediction.error),
        "kinks": prediction.kinks,
        "seconds": seconds,
        **prediction.flow.statistics._asdict(),
    }


def _verdict(saved: Prediction) -> str:
    """How far descent with the largest step size is predicted to stand from its flow."""
    gap, travelled = saved.to_flow[-1, 0], saved.distance_from_init[-1]
    if not (np.isfinite(gap) and travelled > 0):
        return "Verdict: none, since the flow could not be followed."
    share = gap / travelled
    return (
        f"Verdict: as predicted, descent with step size {saved.step_sizes[0]:g} "
        f"{report.nearness(share)} its {saved.flow_name}. At time {saved.times[-1]:g} it stands "
        f"apart by {gap:.3g}, {share:.2g} of the distance {travelled:.4g} that the flow has "
        "travelled."
    )


def _print(summary: dict[str, Any], console: Console) -> None:
    """Prints predicted distances, one row per step size."""
    rows = [
        (
            f"{lane['step_size']:g}",
            report.text(lane["predicted_to_flow"], ".3e"),
            report.text(lane["predicted_gap"], ".3e"),
            report.text(lane["predicted_loss_difference"], "+.3e")
            + (f" ± {lane['loss_error']:.0e}" if lane["loss_error"] is not None else ""),
        )
        for lane in summary["runs"]
    ]
    title = (
        f"{summary['network']} on {summary['data']}\n"
        f"predicted at time {summary['time']:g}, where the flow has travelled "
        f"{report.text(summary['distance_from_init'], '.4g')} and its loss is "
        f"{report.text(summary['loss'], '.6g')}"
    )
    heads = ("step size", "to flow", "to the largest step", "loss less the flow's")
    report.show_table(console, title, heads, rows)
    if summary["kinks"]:
        console.print(KINK_WARNING, highlight=False)
    console.print(
        f"{summary['gradient_evaluations']:,} gradient-sized evaluations, and "
        f"{summary['checking_evaluations']:,} more that told the numerical error, "
        f"{report.text(summary['error'], '.1%')}, in {summary['seconds']:.1f} s",
        highlight=False,
    )


def draw(prediction: Prediction) -> "Figure":
    """Draws the paper's distances as predicted, and on logarithmic axes the gaps alone."""
    figure = style.new(11.0, 9.0)
    paper, to_base, to_flow, losses = figure.subplots(2, 2).flat
    paper.plot(prediction.times, prediction.distance_from_init, color="0.6", label="flow")
    for lane, step_size in enumerate(prediction.step_sizes):
        look = {"color": style.colour(lane), "linestyle": style.DASHES[lane % len(style.DASHES)]}
        label = rf"$\eta$ = {step_size:g}"
        paper.plot(prediction.times, prediction.to_base[:, lane], label=label, **look)
        to_flow.plot(prediction.times, prediction.to_flow[:, lane], label=f"_{label}", **look)
        difference = np.abs(prediction.loss_difference[:, lane])
        losses.plot(prediction.times, difference, label=f"_{label}", **look)
        if lane > 0:
            to_base.plot(prediction.times, prediction.to_base[:, lane], label=f"_{label}", **look)
    style.describe(paper, "Flow from initialisation (above), gaps (below)")
    style.describe(to_flow, f"Descent from its {prediction.flow_name}", style.LOGARITHMIC)
    style.describe(
        to_base,
        rf"Descent from descent with $\eta$ = {prediction.step_sizes[0]:g}",
        style.LOGARITHMIC,
    )
    style.describe(
        losses, "Loss of descent less that of the flow", f"{prediction.loss_unit}, logarithmic"
    )
    for panel, reading in zip((paper, to_base, to_flow, losses), READINGS, strict=True):
        style.explain(panel, reading)
    for panel in (to_base, to_flow, losses):
        if any(np.nanmax(line.get_ydata(), initial=0) > 0 for line in panel.lines):
            panel.set_yscale("log")
    style.count_time(figure, prediction.momentum)
    title = f"Predicted: {prediction.network_label} on {prediction.data_label}"
    return style.finish(figure, paper, title)


EXPERIMENT = Experiment(
    name="predict",
    studies="the gaps predicted, without running descent",
    question=(
        "No descent was run. Gradient flow and its first-order deviation were solved once; "
        "they predict how far descent of any step size stands from the flow, and from other "
        "step sizes."
    ),
    options=Options,
    run=run,
)
