"""Augmentations by Pillow, bit for bit those of torchvision's transforms.

torchvision's transforms on Pillow images are the reference of all published MoCo and SimCLR figures.

`augment_opencv` applies the same parameters in a fraction of the time, equal but for rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

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
from leoclr.datasets.images.decode import decode_image
from leoclr.datasets.images.strong import apply_strong


def views(
    data: bytes, specs: Sequence[AugmentationSpec], uniforms: Sequence[Uniforms]
) -> tuple[list[NDArray[np.uint8]], tuple[int, int]]:
    """The views of an encoded image, one for each spec with its uniforms (see `augment`), and its width and height.

    Raises:
        BadImage: It cannot be decoded.
    """
    image = decode_image(data)
    return [augment(image, spec, numbers) for spec, numbers in zip(specs, uniforms, strict=True)], image.size


def augment(image: Image.Image, spec: AugmentationSpec, uniforms: Uniforms) -> NDArray[np.uint8]:
    """One view of an image.

    Args:
        image: RGB, any size.
        uniforms: Numbers in [0, 1), shape `(spec.uniforms,)`: all the randomness there is.

    Returns:
        uint8, shape `(image_size, image_size, 3)`.
    """
    if spec.kind == "crop":
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


def apply(image: Image.Image, drawn: Photometric) -> Image.Image:
    """The photometric operations and the flip, on an image in mode RGB."""
    for name, factor in drawn.jitter:
        image = _JITTER[name](image, factor)
    if drawn.grayscale:
        image = image.convert("L").convert("RGB")
    if drawn.blur:
        image = image.filter(ImageFilter.GaussianBlur(drawn.blur))
    if drawn.solarize:
        image = ImageOps.solarize(image, SOLARIZE_THRESHOLD)
    if drawn.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return apply_strong(image, drawn.strong)


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
