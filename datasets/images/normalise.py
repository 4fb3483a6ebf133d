"""Convert pixels to normalised network inputs, on any device."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor


def normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Scale uint8 pixels of shape `(n, 3, height, width)` to [0, 1], subtract `mean` and divide by `std` per channel.

    Returns float32 in the memory format of the input. Images travel to the device as bytes and become floats there:
    a quarter of the traffic.
    """
    scale, shift = _constants(tuple(mean), tuple(std), pixels.device)
    return torch.addcmul(shift, pixels.float(), scale)


@cache
def _constants(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Kept on the device: to send them there with every batch, the host would wait for the GPU each time. None is ever
    dropped: a CUDA graph reads them where they were."""
    with torch.inference_mode(False):
        scale = torch.tensor([1 / (255 * deviation) for deviation in std], device=device)
        shift = torch.tensor([-m / deviation for m, deviation in zip(mean, std, strict=True)], device=device)
        return scale.view(3, 1, 1), shift.view(3, 1, 1)
