"""Time of each augmentation by itself, with each executor, for `leoclr bench`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from leoclr.datasets.images import augment_opencv, augment_pillow
from leoclr.datasets.images.augment_device import draw_all, photometric
from leoclr.datasets.images.augmentation import AugmentationSpec, Photometric, Uniforms, crop_box
from leoclr.datasets.randomness import uniforms

Work = Callable[[], int]

_NOTHING: dict[str, Any] = {"jitter": (), "grayscale": False, "blur": 0.0, "flip": False}
_PHOTOMETRIC: dict[str, dict[str, Any]] = {
    "brightness": {"jitter": (("brightness", 1.2),)},
    "contrast": {"jitter": (("contrast", 1.2),)},
    "saturation": {"jitter": (("saturation", 1.2),)},
    "hue": {"jitter": (("hue", 0.05),)},
    "grayscale": {"grayscale": True},
    "blur": {"blur": 1.0},
    "flip": {"flip": True},
}


def operations(
    images: Sequence[Image.Image], spec: AugmentationSpec, batch: int, device: torch.device
) -> Iterator[tuple[str, Work]]:
    """The name of each operation, and what does it once to all images and returns how many there were.

    The photometric ones of the device come together, on a batch of `batch` views.
    """
    numbers = uniforms(0, 0, np.arange(len(images)), 0, spec.uniforms)
    arrays = [np.array(image) for image in images]  # copies: torch wants to be allowed to write
    square = partial(augment_opencv.square, spec=spec)
    crops = [square(array, uniforms=row) for array, row in zip(arrays, numbers, strict=True)]
    if spec.executor == "pillow":
        yield "crop and resize", _all(partial(_pillow_crop, spec=spec), images, numbers)
        pictures = [Image.fromarray(crop) for crop in crops]
        for name, change in _PHOTOMETRIC.items():
            yield name, _all(partial(augment_pillow.apply, drawn=Photometric(**_NOTHING | change)), pictures)
        return
    yield "crop and resize", _all(lambda array, row: square(array, uniforms=row), arrays, numbers)
    if spec.executor == "fast":
        for name, change in _PHOTOMETRIC.items():
            yield name, _all(partial(augment_opencv.apply, drawn=Photometric(**_NOTHING | change)), crops)
        return
    rows = np.resize(np.arange(len(crops)), batch)
    pixels = torch.from_numpy(np.stack([crops[row] for row in rows])).permute(0, 3, 1, 2).to(device)
    parameters = draw_all(spec, uniforms(0, 0, rows, 0, spec.uniforms)).to(device)
    yield "all others, on the device", lambda: len(photometric(pixels, parameters))


def _all(operation: Callable[..., object], *arguments: Iterable[Any]) -> Work:
    return lambda: sum(1 for _ in map(operation, *arguments))


def _pillow_crop(image: Image.Image, numbers: Uniforms, spec: AugmentationSpec) -> Image.Image:
    size = (spec.image_size, spec.image_size)
    return image.crop(crop_box(*image.size, spec, numbers)).resize(size, Image.Resampling.BILINEAR)
