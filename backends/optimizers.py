"""Optimizers missing from torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling (arXiv 1708.03888, algorithm 1), which keeps very large batches stable.

    `rate = lr * trust * |w| / (|g| + weight_decay * |w|)` for each parameter, and the momentum runs over
    `rate * (g + weight_decay * w)`. A group with `trust` 0 takes plain momentum steps of `lr`.

    Args:
        clip: Whether the rate is at most `lr`: `min(lr, trust * |w| / (...))` in place of the product (LARC with
            clipping, and solo-learn). False has no such bound, as in BYOL, Barlow Twins, VICReg and SwAV. Their code
            divides by |g + weight_decay * w| and keeps `lr` out of the momentum, which differs only while `lr` moves.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
        clip: bool = False,
    ) -> None:
        chosen = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "clip": clip}
        super().__init__(params, chosen)

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
            if group["clip"]:
                adapted = (adapted / _positive(group["lr"], adapted.dtype)).clamp_max(1.0)
            rates = torch.where((weights > 0) & (lengths > 0), adapted, torch.ones_like(adapted))
            torch._foreach_mul_(directions, list(rates.unbind()))
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_mul_(buffers, group["momentum"])
        if isinstance(group["lr"], Tensor):  # on the device; as a number, the host would wait for it
            torch._foreach_mul_(directions, group["lr"])
            torch._foreach_add_(buffers, directions)
        else:
            torch._foreach_add_(buffers, directions, alpha=group["lr"])
        torch._foreach_sub_(parameters, buffers)


def _positive(rate: float | Tensor, dtype: torch.dtype) -> float | Tensor:
    """The rate, above zero; that of a device stays there, as `max` would make the host wait for it."""
    tiny = torch.finfo(dtype).tiny
    return rate.clamp_min(tiny) if isinstance(rate, Tensor) else max(rate, tiny)
