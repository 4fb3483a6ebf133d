"""The queue of keys that are used as negatives."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class KeyQueue(nn.Module):
    """A ring of the newest `size` keys, first in, first out; part of the state dict, so that it survives a resume.

    It starts with random directions, as MoCo's does.

    Attributes:
        keys: float32, shape `(size, dim)`, each of length one.
        head: Where the next key goes; a tensor, so that moving it never waits for the device.
    """

    keys: Tensor
    head: Tensor

    def __init__(self, size: int, dim: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("keys", F.normalize(torch.randn(size, dim, generator=generator), dim=1))
        self.register_buffer("head", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Replace the oldest keys by `keys`, shape `(n, dim)`; any n: of more than `size` the last are kept."""
        size = len(self.keys)
        kept = keys[-size:]
        slots = (self.head + len(keys) - len(kept) + torch.arange(len(kept), device=keys.device)) % size
        self.keys.index_copy_(0, slots, kept.to(self.keys.dtype))
        self.head.add_(len(keys)).remainder_(size)
