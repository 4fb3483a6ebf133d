"""Collective operations between ranks. All ranks hold equal shapes; with one process each is the identity."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from leoclr.backends.step_inputs import sent
from leoclr.backends.waits import waiting


def ranks() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process among them."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def gather(tensor: Tensor) -> Tensor:
    """The tensors of all ranks, concatenated in rank order along the first dimension. No gradient."""
    if ranks() == 1:
        return tensor
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(ranks())]
    with waiting():
        dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def exchange(tensor: Tensor, order: Tensor) -> Tensor:
    """This rank's equal part of `gather(tensor)[order]`, for which no row travels that it does not need. No gradient.

    Args:
        order: A permutation of the rows of all ranks, on the CPU, the same on all of them.
    """
    batch, own = len(tensor), rank()
    wanted = order.view(ranks(), batch)  # rows that each rank needs, in its order
    owners = wanted // batch
    mine = torch.cat([rows[theirs == own] for rows, theirs in zip(wanted, owners, strict=True)]) - own * batch
    counts = [int((theirs == own).sum()) for theirs in owners]
    rows = tensor[sent(mine, tensor.device)].contiguous()
    received = torch.empty_like(rows)
    with waiting():
        dist.all_to_all_single(received, rows, torch.bincount(owners[own], minlength=ranks()).tolist(), counts)
    places = torch.argsort(owners[own], stable=True)  # they come owner by owner
    return torch.empty_like(received).index_copy_(0, sent(places, tensor.device), received)


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """As `gather`, and the gradient of each part flows back to the rank it came from.

    torch's own differentiable gather is deprecated and Accelerate's has no gradient. Backward sums over ranks what
    each of them computed for a part, so that averaging parameter gradients afterwards is exact.
    """
    return tensor if ranks() == 1 else _Gather.apply(tensor)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.batch = len(tensor)
        return gather(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)  # others may be given the same tensor
        with waiting():
            dist.all_reduce(gradient)
        return gradient[rank() * ctx.batch :][: ctx.batch]
