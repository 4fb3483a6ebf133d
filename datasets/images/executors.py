"""What makes the views of an image: the one place where the setting `augmentation.executor` is looked up.

Of "device" this is the first half, up to the square; `leoclr.datasets.images.augment_device` is the second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from leoclr.datasets.images import augment_opencv as fast_augment
from leoclr.datasets.images import augment_pillow as augment
from leoclr.datasets.images.augment_pillow import AugmentationSpec, Uniforms
from leoclr.datasets.views import ViewKind


class Executor(Protocol):
    """From an encoded image to its views, uint8 of shape `(image_size, image_size, 3)`; raises BadImage."""

    def __call__(
        self, data: bytes, spec: AugmentationSpec, kinds: Sequence[ViewKind], uniforms: Sequence[Uniforms]
    ) -> list[NDArray[np.uint8]]: ...


EXECUTORS: Mapping[str, Executor] = MappingProxyType(
    {"device": fast_augment.squares, "fast": fast_augment.views, "pillow": augment.views}
)


def one_view(image: Image.Image, spec: AugmentationSpec, kind: ViewKind, uniforms: Uniforms) -> NDArray[np.uint8]:
    """A view of a decoded image, for looking at: as in training, with "device" equal but for rounding."""
    if spec.executor == "pillow":
        return augment.augment(image, spec, kind, uniforms)
    return fast_augment.augment(np.array(image), spec, kind, uniforms)
