"""Strong augmentation: a few random operations of FixMatch's fourteen (arXiv 2001.07685), as CLSA has them, behind all
other operations of a view.

Each is drawn with replacement and applied with probability 0.5, at a whole level from 1 to 9 of 10. Here are the draws;
`augment_pillow` applies them, also for the fast executor, and `strong_device` for whole batches on a device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

KINDS = (
    "identity",
    "auto-contrast",
    "brightness",
    "contrast",
    "equalize",
    "posterize",
    "solarize",
    "color",
    "sharpness",
    "rotate",
    "shear-x",
    "shear-y",
    "translate-x",
    "translate-y",
)
DRAWS = 4  # uniform numbers of an operation: its kind, whether it is applied, its level, its sign
_LEVELS = 9
_ENHANCERS: dict[str, Callable[[Image.Image], ImageEnhance._Enhance]] = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "color": ImageEnhance.Color,
    "sharpness": ImageEnhance.Sharpness,
}

Strong = tuple[tuple[str, float], ...]


def _thousandths(kind: str, level: int, sign: int) -> int:
    """What an operation takes: a factor, bits, a threshold, degrees, a slope, or a share of the side."""
    if kind in _ENHANCERS:
        return 50 + 90 * level
    if kind == "posterize":
        return 1000 * (4 + 4 * level // 10)
    if kind == "solarize":
        return 1000 * (256 - 256 * level // 10)
    if kind == "rotate":
        return 1000 * sign * 3 * level
    return sign * 30 * level if kind.startswith(("shear", "translate")) else 0


# By kind, level and sign. Whole thousandths, so that float32 carries them to a device exactly.
_THOUSANDTHS = np.array(
    [[[_thousandths(kind, level, sign) for sign in (1, -1)] for level in range(1, _LEVELS + 1)] for kind in KINDS]
)


def draw_strong(numbers: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Operations of views from uniforms `(n, DRAWS * operations)`: numbers of their kinds, and what they take in
    thousandths, `(n, operations)` both. An operation that is not applied is the identity."""
    kind, applied, level, sign = np.moveaxis(numbers.reshape(len(numbers), -1, DRAWS), 2, 0)
    kinds = np.where(applied < 0.5, (kind * len(KINDS)).astype(np.int64), 0)
    return kinds, _THOUSANDTHS[kinds, (level * _LEVELS).astype(np.int64), (sign < 0.5).astype(np.int64)]


def operations(numbers: Sequence[float]) -> Strong:
    """As `draw_strong` for one view: names and values of what is applied."""
    kinds, values = (drawn[0].tolist() for drawn in draw_strong(np.array([numbers])))
    return tuple((KINDS[kind], value / 1000) for kind, value in zip(kinds, values, strict=True) if kind)


def apply_strong(image: Image.Image, strong: Strong) -> Image.Image:
    """The operations in order, by Pillow. What comes from beyond the rim is black."""
    for kind, value in strong:
        image = _apply(image, kind, value)
    return image


def _apply(image: Image.Image, kind: str, value: float) -> Image.Image:
    if kind in _ENHANCERS:
        return _ENHANCERS[kind](image).enhance(value)
    if kind == "auto-contrast":
        return ImageOps.autocontrast(image)
    if kind == "equalize":
        return ImageOps.equalize(image)
    if kind == "posterize":
        return ImageOps.posterize(image, int(value))
    if kind == "solarize":
        return ImageOps.solarize(image, int(value))
    if kind == "rotate":
        return image.rotate(value)
    moved = {
        "shear-x": (1, value, 0, 0, 1, 0),
        "shear-y": (1, 0, 0, value, 1, 0),
        "translate-x": (1, 0, int(value * image.width), 0, 1, 0),
        "translate-y": (1, 0, 0, 0, 1, int(value * image.height)),
    }
    return image.transform(image.size, Image.Transform.AFFINE, moved[kind])
