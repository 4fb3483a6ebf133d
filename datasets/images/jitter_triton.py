"""Colour jitter and grayscale of many images, each with its own parameters, as two Triton kernels.

A pixel goes through all operations in registers, in place of some two hundred passes over the images. The contrast
blends with the mean grey of the whole image as it is by then, which the first kernel finds: whole numbers, so that the
order of its atomic additions changes nothing. `TRITON_INTERPRET=1`, set before this module is imported, runs both
on a CPU.
"""

# mypy: disable-error-code="attr-defined,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_PIXELS = 1024
_BLENDS: tl.constexpr = tl.constexpr(6)
_HUE: tl.constexpr = tl.constexpr(18)  # columns of `augment_device.draw_all`, after three for each of six blends
_GRAYSCALE: tl.constexpr = tl.constexpr(19)


@triton.jit
def _grey(red, green, blue):
    return tl.floor((red * 19595.0 + green * 38470.0 + blue * 7471.0 + 32768.0) / 65536.0)


@triton.jit
def _mixed(colour, target, factor):
    return tl.floor(tl.minimum(tl.maximum(target + factor * (colour - target), 0.0), 255.0))


@triton.jit
def _turned(red, green, blue, turn):
    """To hue, saturation and value of 8 bits, turned, and back, as `augment_device._turn_hue`."""
    value = tl.maximum(tl.maximum(red, green), blue)
    span = value - tl.minimum(tl.minimum(red, green), blue)
    safe = tl.maximum(span, 1.0)
    from_red = tl.math.div_rn(value - red, safe)
    from_green = tl.math.div_rn(value - green, safe)
    from_blue = tl.math.div_rn(value - blue, safe)
    other = tl.where(green == value, 2.0 + from_red - from_blue, 4.0 + from_green - from_red)
    sixth = tl.math.div_rn(tl.where(red == value, from_blue - from_green, other), 6.0 + 0.0 * value) + 1.0
    hue = tl.where(span > 0, tl.floor((sixth - tl.floor(sixth)) * 255.0), 0.0) + turn
    hue = tl.where(hue >= 256.0, hue - 256.0, hue)
    saturation = tl.floor(tl.math.div_rn(span, tl.maximum(value, 1.0)) * 255.0)

    place = tl.math.div_rn(hue * 6.0, 255.0 + 0.0 * value)
    whole = tl.floor(place)
    part = place - whole
    share = tl.math.div_rn(saturation, 255.0 + 0.0 * value)
    low = tl.floor(value * (1.0 - share) + 0.5)
    falling = tl.floor(value * (1.0 - share * part) + 0.5)
    rising = tl.floor(value * (1.0 - share * (1.0 - part)) + 0.5)
    sector = tl.where(whole >= 6.0, whole - 6.0, whole)
    new_red = tl.where(
        (sector == 0) | (sector == 5), value, tl.where(sector == 1, falling, tl.where(sector == 4, rising, low))
    )
    new_green = tl.where(
        (sector == 1) | (sector == 2), value, tl.where(sector == 0, rising, tl.where(sector == 3, falling, low))
    )
    new_blue = tl.where(
        (sector == 3) | (sector == 4), value, tl.where(sector == 2, rising, tl.where(sector == 5, falling, low))
    )
    return new_red, new_green, new_blue


@triton.jit
def _blended(red, green, blue, drawn, blend, mean):
    """One blend, with black, the pixel's own grey or the mean grey."""
    factor, own, of_mean = tl.load(drawn + 3 * blend), tl.load(drawn + 3 * blend + 1), tl.load(drawn + 3 * blend + 2)
    target = own * _grey(red, green, blue) + of_mean * mean
    return _mixed(red, target, factor), _mixed(green, target, factor), _mixed(blue, target, factor)


@triton.jit
def _hue(red, green, blue, drawn):
    turn = tl.load(drawn + _HUE)
    if turn >= 0:
        red, green, blue = _turned(red, green, blue, turn)
    return red, green, blue


@triton.jit
def _loaded(images, image, pixel, inside, image_stride, channel_stride, pixel_stride):
    place = images + image.to(tl.int64) * image_stride + pixel * pixel_stride
    red = tl.load(place, mask=inside, other=0).to(tl.float32)
    green = tl.load(place + channel_stride, mask=inside, other=0).to(tl.float32)
    blue = tl.load(place + 2 * channel_stride, mask=inside, other=0).to(tl.float32)
    return red, green, blue


@triton.jit
def _mean_greys(
    images, parameters, sums, pixels, columns, image_stride, channel_stride, pixel_stride, PIXELS: tl.constexpr
):
    """Add up the grey of each image before its contrast is changed."""
    image = tl.program_id(0)
    pixel = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    inside = pixel < pixels
    red, green, blue = _loaded(images, image, pixel, inside, image_stride, channel_stride, pixel_stride)
    drawn = parameters + image * columns
    total = 0.0
    for blend in range(_BLENDS // 2):
        total += tl.load(drawn + 3 * blend + 2) * tl.sum(tl.where(inside, _grey(red, green, blue), 0.0), axis=0)
        red, green, blue = _blended(red, green, blue, drawn, blend, 0.0)
    red, green, blue = _hue(red, green, blue, drawn)
    for blend in range(_BLENDS // 2, _BLENDS):
        total += tl.load(drawn + 3 * blend + 2) * tl.sum(tl.where(inside, _grey(red, green, blue), 0.0), axis=0)
        red, green, blue = _blended(red, green, blue, drawn, blend, 0.0)
    tl.atomic_add(sums + image, total.to(tl.int32))


@triton.jit
def _jitter(
    images, parameters, sums, output, pixels, columns, image_stride, channel_stride, pixel_stride,
    PIXELS: tl.constexpr,
):  # fmt: skip
    """All blends, the turn of the hue between them, then grayscale."""
    image = tl.program_id(0)
    pixel = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    inside = pixel < pixels
    red, green, blue = _loaded(images, image, pixel, inside, image_stride, channel_stride, pixel_stride)
    drawn = parameters + image * columns
    total = tl.load(sums + image).to(tl.float32)
    mean = tl.floor(tl.math.div_rn(total, pixels + 0.0 * total) + 0.5)
    for blend in range(_BLENDS // 2):
        red, green, blue = _blended(red, green, blue, drawn, blend, mean)
    red, green, blue = _hue(red, green, blue, drawn)
    for blend in range(_BLENDS // 2, _BLENDS):
        red, green, blue = _blended(red, green, blue, drawn, blend, mean)
    if tl.load(drawn + _GRAYSCALE) > 0:
        grey = _grey(red, green, blue)
        red, green, blue = grey, grey, grey
    place = output + image.to(tl.int64) * 3 * pixels + pixel
    tl.store(place, red, mask=inside)
    tl.store(place + pixels, green, mask=inside)
    tl.store(place + 2 * pixels, blue, mask=inside)


def jitter(images: Tensor, parameters: Tensor) -> Tensor:
    """The operations of `augment_device.photometric` up to the blur.

    Args:
        images: uint8, `(n, 3, height, width)`.
        parameters: `(n, columns)`, as `augment_device.draw_all` returns them, on the same device.

    Returns:
        Whole numbers of 0 to 255 as float32, of the same shape, contiguous.
    """
    last = images.is_contiguous(memory_format=torch.channels_last)
    images = images if last else images.contiguous()
    pixels = images.shape[2] * images.shape[3]
    strides = (3 * pixels, 1, 3) if last else (3 * pixels, pixels, 1)
    sums = torch.zeros(len(images), dtype=torch.int32, device=images.device)
    output = torch.empty(images.shape, dtype=torch.float32, device=images.device)
    grid = len(images), -(-pixels // _PIXELS)  # the second is limited to 65,535
    shape = pixels, parameters.shape[1], *strides
    parameters = parameters.contiguous()
    _mean_greys[grid](images, parameters, sums, *shape, PIXELS=_PIXELS)
    _jitter[grid](images, parameters, sums, output, *shape, PIXELS=_PIXELS)
    return output
