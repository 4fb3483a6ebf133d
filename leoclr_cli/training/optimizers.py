"""Optimizers and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from leoclr.cli.config.settings import OptimizerSettings


def learning_rate(step: int, steps: int, warmup_steps: int, peak: float) -> float:
    """The rate of a step (from 0): linear from peak / warmup_steps up to `peak`, then half a cosine towards 0."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))


def build_optimizer(module: nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """The optimizer for what of `module` is trained.

    SGD decays every parameter, as MoCo and the paper do. AdamW and LARS leave out biases and normalisation, and LARS
    does not adapt them either (arXiv 2002.05709, appendix B.8).
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if settings.name == "sgd":
        sgd = torch.optim.SGD(
            trained, settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay, fused=True
        )
        if settings.momentum:  # else torch leaves its memory unwritten where fp16 overflows in the first step
            for parameter in trained:
                sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return sgd
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in trained if parameter.ndim > 1]},
        {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    if settings.name == "adamw":
        return torch.optim.AdamW(groups, settings.lr, weight_decay=settings.weight_decay, fused=True)
    groups[1]["trust"] = 0.0
    return LARS(groups, settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling (arXiv 1708.03888, algorithm 1), which keeps very large batches stable.

    `rate = lr * trust * |w| / (|g| + weight_decay * |w|)` for each parameter, and the momentum runs over
    `rate * (g + weight_decay * w)`. A group with `trust` 0 takes plain momentum steps of `lr`.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None, "LARS evaluates no closure"
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self._update(parameters, group)

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        directions = list(torch._foreach_add(gradients, parameters, alpha=group["weight_decay"]))
        if group["trust"]:
            weights, lengths = (torch.stack(list(torch._foreach_norm(each))) for each in (parameters, gradients))
            adapted = group["trust"] * weights / (lengths + group["weight_decay"] * weights)
            rates = torch.where((weights > 0) & (lengths > 0), adapted, torch.ones_like(adapted))
            torch._foreach_mul_(directions, list(rates.unbind()))
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, directions, alpha=group["lr"])
        torch._foreach_sub_(parameters, buffers)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What the optimizer remembers, by `PARAMETER.NAME` with the parameter's number."""
    states = optimizer.state_dict()["state"]
    return {f"{number}.{name}": value for number, state in states.items() for name, value in state.items()}


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Undo `optimizer_tensors`; the hyper-parameters stay as they are.

    Each tensor gets the memory layout of its parameter: torch's fused kernels walk both as flat memory and would pair
    the wrong elements, without an error, if one were channels-last and the other not.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        number, _, field = name.partition(".")
        parameter = parameters[int(number)]
        same_layout = torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value
        states.setdefault(int(number), {})[field] = same_layout
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
