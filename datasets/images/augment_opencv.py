"""The views of `augment_pillow`, several times faster, by simplejpeg, OpenCV and torch's resize.

Parameters are the same (`crop_box` and `draw`), and every operation equals Pillow's up to rounding to 8 bits;
docs/speed.md lists the differences and tests/images/test_fast_augment.py bounds them. Choices and times (224 px, one
core of an AMD EPYC; Pillow's time in brackets):

- Resize, 0.2 to 0.4 ms (1.3): torch's antialiased bilinear is Pillow's filter in vector instructions, and OpenCV's
  plain bilinear is the same thing where nothing is reduced. OpenCV's own INTER_AREA takes 1.2.
- Brightness, contrast and saturation, 0.03 ms (0.2): a 3 x 4 matrix, one for those in a row that cannot clip.
- Hue, 0.1 ms (1.8): see `leoclr.datasets.images.hue`.
- Blur, 0.05 to 0.2 ms (2.2): Pillow's six box filters have one kernel, of at most 13 weights for the usual widths.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from leoclr.datasets.images.augmentation import (
    PAD_COLOUR,
    SOLARIZE_THRESHOLD,
    AugmentationSpec,
    Photometric,
    Uniforms,
    crop_box,
    draw,
    placed,
)
from leoclr.datasets.images.decode import decode_pixels
from leoclr.datasets.images.hue import turn_hue
from leoclr.datasets.images.strong import apply_strong

Pixels = NDArray[np.uint8]

cv2.setNumThreads(1)  # the loader's processes are the parallelism
cv2.ipp.setUseIPP(False)  # the same arithmetic on every processor; on AMD's it is faster, too

_RED, _GREEN, _BLUE = 19595 / 65536, 38470 / 65536, 7471 / 65536  # Pillow's weights for grey
_UNCHANGED = (1.0, 0.0, 0.0)
_TRUNCATION = -0.499  # Pillow truncates where OpenCV rounds; not -0.5, which would be a tie for whole numbers
_BLUR_PASSES = 3
_SOLARIZED = np.array([level if level < SOLARIZE_THRESHOLD else 255 - level for level in range(256)], np.uint8)
_SMALL = 3 * 100 * 100  # bytes; torch's flip takes a third of OpenCV's time for more, but starts later
_KERNEL_UNITS = 256  # OpenCV filters bytes with weights of 8 bits


def views(
    data: bytes, specs: Sequence[AugmentationSpec], uniforms: Sequence[Uniforms]
) -> tuple[list[Pixels], tuple[int, int]]:
    """The views of an encoded image, one for each spec with its uniforms, and its width and height. Raises BadImage."""
    cut, size = squares(data, specs, uniforms)
    return [apply(*each) for each in zip(cut, map(draw, specs, uniforms), strict=True)], size


def squares(
    data: bytes, specs: Sequence[AugmentationSpec], uniforms: Sequence[Uniforms]
) -> tuple[list[Pixels], tuple[int, int]]:
    """As `views`, before their photometric operations."""
    full: tuple[int, int] | None = None

    def spare(width: int, height: int) -> float:
        nonlocal full
        full = width, height
        return min(
            side / needed
            for spec, numbers in zip(specs, uniforms, strict=True)
            for side, needed in _sides(width, height, spec, numbers)
        )

    reduced = all(spec.reduced_decoding for spec in specs)
    image = decode_pixels(data, spare if reduced else None)
    size = full or (image.shape[1], image.shape[0])
    return [square(image, spec, numbers, size) for spec, numbers in zip(specs, uniforms, strict=True)], size


def _sides(
    width: int, height: int, spec: AugmentationSpec, uniforms: Uniforms
) -> tuple[tuple[int, int], tuple[int, int]]:
    """How many pixels of the image lie along each side of a view, and how many of the view."""
    if spec.kind == "crop":
        left, top, right, bottom = crop_box(width, height, spec, uniforms)
        return (right - left, spec.image_size), (bottom - top, spec.image_size)
    *_, placed_width, placed_height = placed(width, height, spec)
    return (width, placed_width), (height, placed_height)


def augment(image: Pixels, spec: AugmentationSpec, uniforms: Uniforms) -> Pixels:
    """One view, as `augment_pillow.augment`, from RGB pixels of shape `(height, width, 3)`."""
    return apply(square(image, spec, uniforms), draw(spec, uniforms))


def square(image: Pixels, spec: AugmentationSpec, uniforms: Uniforms, full: tuple[int, int] | None = None) -> Pixels:
    """A view before its photometric operations: the crop, or the whole image, as a square of `image_size`.

    Args:
        full: Width and height of the image where it was decoded at a reduced resolution: what is drawn depends on them.
    """
    height, width = image.shape[:2]
    full_width, full_height = full or (width, height)
    size = spec.image_size
    if spec.kind == "crop":
        left, top, right, bottom = crop_box(full_width, full_height, spec, uniforms)
        left, right = left * width // full_width, -(-right * width // full_width)  # outwards, where it is reduced
        top, bottom = top * height // full_height, -(-bottom * height // full_height)
        return resize(image[top:bottom, left:right], size, size)
    left, top, width, height = placed(full_width, full_height, spec)
    resized = resize(image, width, height)
    if (width, height) == (size, size):
        return resized
    ground = np.empty((size, size, 3), np.uint8)
    ground[:] = PAD_COLOUR
    right, bottom = min(left + width, size), min(top + height, size)
    ground[max(top, 0) : bottom, max(left, 0) : right] = resized[
        max(-top, 0) : bottom - top, max(-left, 0) : right - left
    ]
    return ground


def resize(image: Pixels, width: int, height: int) -> Pixels:
    """Bilinear, over as many pixels as one of the result covers, as Pillow's."""
    if image.shape[:2] == (height, width):
        return image
    if image.shape[0] <= height and image.shape[1] <= width:
        enlarged: Pixels = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        return enlarged
    compact = np.ascontiguousarray(image)  # which torch would do, too, in three times the time
    reduced: Tensor = interpolate(_channels_last(compact), (height, width), mode="bilinear", antialias=True)
    return reduced.permute(0, 2, 3, 1)[0].numpy()


def apply(image: Pixels, drawn: Photometric) -> Pixels:
    """The photometric operations and the flip. The image itself is left alone, or returned where nothing is done."""
    image = _jitter(image, drawn.jitter)
    if drawn.grayscale:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    if drawn.blur:
        kernel = blur_kernel(drawn.blur)
        image = cv2.sepFilter2D(image, -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE)
    if drawn.grayscale:
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    if drawn.solarize:
        image = cv2.LUT(image, _SOLARIZED)
    if drawn.flip:
        image = _flip(image)
    return np.array(apply_strong(Image.fromarray(image), drawn.strong)) if drawn.strong else image


def _flip(image: Pixels) -> Pixels:
    if image.size < _SMALL:
        flipped: Pixels = cv2.flip(image, 1)
        return flipped
    return _channels_last(image).flip(3).permute(0, 2, 3, 1)[0].numpy()


def _channels_last(image: Pixels) -> Tensor:
    """As a batch of one, `(1, 3, height, width)`, whose memory it shares."""
    return torch.from_numpy(image)[None].permute(0, 3, 1, 2)


def _jitter(image: Pixels, operations: Sequence[tuple[str, float]]) -> Pixels:
    """Colour jitter. All but hue make `scale` x colour + `grey` x its own grey + `offset` of a colour, as do any
    number of them in a row; they wait until something comes that they cannot be joined with."""
    scale, grey, offset = _UNCHANGED
    for name, factor in operations:
        if name == "hue":
            image = turn_hue(_recolour(image, scale, grey, offset), factor)
            scale, grey, offset = _UNCHANGED
            continue
        if name == "contrast":
            mean = int((scale + grey) * _mean_grey(image) + offset + 0.5)
            scale, grey, offset = factor * scale, factor * grey, factor * offset + (1 - factor) * mean
        elif name == "saturation":
            scale, grey = factor * scale, grey + (1 - factor) * scale
        else:
            scale, grey, offset = factor * scale, factor * grey, factor * offset
        offset += _TRUNCATION
        if factor > 1:  # only then colours leave their range, and Pillow clips them before the next operation
            image = _recolour(image, scale, grey, offset)
            scale, grey, offset = _UNCHANGED
    return _recolour(image, scale, grey, offset)


def _recolour(image: Pixels, scale: float, grey: float, offset: float) -> Pixels:
    if (scale, grey, offset) == _UNCHANGED:
        return image
    red, green, blue = grey * _RED, grey * _GREEN, grey * _BLUE
    matrix = (
        (scale + red, green, blue, offset),
        (red, scale + green, blue, offset),
        (red, green, scale + blue, offset),
    )
    changed: Pixels = cv2.transform(image, np.array(matrix))
    return changed


def _mean_grey(image: Pixels) -> float:
    red, green, blue, _ = cv2.mean(image)
    return float(_RED * red + _GREEN * green + _BLUE * blue)


def blur_kernel(sigma: float) -> NDArray[np.float32]:
    """The weights of Pillow's GaussianBlur along one axis: three box filters whose ends count in part.

    The box is that of Pillow's BoxBlur.c, after Gwosdek and others, "Theoretical foundations of Gaussian convolution by
    extended box filtering" (2011). The weights are whole 256ths and add up to 1; those that round to zero are left
    out.
    """
    variance = sigma * sigma / _BLUR_PASSES
    whole = int((math.sqrt(12 * variance + 1) - 1) / 2)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    box = [part, *[1.0] * (2 * whole + 1), part]
    kernel = [1.0 / (2 * whole + 1 + 2 * part) ** _BLUR_PASSES]
    for _ in range(_BLUR_PASSES):  # as lists: numpy takes longer to start than this takes
        wider = [0.0] * (len(kernel) + len(box) - 1)
        for place, weight in enumerate(kernel):
            for offset, share in enumerate(box):
                wider[place + offset] += weight * share
        kernel = wider
    units = [round(weight * _KERNEL_UNITS) for weight in kernel]
    zeros = next(place for place, unit in enumerate(units) if unit)
    units = units[zeros : len(units) - zeros]
    units[len(units) // 2] += _KERNEL_UNITS - sum(units)  # else the image would become brighter or darker
    return (np.array(units) / _KERNEL_UNITS).astype(np.float32)
