"""Executors of the augmentations: the only place that evaluates `augmentation.executor`.

The executor "device" crops and resizes here, on the processors; `augment_device` does the rest on the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from leoclr.datasets.images import augment_opencv, augment_pillow
from leoclr.datasets.images.augmentation import AugmentationSpec, Uniforms


class Executor(Protocol):
    """From an encoded image to its views, each uint8 of shape `(image_size, image_size, 3)`, and to the width and
    height of all of it, upright; raises BadImage."""

    def __call__(
        self, data: bytes, specs: Sequence[AugmentationSpec], uniforms: Sequence[Uniforms]
    ) -> tuple[list[NDArray[np.uint8]], tuple[int, int]]: ...


EXECUTORS: Mapping[str, Executor] = MappingProxyType(
    {"device": augment_opencv.squares, "fast": augment_opencv.views, "pillow": augment_pillow.views}
)


def one_view(image: Image.Image, spec: AugmentationSpec, uniforms: Uniforms) -> NDArray[np.uint8]:
    """A view of a decoded image, for looking at: as in training, with "device" equal but for rounding."""
    if spec.executor == "pillow":
        return augment_pillow.augment(image, spec, uniforms)
    return augment_opencv.augment(np.array(image), spec, uniforms)
