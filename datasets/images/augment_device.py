"""The photometric operations of `augment_pillow` as tensor operations for a whole batch, on any device.

Parameters are the same, and the arithmetic is Pillow's, with rounding to 8 bits after each operation, except that blur
is one matrix product and rounded once instead of six times (tests/images/test_device_augment.py has the differences).
Every sample has its own parameters, and no tensor's shape depends on them, so that a GPU never has to wait:

- Jitter is three blends and a turn of the hue, in any order. It is computed as three blends, the turn, three blends;
  blends that do not come on that side of the hue have the factor 1 and change nothing.
- Blur and flip are linear along an axis: a matrix from the left and one from the right. Where there is none, it is the
  identity, which is exact too.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leoclr.datasets.images.augmentation import (
    BLUR,
    BRIGHTNESS,
    CROP_ATTEMPTS,
    FLIP,
    GRAYSCALE,
    HUE,
    JITTER,
    JITTER_ORDERS,
    ORDER,
    SIGMA,
    SOLARIZE,
    SOLARIZE_THRESHOLD,
    STRONG,
    AugmentationSpec,
    whole_box,
    widest_centre,
)
from leoclr.datasets.images.strong import draw_strong
from leoclr.datasets.images.strong_device import grey, strong
from leoclr.datasets.wording import in_a_line

_BLENDS = 6
_HUE, _GRAYSCALE, _RADIUS, _FLIP = range(3 * _BLENDS, 3 * _BLENDS + 4)  # columns, after three for each blend
COLUMNS = _FLIP + 1  # and one more where the view may be solarised
_NO_TURN = -1.0
_BLUR_PASSES = 3


def _slots() -> NDArray[np.int64]:
    """For each order of the jitter, which of brightness (0), contrast (1) and saturation (2) is in each of the six
    blends; 3 for none."""
    slots = np.full((len(JITTER_ORDERS), _BLENDS), 3)
    for row, names in enumerate(JITTER_ORDERS):
        hue = names.index("hue")
        for place, name in enumerate(names):
            if name != "hue":
                slots[row, place if place < hue else 3 + place - hue - 1] = JITTER_ORDERS[0].index(name)
    return slots


_SLOTS = _slots()
_TARGETS = np.array([[0, 0], [0, 1], [1, 0], [0, 0]], np.float32)  # black; the mean grey; its own grey; anything


def draw_all(spec: AugmentationSpec, uniforms: NDArray[np.float64]) -> Tensor:
    """`augmentation.draw` for many views, from uniforms of shape `(n, spec.uniforms)`.

    Returns:
        float32, shape `(n, COLUMNS)`: for each of six blends its factor, and how much of its target is the pixel's own
        grey and the image's mean grey; then the turn of the hue in 1/255 (-1 for none), grayscale, the radius of the
        blur's box filters, flip; and solarisation, a column that is there only where `spec.solarize` or `spec.strong`
        is above 0; and for each strong operation its kind and value.
    """
    draws = uniforms.T
    jittered = draws[JITTER] < spec.jitter
    factors = [
        max(0.0, 1 - strength) + (1 + strength - max(0.0, 1 - strength)) * draw
        for strength, draw in zip((spec.brightness, spec.contrast, spec.saturation), draws[BRIGHTNESS:HUE], strict=True)
    ]
    factors_n4 = np.stack([*factors, np.ones(len(uniforms))], axis=1)
    slots = np.where(jittered[:, None], _SLOTS[(draws[ORDER] * len(JITTER_ORDERS)).astype(np.int64)], 3)
    turn = np.trunc(spec.hue * (2 * draws[HUE] - 1) * 255) % 256
    low, high = spec.blur_sigma
    sigmas = np.where(draws[BLUR] < spec.blur, low + (high - low) * draws[SIGMA], 0)
    more = 1 + 2 * spec.strong if spec.strong else int(spec.solarize > 0)
    columns = np.empty((len(uniforms), COLUMNS + more), np.float32)
    columns[:, 0 : 3 * _BLENDS : 3] = np.take_along_axis(factors_n4, slots, axis=1)
    columns[:, 1 : 3 * _BLENDS : 3] = _TARGETS[slots, 0]
    columns[:, 2 : 3 * _BLENDS : 3] = _TARGETS[slots, 1]
    columns[:, _HUE] = np.where(jittered & (spec.hue > 0), turn, _NO_TURN)
    columns[:, _GRAYSCALE] = draws[GRAYSCALE] < spec.grayscale
    columns[:, _RADIUS] = _box_radius(sigmas)
    columns[:, _FLIP] = draws[FLIP] < spec.flip
    if more:
        columns[:, COLUMNS] = draws[SOLARIZE] < spec.solarize
    if spec.strong:
        columns[:, COLUMNS + 1 :: 2], columns[:, COLUMNS + 2 :: 2] = draw_strong(uniforms[:, STRONG : spec.uniforms])
    return torch.from_numpy(columns)


def crop_boxes(width: int, height: int, spec: AugmentationSpec, uniforms: NDArray[np.float64]) -> NDArray[np.int64]:
    """`augment_pillow.crop_box` for many crops of images of one size: `(n, 4)`, left, top, right, bottom."""
    low, high = math.log(spec.crop_ratio[0]), math.log(spec.crop_ratio[1])
    draws = uniforms[:, : 2 * CROP_ATTEMPTS]
    area = width * height * (spec.crop_scale[0] + (spec.crop_scale[1] - spec.crop_scale[0]) * draws[:, 0::2])
    ratio = np.exp(low + (high - low) * draws[:, 1::2])
    widths, heights = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first = (np.arange(len(uniforms)), fits.argmax(axis=1))
    crop_width, crop_height = widths[first], heights[first]
    left = np.floor((width - crop_width + 1) * uniforms[:, 2 * CROP_ATTEMPTS])
    top = np.floor((height - crop_height + 1) * uniforms[:, 2 * CROP_ATTEMPTS + 1])
    boxes = np.stack([left, top, left + crop_width, top + crop_height], axis=1).astype(np.int64)
    boxes[~fits.any(axis=1)] = widest_centre(width, height, spec.crop_ratio)
    return boxes


def view_boxes(width: int, height: int, spec: AugmentationSpec, uniforms: NDArray[np.float64]) -> NDArray[np.float32]:
    """`augmentation.view_box` for many views of images of one size, `(n, 4)`."""
    if spec.kind == "crop":
        boxes = crop_boxes(width, height, spec, uniforms) / (width, height, width, height)
    else:
        boxes = np.tile(whole_box(width, height, spec), (len(uniforms), 1))
    mirrored = uniforms[:, FLIP, None] < spec.flip
    return np.where(mirrored, boxes[:, [2, 1, 0, 3]], boxes).astype(np.float32)


def photometric(pixels: Tensor, parameters: Tensor, blurred: bool = True) -> Tensor:
    """Apply what `draw_all` drew.

    Args:
        pixels: uint8, shape `(n, 3, size, size)`.
        parameters: As `draw_all` returns them, on the same device.
        blurred: Whether any view may be; else there is nothing to multiply by.

    Returns:
        uint8 of the same shape, channels last in memory.
    """
    columns = parameters[:, :, None, None, None]
    if pixels.device.type == "cuda" and why_no_jitter() is None:
        from leoclr.datasets.images.jitter_triton import jitter

        colours = jitter(pixels, parameters)
    else:
        colours = _jitter(pixels, columns)
    if blurred:
        blur = _blur_matrix(parameters[:, _RADIUS], pixels.shape[-1])
        right = blur.transpose(1, 2)
        right = torch.where(columns[:, _FLIP, :, 0] > 0, right.flip(2), right)
        colours = blur[:, None] @ colours @ right[:, None]
    else:
        colours = torch.where(columns[:, _FLIP] > 0, colours.flip(3), colours)
    drawn = to_bytes(colours)
    if parameters.shape[1] > COLUMNS:
        inverted = (columns[:, COLUMNS] > 0) & (drawn >= SOLARIZE_THRESHOLD)
        drawn = torch.where(inverted, 255 - drawn, drawn)
    if parameters.shape[1] > COLUMNS + 1:
        drawn = strong(drawn, parameters[:, COLUMNS + 1 :])
    return drawn.contiguous(memory_format=torch.channels_last)


def _jitter(pixels: Tensor, columns: Tensor) -> Tensor:
    """The blends, the turn of the hue between them, and grayscale; what `jitter_triton` does in two kernels."""
    colours = pixels.to(torch.float32, memory_format=torch.contiguous_format)
    for blend in range(_BLENDS):
        if blend == _BLENDS // 2:
            turn = columns[:, _HUE]
            colours = torch.where(turn >= 0, _turn_hue(colours, turn[:, 0]), colours)
        colours = _blend(colours, *columns[:, 3 * blend : 3 * blend + 3].unbind(dim=1))
    return torch.where(columns[:, _GRAYSCALE] > 0, grey(colours), colours)


@cache
def why_no_jitter() -> str | None:
    """Why Triton's kernels do not run on this GPU; None where they do. It is not part of every torch, and needs a C
    compiler and a GPU from Volta on."""
    if torch.cuda.is_available() and torch.cuda.get_device_capability() < (7, 0):
        return "the GPU is older than what Triton compiles for"
    try:
        from triton.runtime import driver

        driver.active.utils  # noqa: B018
        if torch.cuda.is_available():
            from leoclr.datasets.images.jitter_triton import jitter

            jitter(torch.zeros(1, 3, 8, 8, dtype=torch.uint8, device="cuda"), torch.zeros(1, COLUMNS, device="cuda"))
    except Exception as error:  # whatever the compiler, the driver or the linker says
        return in_a_line(error, 200)
    return None


def to_bytes(colours: Tensor) -> Tensor:
    """Round to the nearest of 0 to 255, as uint8."""
    return (colours + 0.5).floor_().clamp_(0, 255).to(torch.uint8)


def _blend(colours: Tensor, factor: Tensor, own_grey: Tensor, mean_grey: Tensor) -> Tensor:
    """Pillow's Image.blend of the image's black, mean grey or grey version with itself, rounded down as there."""
    own = grey(colours)
    target = own_grey * own + mean_grey * (own.mean(dim=(1, 2, 3), keepdim=True) + 0.5).floor()
    blended: Tensor = target + factor * (colours - target)
    return blended.clamp_(0, 255).floor_()


def _turn_hue(colours: Tensor, turn: Tensor) -> Tensor:
    """To Pillow's HSV, whose three values have 8 bits each, turned, and back. `turn` broadcasts to `(n, h, w)`."""
    red, green, blue = colours.unbind(dim=1)
    value, lowest = colours.amax(dim=1), colours.amin(dim=1)
    span = value - lowest
    safe = span.clamp(min=1)
    from_red, from_green, from_blue = (value - red) / safe, (value - green) / safe, (value - blue) / safe
    sixth = torch.where(
        red == value,
        from_blue - from_green,
        torch.where(green == value, 2 + from_red - from_blue, 4 + from_green - from_red),
    )
    hue = torch.where(span > 0, ((sixth / 6 + 1) % 1 * 255).floor(), 0)
    saturation = (span / value.clamp(min=1) * 255).floor()
    hue = (hue + turn) % 256
    return _from_hsv(hue, saturation, value)


def _from_hsv(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    sixth = hue * 6 / 255
    whole = sixth.floor()
    part, share = sixth - whole, saturation / 255
    low = (value * (1 - share) + 0.5).floor()
    falling = (value * (1 - share * part) + 0.5).floor()
    rising = (value * (1 - share * (1 - part)) + 0.5).floor()
    sector = whole % 6

    def choose(*channels: Tensor) -> Tensor:
        chosen = channels[5]
        for number in range(5):
            chosen = torch.where(sector == number, channels[number], chosen)
        return chosen

    return torch.stack(
        [
            choose(value, falling, low, low, rising, value),
            choose(rising, value, value, falling, low, low),
            choose(low, low, rising, value, value, falling),
        ],
        dim=1,
    )


def _box_radius(sigma: NDArray[np.float64]) -> NDArray[np.float64]:
    """Radius of the three equal box filters, their ends counting in part, that Pillow blurs with (BoxBlur.c)."""
    variance = sigma * sigma / _BLUR_PASSES
    whole = np.floor((np.sqrt(12 * variance + 1) - 1) / 2)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    result: NDArray[np.float64] = whole + part
    return result


def _blur_matrix(radius: Tensor, size: int) -> Tensor:
    """Three box filters along an axis, `(n, size, size)`. Beyond the rim each repeats the outermost pixel:
    its weight in row i is what the box would have at distances above i, which sums up to radius - i."""
    place = torch.arange(size, device=radius.device, dtype=radius.dtype)
    reach = radius[:, None, None] + 1
    box = (reach - (place[:, None] - place).abs()).clamp_(0, 1)
    box[:, :, 0] += (radius[:, None] - place).clamp_(min=0)
    box[:, :, -1] += (radius[:, None] - place.flip(0)).clamp_(min=0)
    box /= 2 * reach - 1
    return box @ box @ box
