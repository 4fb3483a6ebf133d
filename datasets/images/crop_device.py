"""Crop and resize of many images of one size at once, on any device.

Resizing is linear along each axis, so a crop is a matrix from the left and one from the right, with Pillow's weights:
bilinear, over as many pixels as one of the result covers. It is rounded to 8 bits after each axis, as there. Which axis
comes first differs between versions of Pillow; what it changes is at most two levels, 0.25 in the mean. The cost grows
with the side of the images, which a GPU does not notice up to a hundred pixels or two.
"""

from __future__ import annotations

import torch
from torch import Tensor

from leoclr.datasets.images.augment_device import to_bytes
from leoclr.datasets.images.augmentation import PAD_COLOUR, AugmentationSpec, placed


def crops(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Crops of each image, resized.

    Args:
        images: uint8, `(n, 3, height, width)`.
        boxes: Left, top, right, bottom: float32, `(n, 4)`, on the same device; or `(k * n, 4)` for k crops of each:
            one of every image, then the next of every image.

    Returns:
        uint8, `(k * n, 3, size, size)`.
    """
    left, top, right, bottom = boxes[:, :, None, None].unbind(dim=1)
    across = _weights(left, right, 0, size, images.shape[3], size)
    down = _weights(top, bottom, 0, size, images.shape[2], size)
    return _resized(images, across, down)


def wholes(images: Tensor, spec: AugmentationSpec) -> Tensor:
    """As `crops`, for the whole of each image, placed on the square as `spec.original` says."""
    height, width = images.shape[2:]
    size = spec.image_size
    left, top, placed_width, placed_height = placed(width, height, spec)
    if (left, top, placed_width, placed_height) == (0, 0, width, height) and width == height == size:
        return images  # as it comes: the weights would be those of the identity
    start, end_x, end_y = (images.new_full((1, 1, 1), edge, dtype=torch.float32) for edge in (0, width, height))
    across = _weights(start, end_x, left, placed_width, width, size)
    down = _weights(start, end_y, top, placed_height, height, size)
    squares = _resized(images, across, down)
    if placed_width < size:
        squares = _framed(squares, slice(left, left + placed_width), 3)
    if placed_height < size:
        squares = _framed(squares, slice(top, top + placed_height), 2)
    return squares


def _resized(images: Tensor, across: Tensor, down: Tensor) -> Tensor:
    across, rows = across.transpose(1, 2), len(images) if len(across) > 1 else 1
    colours = (images.float() @ across.view(-1, rows, 1, *across.shape[1:])).flatten(0, 1)
    return to_bytes(down[:, None] @ to_bytes(colours).float())


def _weights(start: Tensor, end: Tensor, offset: int, length: int, source: int, size: int) -> Tensor:
    """What each pixel along the result takes of each along the image, `(n, size, source)`.

    `start` to `end` of the image becomes `length` pixels of the result from `offset` on, which may be outside; both
    have shape `(n, 1, 1)`. A row whose pixel shows nothing of it is zero.
    """
    scale = (end - start) / length
    place = torch.arange(size, device=start.device, dtype=torch.float32)[:, None] - offset
    pixel = torch.arange(source, device=start.device, dtype=torch.float32)
    distance = (pixel + 0.5 - start - (place + 0.5) * scale).abs()
    weights = (1 - distance / scale.clamp(min=1)).clamp_(min=0)
    weights = weights * ((pixel >= start) & (pixel < end) & (place >= 0) & (place < length))
    return weights / weights.sum(dim=2, keepdim=True).clamp(min=1e-6)


def _framed(squares: Tensor, inside: slice, dim: int) -> Tensor:
    """The padding's colour outside of a range of rows (dim 2) or columns (3)."""
    for channel, level in enumerate(PAD_COLOUR):
        one = squares[:, channel].movedim(dim - 1, 0)
        one[: inside.start].fill_(level)  # and not an assignment, whose value may come from the host
        one[inside.stop :].fill_(level)
    return squares
