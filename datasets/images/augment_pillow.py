"""The augmentations of a view: what is drawn, and how it is applied to a picture.

Drawing and applying are apart. `draw` turns uniform numbers into the parameters of one view; `augment` applies them
with Pillow, whose operations are those of torchvision's transforms on Pillow images (the reference of all published
MoCo and SimCLR figures), bit for bit. The order is MoCo-v2's: crop and resize, colour jitter, grayscale, blur, flip.
`leoclr.datasets.images.augment_opencv` applies the same parameters in a fraction of the time, equal but for rounding.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter

from leoclr.datasets.errors import BadImage
from leoclr.datasets.images.decode import MAX_PIXELS, decode_image
from leoclr.datasets.views import ViewKind

Box = tuple[int, int, int, int]
Uniforms = NDArray[np.float64]

CROP_ATTEMPTS = 10
UNIFORMS = 2 * CROP_ATTEMPTS + 12
JITTER_ORDERS = tuple(itertools.permutations(("brightness", "contrast", "saturation", "hue")))
PAD_COLOUR = (124, 116, 104)  # the mean of ImageNet, so that padding is near zero after normalisation


@dataclass(frozen=True)
class AugmentationSpec:
    """Which operations there are, and their ranges. The fields are those of the `augmentation` settings."""

    image_size: int
    executor: Literal["device", "fast", "pillow"] = "pillow"
    reduced_decoding: bool = False
    original: Literal["squash", "pad", "center"] = "squash"
    crop_scale: tuple[float, float] = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    grayscale: float = 0.2
    blur: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)


@dataclass(frozen=True)
class Photometric:
    """What was drawn for one view, apart from its crop.

    Attributes:
        jitter: (operation, factor) in the order they are applied; empty where there is no jitter. The factor of hue
            is a turn in [-0.5, 0.5], the others multiply.
        blur: Standard deviation in pixels, 0 for none.
    """

    jitter: tuple[tuple[str, float], ...]
    grayscale: bool
    blur: float
    flip: bool


def crop_box(width: int, height: int, spec: AugmentationSpec, uniforms: Uniforms) -> Box:
    """(left, top, right, bottom) of a random crop, distributed as torchvision's RandomResizedCrop."""
    low, high = math.log(spec.crop_ratio[0]), math.log(spec.crop_ratio[1])
    for attempt in range(CROP_ATTEMPTS):
        area = width * height * _between(spec.crop_scale, uniforms[2 * attempt])
        ratio = math.exp(low + (high - low) * uniforms[2 * attempt + 1])
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int((width - crop_width + 1) * uniforms[2 * CROP_ATTEMPTS])
            top = int((height - crop_height + 1) * uniforms[2 * CROP_ATTEMPTS + 1])
            return left, top, left + crop_width, top + crop_height
    return widest_centre(width, height, spec.crop_ratio)


def draw(spec: AugmentationSpec, uniforms: Uniforms) -> Photometric:
    """Turn the uniform numbers of one view into what its photometric operations do."""
    flip, jitter, *factors, order, grayscale, blur, sigma = uniforms[2 * CROP_ATTEMPTS + 2 :].tolist()
    strengths = (spec.brightness, spec.contrast, spec.saturation)
    drawn = {
        name: max(0.0, 1 - strength) + (1 + strength - max(0.0, 1 - strength)) * uniform
        for name, strength, uniform in zip(JITTER_ORDERS[0], strengths, factors, strict=False)
    }
    drawn["hue"] = spec.hue * (2 * factors[3] - 1)
    active = {"brightness": spec.brightness, "contrast": spec.contrast, "saturation": spec.saturation, "hue": spec.hue}
    names = JITTER_ORDERS[int(order * len(JITTER_ORDERS))] if jitter < spec.jitter else ()
    return Photometric(
        jitter=tuple((name, drawn[name]) for name in names if active[name] > 0),
        grayscale=grayscale < spec.grayscale,
        blur=_between(spec.blur_sigma, sigma) if blur < spec.blur else 0.0,
        flip=flip < spec.flip,
    )


def views(
    data: bytes, spec: AugmentationSpec, kinds: Sequence[ViewKind], uniforms: Sequence[Uniforms]
) -> list[NDArray[np.uint8]]:
    """The views of an encoded image, one for each of `kinds` with its uniforms; see `augment`. Raises BadImage."""
    image = decode_image(data)
    return [augment(image, spec, kind, numbers) for kind, numbers in zip(kinds, uniforms, strict=True)]


def augment(image: Image.Image, spec: AugmentationSpec, kind: ViewKind, uniforms: Uniforms) -> NDArray[np.uint8]:
    """One view of an image.

    Args:
        image: RGB, any size.
        kind: "whole" keeps all of the image, "crop" takes a random part; both are augmented photometrically.
        uniforms: Numbers in [0, 1), shape `(UNIFORMS,)`: all the randomness there is.

    Returns:
        uint8, shape `(image_size, image_size, 3)`.
    """
    if kind == "crop":
        # resize(box=...) would save the copy, but lets pixels from outside the box into its rim.
        image = image.crop(crop_box(*image.size, spec, uniforms))
        image = image.resize((spec.image_size, spec.image_size), Image.Resampling.BILINEAR)
    else:
        image = whole(image, spec)
    return np.asarray(apply(image, draw(spec, uniforms)))


def whole(image: Image.Image, spec: AugmentationSpec) -> Image.Image:
    """The whole image as a square: resized to it, padded to it, or (which loses the rims) its centre."""
    left, top, width, height = placed(*image.size, spec)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    if (width, height) == (spec.image_size, spec.image_size):
        return image
    square = Image.new("RGB", (spec.image_size, spec.image_size), PAD_COLOUR)
    square.paste(image, (left, top))
    return square


def placed(width: int, height: int, spec: AugmentationSpec) -> tuple[int, int, int, int]:
    """(left, top, width, height) of a whole image on the square; left and top are below zero where it is cut."""
    size = spec.image_size
    if spec.original == "squash":
        return 0, 0, size, size
    side = max(width, height) if spec.original == "pad" else min(width, height)
    across, down = (max(1, round(length * size / side)) for length in (width, height))
    if across * down > MAX_PIXELS:
        raise BadImage(f"the image of {width} x {height} pixels is too thin: it would be resized to {across} x {down}")
    width, height = across, down
    return (size - width) // 2, (size - height) // 2, width, height


def apply(image: Image.Image, drawn: Photometric) -> Image.Image:
    """The photometric operations and the flip, on an image in mode RGB."""
    for name, factor in drawn.jitter:
        image = _JITTER[name](image, factor)
    if drawn.grayscale:
        image = image.convert("L").convert("RGB")
    if drawn.blur:
        image = image.filter(ImageFilter.GaussianBlur(drawn.blur))
    if drawn.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image


def _turn_hue(image: Image.Image, turn: float) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    shift = int(turn * 255) % 256
    turned = hue.point([(level + shift) % 256 for level in range(256)])
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")


_JITTER = {
    "brightness": lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    "contrast": lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    "saturation": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    "hue": _turn_hue,
}


def _between(limits: tuple[float, float], uniform: float) -> float:
    return limits[0] + (limits[1] - limits[0]) * float(uniform)


def widest_centre(width: int, height: int, ratios: tuple[float, float]) -> Box:
    """The largest centred box whose ratio is allowed: what torchvision takes when ten draws did not fit."""
    crop_width, crop_height = width, height
    if width / height < ratios[0]:
        crop_height = max(1, round(width / ratios[0]))
    elif width / height > ratios[1]:
        crop_width = max(1, round(height * ratios[1]))
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height
