"""The four networks and their descent as one would write them in PyTorch."""

import os
from collections.abc import Callable

import jax
import numpy as np

# Beside other programs on the machine, threads that wait by spinning slow PyTorch down a
# hundredfold; those that sleep cost it microseconds. Read when PyTorch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch.nn import functional

from experiments.benchmark.workload import (
    FORMS,
    Form,
    Implementation,
    UnavailableError,
    Workload,
    step_by_step,
)
from gf_jax.problems.networks import Params

Weights = dict[str, torch.Tensor]


def description() -> dict[str, str | int]:
    """Version and number of threads."""
    return {"version": torch.__version__, "threads": torch.get_num_threads()}


def missing_device() -> str:
    """Why PyTorch cannot compute where JAX does; empty if it can."""
    platform = jax.default_backend()
    if platform == "cpu" or (platform == "gpu" and torch.cuda.is_available()):
        return ""
    return f"it finds no {platform} to compute on"


def eager(workload: Workload) -> Implementation:
    """PyTorch as it is."""
    return _step_by_step("PyTorch eager", workload, _loss_of(workload.network))


def compiled(workload: Workload) -> Implementation:
    """The loss compiled by ``torch.compile``.

    Raises:
      UnavailableError: if it fails, as it does without a compiler of C++ on the machine.
    """
    torch.compiler.reset()
    loss = torch.compile(_loss_of(workload.network), dynamic=False)
    try:
        return _step_by_step("torch.compile", workload, loss)
    except Exception as error:  # of many kinds, none of which is this program's
        reason = " ".join(str(error).split())[:200]
        raise UnavailableError(f"torch.compile: {type(error).__name__}, {reason}") from error


def _step_by_step(name: str, workload: Workload, loss: Callable) -> Implementation:
    device = torch.device("cpu" if jax.default_backend() == "cpu" else "cuda")
    # As everywhere in this comparison; PyTorch itself would take TF32 for convolutions.
    torch.backends.cudnn.allow_tf32 = False
    inputs = torch.tensor(workload.inputs, device=device)
    labels = torch.tensor(workload.labels, device=device, dtype=torch.int64)
    start = {
        f"{layer}.{kind}": torch.tensor(np.asarray(array), device=device)
        for layer, kinds in workload.start.items()
        for kind, array in kinds.items()
    }

    def begin() -> Weights:
        return {name: weight.clone().requires_grad_() for name, weight in start.items()}

    def step(weights: Weights, lane: int) -> Weights:
        gradients = torch.autograd.grad(loss(weights, inputs, labels), list(weights.values()))
        with torch.no_grad():
            for weight, gradient in zip(weights.values(), gradients, strict=True):
                weight -= workload.step_sizes[lane] * gradient
        return weights

    def finish(runs: list[Weights]) -> list[Params]:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return [_params(weights) for weights in runs]

    return step_by_step(name, workload, begin, step, finish, planned=False)


def _params(weights: Weights) -> Params:
    """The weights in the form of ``gf_jax``."""
    params: dict = {}
    for name, weight in weights.items():
        layer, kind = name.split(".")
        params.setdefault(layer, {})[kind] = weight.detach().cpu().numpy()
    return params


def _loss_of(network: str) -> Callable[[Weights, torch.Tensor, torch.Tensor], torch.Tensor]:
    form = FORMS[network]

    def loss(weights: Weights, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(_logits(form, weights, inputs), labels)

    return loss


def _logits(form: Form, weights: Weights, inputs: torch.Tensor) -> torch.Tensor:
    activation = functional.relu if form.rectified else lambda hidden: hidden
    hidden = inputs
    for layer, padding in (("conv_1", 2), ("conv_2", 0)):
        if f"{layer}.weight" in weights:
            weight, bias = weights[f"{layer}.weight"], weights.get(f"{layer}.bias")
            hidden = functional.conv2d(hidden, weight, bias, form.stride, padding)
            hidden = activation(hidden)
            hidden = functional.max_pool2d(hidden, 2) if form.pool else hidden
    hidden = hidden.flatten(1)
    for layer in ("dense_1", "dense_2", "dense_3"):
        weight, bias = weights[f"{layer}.weight"], weights.get(f"{layer}.bias")
        hidden = functional.linear(hidden, weight, bias)
        hidden = hidden if layer == "dense_3" else activation(hidden)
    return hidden
