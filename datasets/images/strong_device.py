"""The operations of `strong` for a whole batch, on any device, with Pillow's arithmetic.

The shape of no tensor depends on what was drawn. Each operation goes through all three stages, of which those that are
not its own change nothing: a table of 256 levels for each channel, a blend with the image's grey or smoothed version,
and an affine map to the nearest pixel.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from leoclr.datasets.images.strong import KINDS

_ONE = 1 << 16  # Pillow's affine maps count in 16 bits behind the point


def strong(pixels: Tensor, parameters: Tensor) -> Tensor:
    """Apply operations in order.

    Args:
        pixels: uint8, `(n, 3, size, size)`.
        parameters: Kind and thousandths of each operation in turn, as `draw_strong` has them, `(n, 2 * operations)`.

    Returns:
        uint8 of the same shape.
    """
    pixels = pixels.contiguous()
    for column in range(0, parameters.shape[1], 2):
        kind, value = parameters[:, column], parameters[:, column + 1].double() / 1000
        pixels = _to_levels(pixels, kind, value)
        pixels = _blend(pixels, kind, value)
        pixels = _move(pixels, kind, value)
    return pixels


def grey(colours: Tensor) -> Tensor:
    """Pillow's mode L, shape `(n, 1, size, size)`: ITU-R 601 in integers of 16 bits, which float32 holds exactly."""
    red, green, blue = colours[:, 0:1], colours[:, 1:2], colours[:, 2:3]
    result: Tensor = (red * 19595 + green * 38470 + blue * 7471 + 32768) / 65536
    return result.floor_()


def _is(kind: Tensor, *names: str) -> Tensor:
    return torch.stack([kind == KINDS.index(name) for name in names]).any(dim=0)


def _to_levels(pixels: Tensor, kind: Tensor, value: Tensor) -> Tensor:
    """What maps each level of a channel to another: `(n, 3, 256)`, of which a view takes one table."""
    flat = pixels.flatten(2).long()
    counts = torch.zeros(*flat.shape[:2], 256, dtype=torch.long, device=flat.device)
    counts.scatter_add_(2, flat, torch.ones_like(flat))
    level = torch.arange(256, device=flat.device)
    taken = value[:, None, None]
    mean = (grey(pixels.float()).mean(dim=(1, 2, 3), dtype=torch.float64) + 0.5).floor().float()[:, None, None]
    tables = {
        "auto-contrast": _stretched(counts, level),
        "brightness": (taken.float() * level).floor().long(),
        "contrast": (mean + taken.float() * (level - mean)).floor().long(),
        "equalize": _equalised(counts, level),
        "posterize": level - level % torch.exp2(8 - taken).long().clamp(1, 256),
        "solarize": torch.where(level < taken, level, 255 - level),
    }
    table = level.expand_as(counts)
    for name, other in tables.items():
        table = torch.where(_is(kind, name)[:, None, None], other, table)
    return table.gather(2, flat).to(torch.uint8).view_as(pixels)


def _stretched(counts: Tensor, level: Tensor) -> Tensor:
    """Pillow's autocontrast: the lowest level becomes 0 and the highest 255."""
    there = counts > 0
    lowest = torch.where(there, level, 256).amin(dim=2, keepdim=True)
    highest = torch.where(there, level, -1).amax(dim=2, keepdim=True)
    span = (highest - lowest).clamp(min=1).double()
    scale = torch.full_like(span, 255.0) / span  # a number over a tensor would be rounded twice
    stretched = (level * scale + -lowest * scale).clamp(0, 255).long()
    return torch.where(highest > lowest, stretched, level)


def _equalised(counts: Tensor, level: Tensor) -> Tensor:
    """Pillow's equalize: all levels about equally often."""
    highest = torch.where(counts > 0, level, -1).amax(dim=2, keepdim=True)
    step = (counts.sum(dim=2, keepdim=True) - counts.gather(2, highest.clamp(min=0))) // 255
    below = counts.cumsum(dim=2) - counts
    equal = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255)
    return torch.where(step > 0, equal, level)


def _blend(pixels: Tensor, kind: Tensor, value: Tensor) -> Tensor:
    """Colour and sharpness: a blend with the grey or the smoothed image, rounded down as Pillow's."""
    colours = pixels.float()
    smooths, blends = _is(kind, "sharpness"), _is(kind, "color", "sharpness")
    target = torch.where(smooths[:, None, None, None], _smooth(colours), grey(colours))
    factor = torch.where(blends, value, 1.0).float()[:, None, None, None]
    return (target + factor * (colours - target)).floor().to(torch.uint8)


def _smooth(colours: Tensor) -> Tensor:
    """Pillow's SMOOTH: the mean of 3 x 3 pixels, the middle one counting five times; the rim stays as it is."""
    rows, columns = colours.shape[2:]
    wide = F.pad(colours, (1, 1, 1, 1))
    total = 4 * colours
    for down in range(3):
        for across in range(3):
            total = total + wide[:, :, down : down + rows, across : across + columns]
    mean = torch.floor((2 * total + 13) / 26)
    for rim in (0, -1):
        mean[:, :, rim] = colours[:, :, rim]
        mean[:, :, :, rim] = colours[:, :, :, rim]
    return mean


def _move(pixels: Tensor, kind: Tensor, value: Tensor) -> Tensor:
    """Rotation, shear and translation: each pixel is that from which the affine map comes, or black beyond the rim."""
    side = pixels.shape[-1]
    angle = torch.where(_is(kind, "rotate"), -torch.deg2rad(value), 0.0)
    cosine, sine = angle.cos(), angle.sin()
    along = torch.where(_is(kind, "shear-x"), value, sine)  # of a row's place on columns
    across = torch.where(_is(kind, "shear-y"), value, -sine)
    turned = side / 2 * (1 - cosine - sine), side / 2 * (1 - cosine + sine)
    step = (value * side).trunc()
    starts = (
        torch.where(_is(kind, "translate-x"), step, torch.where(_is(kind, "rotate"), turned[0], 0.0)),
        torch.where(_is(kind, "translate-y"), step, torch.where(_is(kind, "rotate"), turned[1], 0.0)),
    )
    place = torch.arange(side, device=pixels.device)
    down, right = place[:, None], place

    def source(start: Tensor, of_column: Tensor, of_row: Tensor) -> Tensor:
        start, of_column, of_row = (
            (number * _ONE + 0.5).floor().long()[:, None, None]
            for number in (start + 0.5 * of_column + 0.5 * of_row, of_column, of_row)
        )
        return (start + of_column * right + of_row * down) >> 16

    columns, rows = source(starts[0], cosine, along), source(starts[1], across, cosine)
    there = (columns >= 0) & (columns < side) & (rows >= 0) & (rows < side)
    flat = (rows.clamp(0, side - 1) * side + columns.clamp(0, side - 1)).flatten(1)[:, None].expand(-1, 3, -1)
    moved = pixels.flatten(2).gather(2, flat).view_as(pixels)
    return torch.where(there[:, None], moved, 0).to(torch.uint8)
