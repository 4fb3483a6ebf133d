"""The same views as `leoclr.datasets.augment`, several times faster: simplejpeg, OpenCV, and torch's resize.

What is drawn is the same (`crop_box` and `draw`), and every operation is the one of Pillow, to within its rounding to
8 bits; docs/data.md has the differences, tests/test_fast_augment.py holds them down. Where the time goes, and why this
way (224 px, one core; Pillow's figure in brackets):

- Resize, 0.3 ms (1.3): torch's antialiased bilinear is Pillow's filter with vector instructions. Enlarging needs no
  antialiasing, and OpenCV's plain bilinear is the same thing in half the time.
- Brightness, contrast and saturation, 0.03 ms each (0.2): a 3 x 4 matrix. They stay separate passes, because Pillow
  clips after each.
- Hue, 0.2 ms (1.8): to HSV and back, with 8 bits for each of the three as in Pillow.
- Blur, 0.1 to 0.2 ms (2.2): Pillow's six box filters have one kernel, of at most 13 weights for the usual widths.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from leoclr.datasets.augment import PAD_COLOUR, AugmentationSpec, Photometric, Uniforms, crop_box, draw, placed
from leoclr.datasets.decode import decode_pixels
from leoclr.datasets.views import ViewKind

Pixels = NDArray[np.uint8]

cv2.setNumThreads(1)  # the loader's processes are the parallelism

_LUMA = np.array([19595, 38470, 7471]) / 65536  # Pillow's weights of red, green and blue
_TRUNCATE = -0.499  # Pillow truncates where OpenCV rounds; not -0.5, which would be a tie for whole numbers
_BLUR_PASSES = 3
_KERNEL_UNITS = 256  # OpenCV filters bytes with weights of 8 bits


def views(data: bytes, spec: AugmentationSpec, kinds: Sequence[ViewKind], uniforms: Sequence[Uniforms]) -> list[Pixels]:
    """The views of an encoded image, one for each of `kinds` with its uniforms. Raises BadImage."""
    image = decode_pixels(data)
    return [augment(image, spec, kind, numbers) for kind, numbers in zip(kinds, uniforms, strict=True)]


def squares(
    data: bytes, spec: AugmentationSpec, kinds: Sequence[ViewKind], uniforms: Sequence[Uniforms]
) -> list[Pixels]:
    """As `views`, before their photometric operations."""
    image = decode_pixels(data)
    return [square(image, spec, kind, numbers) for kind, numbers in zip(kinds, uniforms, strict=True)]


def augment(image: Pixels, spec: AugmentationSpec, kind: ViewKind, uniforms: Uniforms) -> Pixels:
    """One view, as `leoclr.datasets.augment.augment`, from RGB pixels of shape `(height, width, 3)`."""
    return apply(square(image, spec, kind, uniforms), draw(spec, uniforms))


def square(image: Pixels, spec: AugmentationSpec, kind: ViewKind, uniforms: Uniforms) -> Pixels:
    """A view before its photometric operations: the crop, or the whole image, as a square of `image_size`."""
    height, width = image.shape[:2]
    size = spec.image_size
    if kind == "crop":
        left, top, right, bottom = crop_box(width, height, spec, uniforms)
        return resize(image[top:bottom, left:right], size, size)
    left, top, width, height = placed(width, height, spec)
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
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None]
    reduced: Tensor = interpolate(tensor, (height, width), mode="bilinear", antialias=True)
    return reduced[0].permute(1, 2, 0).numpy()


def apply(image: Pixels, drawn: Photometric) -> Pixels:
    """The photometric operations and the flip. The image itself is left alone, or returned where nothing is done."""
    for name, factor in drawn.jitter:
        image = _turn_hue(image, factor) if name == "hue" else cv2.transform(image, _MATRIX[name](image, factor))
    if drawn.grayscale:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    if drawn.blur:
        kernel = _blur_kernel(drawn.blur)
        image = cv2.sepFilter2D(image, -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE)
    if drawn.grayscale:
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    return cv2.flip(image, 1) if drawn.flip else image


def _towards(target: NDArray[np.float64], offset: float, factor: float) -> NDArray[np.float32]:
    """The 3 x 4 matrix of factor * colour + (1 - factor) * (target @ colour + offset)."""
    matrix = np.empty((3, 4), np.float32)
    matrix[:, :3] = (1 - factor) * target
    matrix[:, 3] = (1 - factor) * offset + _TRUNCATE
    matrix[0, 0] += factor
    matrix[1, 1] += factor
    matrix[2, 2] += factor
    return matrix


def _contrast(image: Pixels, factor: float) -> NDArray[np.float32]:
    mean = cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0]
    return _towards(_BLACK, int(mean + 0.5), factor)


_BLACK = np.zeros(3)
_MATRIX: dict[str, Callable[[Pixels, float], NDArray[np.float32]]] = {
    "brightness": lambda image, factor: _towards(_BLACK, 0, factor),
    "contrast": _contrast,
    "saturation": lambda image, factor: _towards(_LUMA, 0, factor),
}


def _turn_hue(image: Pixels, turn: float) -> Pixels:
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(round(int(turn * 255) / 255 * 256) % 256)
    turned: Pixels = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)
    return turned


def _blur_kernel(sigma: float) -> NDArray[np.float32]:
    """The weights of Pillow's GaussianBlur along one axis: three box filters whose ends count in part.

    The box is the one of its source (BoxBlur.c, after Gwosdek and others, "Theoretical foundations of Gaussian
    convolution by extended box filtering", 2011).
    """
    variance = sigma * sigma / _BLUR_PASSES
    whole = math.floor((math.sqrt(12 * variance + 1) - 1) / 2)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    box = np.ones(2 * whole + 3)
    box[0] = box[-1] = part
    box /= box.sum()
    kernel = np.ones(1)
    for _ in range(_BLUR_PASSES):
        kernel = np.convolve(kernel, box)
    units = np.rint(kernel * _KERNEL_UNITS)
    units = units[int(np.argmax(units > 0)) : len(units) - int(np.argmax(units > 0))]
    units[len(units) // 2] += _KERNEL_UNITS - units.sum()  # else rounding would make the image brighter or darker
    return (units / _KERNEL_UNITS).astype(np.float32)
