"""Encoding of an image for a shard: bytes unchanged, or resized and re-encoded."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from leoclr.datasets.errors import BadImage
from leoclr.datasets.images.decode import decode_image, depends_on_levels
from leoclr.datasets.images.file_facts import facts_of
from leoclr.datasets.images.samples import Levels

DEFAULT_QUALITY = 90
_USUAL_SUFFIX = {"jpeg": "jpg", "jpe": "jpg", "jfif": "jpg", "tiff": "tif"}
# What a changed image is stored as when nothing is asked for: without loss where it came without loss.
_CODED_AGAIN_AS = {
    "webp": "webp",
    "png": "png",
    "bmp": "png",
    "gif": "png",
    "tif": "png",
    "ppm": "png",
    "pgm": "png",
    "pbm": "png",
    "pnm": "png",
}
# By Pillow's name of the format, the usual suffix first.
_SUFFIXES = {
    "JPEG": ("jpg", "mpo"),
    "MPO": ("jpg", "mpo"),
    "PNG": ("png",),
    "WEBP": ("webp",),
    "BMP": ("bmp",),
    "GIF": ("gif",),
    "TIFF": ("tif",),
    "PPM": ("ppm", "pgm", "pbm", "pnm"),
    "AVIF": ("avif",),
}
_PILLOW_NAME = {"jpg": "JPEG", "webp": "WEBP", "png": "PNG"}


@dataclass(frozen=True)
class Encoding:
    """How images are stored.

    An image keeps its bytes unless it is larger than `shortest_side`, is not in `format`, is in `format` and a
    `quality` was asked for, or has more than 8 bits a sample and `levels` were given.

    Attributes:
        shortest_side: Pixels of the shortest side of a larger image, with bicubic resampling; never enlarges.
        format: What every image becomes. None: a changed PNG, BMP, GIF, TIFF or PPM is stored as PNG, a WebP as
            WebP, and all others as JPEG.
        quality: Of JPEG and WebP, 1 to 100; `DEFAULT_QUALITY` where None.
        levels: Which numbers become black and white in images of more than 8 bits a sample, or with a sign.
    """

    shortest_side: int | None = None
    format: Literal["jpg", "webp"] | None = None
    quality: int | None = None
    levels: Levels | None = None

    def apply(self, data: bytes, suffix: str) -> tuple[bytes, str, tuple[str, ...]]:
        """The bytes to store, the suffix of what they are, whatever `suffix` the file had, and remarks on the file.
        BadImage unless the image can be decoded in full."""
        image = decode_image(data, self.levels)
        facts = facts_of(data)
        suffix = _true_suffix(facts.format, suffix)
        limit = self.shortest_side or min(image.size)
        shrinks = min(image.size) > limit
        recodes = self.format is not None and (self.format != suffix or self.quality is not None)
        windowed = self.levels is not None and depends_on_levels(data)
        if not shrinks and not recodes and not windowed:
            return data, suffix, facts.remarks
        if shrinks:
            image = _shrink(image, limit)
        target = self.format or _CODED_AGAIN_AS.get(suffix, "jpg")
        return self._encode(image, target), target, facts.remarks

    def _encode(self, image: Image.Image, target: str) -> bytes:
        encoded = io.BytesIO()
        options = {} if target == "png" else {"quality": self.quality or DEFAULT_QUALITY}
        try:
            image.save(encoded, _PILLOW_NAME[target], **options)
        except (OSError, ValueError) as error:  # WebP ends at 16,383 pixels a side, JPEG at 65,535
            raise BadImage(f"{image.width} x {image.height} pixels cannot be stored as {target} ({error})") from error
        return encoded.getvalue()


def usual_suffix(suffix: str) -> str:
    """The usual spelling of an image's suffix: jpg for jpeg."""
    return _USUAL_SUFFIX.get(suffix, suffix)


def _true_suffix(format: str, suffix: str) -> str:
    """The suffix of what the bytes are: the file's own, in its usual spelling, where that is right."""
    known = _SUFFIXES.get(format, ())
    suffix = usual_suffix(suffix)
    return suffix if suffix in known or not known else known[0]


def _shrink(image: Image.Image, shortest_side: int) -> Image.Image:
    shortest = min(image.size)
    width, height = (max(1, round(side * shortest_side / shortest)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)
