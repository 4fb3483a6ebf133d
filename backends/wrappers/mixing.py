"""Mixtures of images, drawn from (seed, step) on the host and made on the device.

The partner of an image is its neighbour in the batch, 0 with 1 and 2 with 3. The batch is in random order, so that the
partner is a random image, as it is in the reversed batch of Un-Mix's code; and unlike there, any even share of a batch
holds all partners of its images, so that the number of processes and micro-batches changes nothing. The last image of
an odd batch is its own partner.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

Box = tuple[int, int, int, int]


def generator(seed: int, step: int, purpose: int) -> np.random.Generator:
    """Random numbers of a step, the same in all processes."""
    return np.random.default_rng((seed, step, purpose))


def partners(rows: Tensor) -> Tensor:
    """The rows of all partners."""
    order = (torch.arange(len(rows), device=rows.device) ^ 1).clamp_(max=len(rows) - 1)
    return rows[order]


def inside(box: Box, height: int, width: int, device: torch.device) -> Tensor:
    """Where a box (left, top, right, bottom) is, `(height, width)`; its tensors have the same shapes for every box."""
    left, top, right, bottom = box
    rows, columns = torch.arange(height, device=device)[:, None], torch.arange(width, device=device)
    return (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)


def cut_box(share: float, height: int, width: int, random: np.random.Generator) -> Box:
    """CutMix's box (arXiv 1905.04899): 1 - share of the area, anywhere, and cut at the rim."""
    side = (1 - share) ** 0.5
    half_width, half_height = int(width * side) // 2, int(height * side) // 2
    across, down = int(random.integers(width)), int(random.integers(height))
    return (
        max(0, across - half_width),
        max(0, down - half_height),
        min(width, across + half_width),
        min(height, down + half_height),
    )


def mixture(images: Tensor, alpha: float, cutmix: float, random: np.random.Generator) -> tuple[Tensor, float]:
    """Each image mixed with its partner, by mixup or CutMix.

    Args:
        images: Normalised, `(n, 3, height, width)`.
        alpha: The share is drawn from Beta(alpha, alpha).
        cutmix: Probability of CutMix for the whole batch.

    Returns:
        The mixtures, and how much of each is the image itself.
    """
    share = float(random.beta(alpha, alpha))
    if random.random() >= cutmix:
        return share * images + (1 - share) * partners(images), share
    height, width = images.shape[2:]
    left, top, right, bottom = box = cut_box(share, height, width, random)
    mixed = torch.where(inside(box, height, width, images.device), partners(images), images)
    return mixed, 1 - (right - left) * (bottom - top) / (height * width)
