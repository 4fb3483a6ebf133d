"""The numbers of an image as its file holds them, before they become levels of 8 bits."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from leoclr.datasets.errors import BadImage

_BITS, _PHOTOMETRIC, _SAMPLES_PER_PIXEL, _STRIP_BYTES = 258, 262, 277, 279  # tags of TIFF
_YCBCR = 6
PLANES = 284  # a tag of TIFF: whether channels lie together (1) or one after another (2)


@dataclass(frozen=True)
class Stored:
    """The numbers of an image, upright only as far as Pillow turns them.

    Attributes:
        numbers: Shape `(height, width, channels)`; alpha is the last channel where `mode` has one.
        mode: Pillow's name of what the channels are.
        depth: Bits in use, for all channels or for each; None where the numbers have no range.
        what: What they are, for a refusal.
        deep: Whether there are more than 8 bits, so that `levels` apply.
        white_is_zero: Whether 0 is white.
    """

    numbers: NDArray[Any]
    mode: str
    depth: int | tuple[int, ...] | None
    what: str = ""
    deep: bool = True
    white_is_zero: bool = False


def refuse_missing_pixels(opened: Any) -> None:
    """Raise BadImage where the strips or tiles of a TIFF that is not compressed do not cover the image, or hold fewer
    bytes than it has. Pillow leaves the rest black, or takes what stands behind a strip for pixels."""
    tags, (width, height) = opened.tag_v2, opened.size
    samples, in_planes = tags.get(_SAMPLES_PER_PIXEL, 1), tags.get(PLANES) == 2
    planes = samples if in_planes else 1
    covered = sum(
        (right - left) * (bottom - top) for left, top, right, bottom in (tile.extents for tile in opened.tile)
    )
    counts = tags.get(_STRIP_BYTES, ())
    bits = max(tags.get(_BITS, (1,))) * (1 if in_planes else samples)
    needed = planes * height * -(-width * bits // 8)
    if 0 < sum(counts) < needed and tags.get(_PHOTOMETRIC) == _YCBCR:
        raise BadImage("YCbCr with fewer samples for colour is read from compressed TIFFs only; store it as RGB")
    if covered < planes * width * height or 0 < sum(counts) < needed:
        raise BadImage("the TIFF is truncated: its strips or tiles hold a part of the image only")


def sixteen_bits(opened: Any, data: bytes) -> tuple[NDArray[np.uint16], str]:
    """All 16 bits of all channels, and the mode of the channels.

    Pillow holds more than 8 bits of one channel only, but it takes the first or the second byte of each sample as it
    is told; so the file is decoded twice. Grey with alpha has two samples of two bytes: four channels of one.
    """
    if opened.mode.startswith("I;16"):
        return with_channels(np.asarray(opened).astype(np.uint16)), "L"
    first = opened.tile[0]
    raw = first.args if isinstance(first.args, str) else first.args[0]
    if raw == "LA;16B":
        high_low = _decoded_as(opened, data, ["RGBA"] * len(opened.tile), "RGBA")
        return high_low.view(">u2").astype(np.uint16), "LA"
    if first.codec_name == "libtiff":
        if opened.tag_v2.get(PLANES) == 2:
            raise BadImage("compressed planes of 16 bits are not read with another range; store the channels together")
        order = ("16B", "16L")  # libtiff hands over the machine's own order, which is this
    else:
        big = raw.endswith("B") or getattr(opened, "tag_v2", None) is not None and opened.tag_v2.prefix == b"MM"
        order = ("16L", "16B") if big else ("16B", "16L")
    names = [(tile.args if isinstance(tile.args, str) else tile.args[0]).partition(";")[0] for tile in opened.tile]
    mode = opened.mode
    if "a" in names[0] or "a" in names:  # colours that are multiplied by alpha: as they are
        mode, names = "RGBa", [name.replace("a", "A") for name in names]
    low, high = (
        _decoded_as(opened, data, [f"{name};{suffix}" for name in names], opened.mode).astype(np.uint16)
        for suffix in order
    )
    return (high << 8 | low).astype(np.uint16), mode


def _decoded_as(opened: Image.Image, data: bytes, names: Sequence[str], mode: str) -> NDArray[np.uint8]:
    again: Any = Image.open(io.BytesIO(data), formats=(str(opened.format),))
    again.tile = [
        tile._replace(args=name if isinstance(tile.args, str) else (name, *tile.args[1:]))
        for tile, name in zip(again.tile, names, strict=True)
    ]
    assert again.mode == mode
    return np.asarray(again)


def with_channels(numbers: NDArray[Any]) -> NDArray[Any]:
    return numbers[..., None] if numbers.ndim == 2 else numbers
