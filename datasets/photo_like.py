"""Shards of generated images, for measurements and checks without data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from leoclr.datasets.packing.arrangement import arrange
from leoclr.datasets.packing.folder_source import FolderSource
from leoclr.datasets.packing.pack import PackingRecipe, pack

_PHOTOGRAPH = (500, 375)  # the usual size of ImageNet's
_SMALL = 96  # sets of images up to this size usually come as PNG, as large as they are used
_GRAIN = 6.0
_CLASSES = ("even", "odd")


def photo_like(folder: Path, count: int, image_size: int) -> Path:
    """Pack images of two classes that cost about as much to decode as photographs: smooth colours with some grain.

    Small ones are PNGs of `image_size`, larger ones JPEGs of 500 x 375. Returns the folder of the shards.
    """
    images, shards = folder / "images", folder / "shards"
    for label in _CLASSES:
        (images / label).mkdir(parents=True)
    small = image_size <= _SMALL
    size = (image_size, image_size) if small else _PHOTOGRAPH
    generator = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (9, 12, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), np.float32)
        grain = generator.normal(0, _GRAIN, smooth.shape[:2])[..., None]
        picture = Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))
        place = images / _CLASSES[number % len(_CLASSES)]
        picture.save(place / f"{number:05d}.{'png' if small else 'jpg'}", quality=90)
    source = FolderSource(images)
    pack(source, arrange(source), shards, PackingRecipe("photo-like"))
    return shards
