"""What a person should know of an image file beside its pixels: its format, and what of it is not used or not declared.

Packing and `leoclr check` count these remarks; training does not look for them. Headers are read, and the
data of JPEGs and of images with alpha.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import simplejpeg

from leoclr.datasets.images.decode import examine

FURTHER_IMAGES = "files of several images (pages, frames), of which the first is used"
FURTHER_CHANNELS = "images with channels that are neither colour nor alpha, which are not used"
FOURTH_CHANNEL = "images with a fourth channel of which the file does not say what it is, taken for alpha"
DAMAGED_JPEG = "damaged JPEGs, of which a part may not be what it was (often one flat colour)"
UNMARKED_CMYK = "CMYK JPEGs without Adobe's marker, taken for what Adobe writes (0 is full ink)"
TRANSPARENT = "images whose alpha is 0 everywhere, which become white"
REDUCED = "TIFFs of which the first image is a reduced one (a preview), which is used"

_NEW_SUBFILE_TYPE, _REDUCED_BIT = 254, 1
_SAMPLES_PER_PIXEL, _PHOTOMETRIC, _EXTRA_SAMPLES = 277, 262, 338
_COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3, 9: 3}  # by photometric interpretation
_ALPHA = (1, 2)
_MADE_UP = ("Corrupt JPEG data", "Premature end")


@dataclass(frozen=True)
class FileFacts:
    """Pillow's name of the format, and remarks: those named above that hold for the file."""

    format: str
    remarks: tuple[str, ...] = ()


def facts_of(data: bytes) -> FileFacts:
    """The facts of a file that has been decoded."""
    return examine(data, lambda image, data: FileFacts(image.format or "", tuple(_remarks(image, data))))


def _remarks(image: Any, data: bytes) -> list[str]:
    found = []
    if image.format in ("JPEG", "MPO") and _is_damaged(data, image.mode):
        found.append(DAMAGED_JPEG)
    if image.format != "MPO" and _is_animated(image):  # the further images of an MPO are previews
        found.append(FURTHER_IMAGES)
    if image.format == "JPEG" and image.mode == "CMYK" and "adobe" not in image.info:
        found.append(UNMARKED_CMYK)
    if image.format == "TIFF":
        tags = image.tag_v2
        extra = tags.get(_EXTRA_SAMPLES, ())
        beyond = tags.get(_SAMPLES_PER_PIXEL, 1) - _COLOURS.get(tags.get(_PHOTOMETRIC, 0), 99)
        if beyond == 1 and not extra and image.mode == "RGBA":
            found.append(FOURTH_CHANNEL)
        elif beyond > any(kind in _ALPHA for kind in extra):
            found.append(FURTHER_CHANNELS)
        if int(tags.get(_NEW_SUBFILE_TYPE, 0)) & _REDUCED_BIT:
            found.append(REDUCED)
    if _is_transparent(image):
        found.append(TRANSPARENT)
    return found


def _is_transparent(image: Any) -> bool:
    """Whether alpha hides all of the image; of a BMP, such alpha does not count."""
    band = next((name for name in image.getbands() if name in ("A", "a")), None)
    if image.format == "BMP" or (band is None and "transparency" not in image.info):
        return False
    try:
        alpha = image.getchannel(band) if band else image.convert("RGBA").getchannel("A")
    except Exception:  # which decoding puts up with in its own ways, or tells
        return False
    return not any(alpha.getextrema())


def _is_damaged(data: bytes, mode: str) -> bool:
    """Whether libjpeg warns of pixels that it made up. Pillow does not pass these warnings on."""
    colours = mode if mode == "CMYK" else "RGB"
    try:
        simplejpeg.decode_jpeg(data, colours, min_height=1, min_width=1, min_factor=8)  # of which the result is small
    except ValueError as warning:
        return str(warning).startswith(_MADE_UP)
    return False


def _is_animated(image: Any) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # a damaged second image, which nobody reads
        return True
