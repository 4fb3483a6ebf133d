"""Sample values of image files: bit depth, sign and polarity.

Pillow converts most files to 8 bits correctly. The others are read here as the numbers in the file, because Pillow
takes the high byte of 16 bits whatever depth is declared, ignores the sign of 8 bits
and "0 is white" of 16, reads planes of 16 bits as planes of 8, and compares colour keys of one depth with colours of
another.

Numbers of a declared depth become 8 bits. Those without a range (signed or 32-bit integers, floating point) need one
from the user, `levels`; else they are refused, because any guess is black, white or wrapped for somebody.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImagePalette
from PIL.TiffImagePlugin import OPEN_INFO

from leoclr.datasets.errors import BadImage
from leoclr.datasets.images.png_chunks import chunks_before_pixels
from leoclr.datasets.images.stored import PLANES, Stored, refuse_missing_pixels, sixteen_bits, with_channels

Levels = tuple[float, float]
"""The numbers that become black and white in images of more than 8 bits a sample."""

# Tags of TIFF.
_BITS, _PHOTOMETRIC, _FILL_ORDER, _MOST, _COLOUR_MAP, _INK_SET, _FORMAT = 258, 262, 266, 281, 320, 332, 339
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK = 0, 1, 2, 3, 5
for _key, _modes in {  # kinds of TIFF that Pillow unpacks, but in one order of bytes or with black as 0 alone
    (b"MM", 0, (1,), 1, (16,), ()): ("I;16B", "I;16B"),
    (b"MM", 1, (1,), 1, (12,), ()): ("I;16", "I;12"),
    (b"MM", 0, (1,), 1, (12,), ()): ("I;16", "I;12"),
    (b"II", 0, (1,), 1, (12,), ()): ("I;16", "I;12"),
}.items():
    OPEN_INFO.setdefault(_key, _modes)
_COLOURS = {"L": 1, "LA": 1, "RGB": 3, "RGBA": 3, "RGBa": 3, "CMYK": 4}


def stored(opened: Image.Image, data: bytes, levels: Levels | None) -> Stored | None:
    """The numbers of an opened file where Pillow's reading to 8 bits would not be what they mean, else None."""
    if opened.format == "TIFF":
        return _tiff(opened, data, levels)
    if opened.format == "PNG":
        return _png(opened, data, levels)
    if opened.format == "PPM":
        return _ppm(opened, data, levels)
    return None


def has_levels(opened: Image.Image, data: bytes) -> bool:
    """Whether there are more than 8 bits a sample, or a sign: whether `levels` would be looked at."""
    if opened.format == "PNG":
        return data[24] == 16
    if opened.format == "TIFF":
        tags: Any = opened.tag_v2  # type: ignore[attr-defined]
        return bool(max(tags.get(_BITS, (1,))) > 8 or max(tags.get(_FORMAT, (_UNSIGNED,))) != _UNSIGNED)
    return opened.mode in ("I", "F") or (opened.format == "PPM" and _most(opened) > 255)


def eight_bits(image: Stored, levels: Levels | None) -> Image.Image:
    """The image with 8 bits a channel. Raises BadImage where its numbers have no range and `levels` give none."""
    numbers = image.numbers
    colours = _COLOURS[image.mode]
    if levels is not None and image.deep:
        scaled = _between(numbers, levels)
        if image.depth is not None and numbers.shape[2] > colours:
            scaled[..., colours:] = _scaled(numbers, image.depth)[..., colours:]
    elif image.depth is None:
        raise BadImage(
            f"{image.what} have no defined range; convert them to 8 bits, or say which numbers are black and white: "
            "leoclr shard --levels LOW:HIGH"
        )
    else:
        scaled = _scaled(numbers, image.depth)
    if image.white_is_zero:
        scaled[..., :colours] = 255 - scaled[..., :colours]
    height, width, channels = scaled.shape
    if (image.mode, channels) == ("CMYK", 4):
        return Image.frombytes("CMYK", (width, height), scaled.tobytes())
    converted = Image.frombytes(image.mode, (width, height), scaled.tobytes())
    return converted.convert("RGBA") if image.mode == "RGBa" else converted


def _between(numbers: NDArray[Any], levels: Levels) -> NDArray[np.uint8]:
    low, high = levels
    share = (np.nan_to_num(numbers.astype(np.float64), nan=low) - low) / (high - low)
    scaled: NDArray[np.uint8] = np.rint(share.clip(0, 1) * 255).astype(np.uint8)
    return scaled


def _scaled(numbers: NDArray[Any], depth: int | tuple[int, ...]) -> NDArray[np.uint8]:
    """The upper 8 bits of `depth`, as Pillow takes them of 16; of fewer than 8 bits the nearest of 255."""
    if isinstance(depth, tuple):
        channels = [_scaled(numbers[..., number], bits) for number, bits in enumerate(depth)]
        return np.stack(channels, axis=-1)
    if depth >= 8:
        upper: NDArray[np.uint8] = (numbers >> (depth - 8)).astype(np.uint8)
        return upper
    nearest: NDArray[np.uint8] = np.rint(numbers * (255 / ((1 << depth) - 1))).astype(np.uint8)
    return nearest


# TIFF


def _tiff(opened: Any, data: bytes, levels: Levels | None) -> Stored | None:
    tags = opened.tag_v2
    if opened.tile[0].codec_name == "raw":
        refuse_missing_pixels(opened)
    in_planes = tags.get(PLANES) == 2 and opened.tile[0].codec_name == "raw"
    if in_planes:
        _mend_single_plane(opened)
    bits, kind = max(tags.get(_BITS, (1,))), max(tags.get(_FORMAT, (_UNSIGNED,)))
    photometric = tags.get(_PHOTOMETRIC, _WHITE_IS_ZERO)
    if photometric == _CMYK and tags.get(_INK_SET, 1) != 1:
        raise BadImage("the TIFF's inks are not declared as cyan, magenta, yellow and black (InkSet); store it as RGB")
    if photometric == _PALETTE:
        _mend_palette(opened, bits)
    if kind != _UNSIGNED or bits > 16:
        return _without_range(opened, bits, kind, photometric == _WHITE_IS_ZERO)
    if bits < 8 or photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _CMYK):
        return None
    declared = _declared(tags.get(_MOST, ()), bits)
    planes_of_16 = bits > 8 and in_planes
    grey_of_16 = opened.mode.startswith("I;16")
    if declared == bits and not planes_of_16 and not grey_of_16 and (levels is None or bits == 8):
        return None
    inverted = photometric == _WHITE_IS_ZERO
    if bits > 8:
        numbers, mode = sixteen_bits(opened, data)
    elif opened.mode in ("L", "LA", "RGB", "RGBA", "CMYK"):
        numbers, mode = with_channels(np.asarray(opened)), opened.mode
        numbers = 255 - numbers if inverted else numbers  # which Pillow did already
    else:
        return None
    fits = [not (numbers[..., channel].max(initial=0) >> declared) for channel in range(numbers.shape[2])]
    in_use = declared if all(fits[: _COLOURS[mode]]) else bits  # else what is declared is not true
    depth = tuple(in_use if fit else bits for fit in fits)
    return Stored(numbers, mode, depth, deep=bits > 8, white_is_zero=inverted)


def _mend_single_plane(opened: Any) -> None:
    """Of each plane Pillow reads only the first letter of how samples are packed: "L" of "L;4", "I" of "I;16"."""
    tags = opened.tag_v2
    order = tags.get(_FILL_ORDER, 1)
    if len(opened.getbands()) > 1:
        if order != 1:
            raise BadImage("planes whose bits are in reverse order are not read; store the channels together")
        return
    key = (tags.prefix, tags.get(_PHOTOMETRIC, 0), tags.get(_FORMAT, (1,)), order, tags.get(_BITS, (1,)), ())
    name = OPEN_INFO[key][1]
    opened.tile = [tile._replace(args=(name, *tile.args[1:])) for tile in opened.tile]


def _mend_palette(opened: Any, bits: int) -> None:
    """Older writers put 8 bits into the colour map, which has 16: no value is above 255, and Pillow shows black."""
    colours = opened.tag_v2.get(_COLOUR_MAP, ())
    if len(colours) != 3 << bits:
        raise BadImage(f"the TIFF's palette has {len(colours)} values; {bits} bits need {3 << bits}")
    if max(colours) < 256:
        opened.palette = ImagePalette.raw("RGB;L", bytes(colours))


def _declared(most: Sequence[Any], bits: int) -> int:
    """Bits in use by MaxSampleValue. Only 2^n - 1 is a depth; TIFF 6.0 has all others for statistics alone."""
    values = {int(value) for value in most} if isinstance(most, tuple) else set()
    if len(values) == 1 and (depth := (value := values.pop()).bit_length()) <= bits and value == (1 << depth) - 1:
        return max(depth, 1)
    return bits


def _without_range(opened: Image.Image, bits: int, kind: int, white_is_zero: bool) -> Stored:
    """Floating point and integers with a sign or of 32 bits."""
    numbers = np.asarray(opened)
    what = "floating-point samples" if kind == _FLOAT else f"{bits}-bit integers"
    if kind == _SIGNED:
        what = f"signed {what}"
        numbers = numbers.view(np.int8) if bits == 8 else numbers
    elif kind == _UNSIGNED and numbers.dtype == np.int32:
        numbers = numbers.view(np.uint32)
    if numbers.ndim != 2:
        raise BadImage(f"{what} are read from images of one channel only")
    return Stored(with_channels(numbers), "L", None, what, white_is_zero=white_is_zero)


# PNG


def _png(opened: Image.Image, data: bytes, levels: Levels | None) -> Stored | None:
    depth, colour = data[24], data[25]
    if colour == 3:  # a palette of 8 bits
        return None
    chunks = chunks_before_pixels(data)
    key = _colour_key(chunks.get(b"tRNS", b""), depth, colour)
    if key is not None and colour == 0 and depth <= 8:
        opened.info["transparency"] = key[0] * 255 // ((1 << depth) - 1)  # Pillow scales grey, but not its key
    in_use = tuple(chunks.get(b"sBIT", b""))
    declares = bool(in_use) and all(0 < bits <= depth for bits in in_use) and min(in_use) < depth
    plain = depth == 8 or (colour != 0 and key is None and levels is None)
    if depth < 8 or (plain and not declares):
        return None
    numbers, mode = sixteen_bits(opened, data) if depth == 16 else (with_channels(np.asarray(opened)), opened.mode)
    bits_in_use = (depth,) * numbers.shape[2]
    if declares and len(in_use) == len(bits_in_use) and not _scaled_up(numbers, in_use, depth):
        bits_in_use = in_use
    if key is not None:
        solid = (numbers != np.array(key, numbers.dtype)).any(axis=2)
        alpha = np.where(solid, (1 << depth) - 1, 0).astype(numbers.dtype)
        numbers, mode, bits_in_use = np.dstack([numbers, alpha]), mode + "A", (*bits_in_use, depth)
    return Stored(numbers, mode, bits_in_use, deep=depth > 8)


def _colour_key(body: bytes, depth: int, colour: int) -> tuple[int, ...] | None:
    """The one colour that is transparent, of grey or RGB, in the bits of the file."""
    count = {0: 1, 2: 3}.get(colour, 0)
    if not count or len(body) < 2 * count:
        return None
    return tuple(value & ((1 << depth) - 1) for value in struct.unpack_from(f">{count}H", body))


def _scaled_up(numbers: NDArray[Any], in_use: Sequence[int], depth: int) -> bool:
    """Whether samples of fewer bits were scaled up to the depth of the file, as PNG asks for.

    Many writers set sBIT and leave the samples as they were. Those are all within the lower bits, and (unless they are
    all zero) are not what any of the usual ways of scaling up gives.
    """
    for number, bits in enumerate(in_use):
        channel = numbers[..., number].astype(np.int64)
        if (channel >> bits).any():
            return True
    for number, bits in enumerate(in_use):
        channel = numbers[..., number].astype(np.int64)
        top = channel >> (depth - bits)
        repeated = top << (depth - bits)
        for shift in range(bits, depth, bits):
            repeated |= (top << (depth - bits)) >> shift
        even = np.rint(top * (((1 << depth) - 1) / ((1 << bits) - 1)))
        ways = (top << (depth - bits), repeated, even)
        if not any((channel == way).all() for way in ways):
            return False
    return True


# PGM, PPM and PFM


def _ppm(opened: Any, data: bytes, levels: Levels | None) -> Stored | None:
    """More than 8 bits, which Pillow scales from the file's maximum to 16 bits of grey or 8 of colour; `levels` mean
    the file's numbers. Floating point has no range."""
    if opened.mode == "F":
        return Stored(with_channels(np.asarray(opened)), "L", None, "floating-point samples")
    codec, offset, most = opened.tile[0].codec_name, opened.tile[0].offset, _most(opened)
    if opened.mode == "I":
        numbers = with_channels(np.asarray(opened).clip(0, 65535))
        if levels is not None and codec != "raw":
            numbers = np.rint(numbers * (most / 65535))
        return Stored(numbers, "L", 16)
    if levels is None or most <= 255:
        return None
    if codec != "ppm":
        raise BadImage("colours of more than 8 bits in text are not read with another range; store them in binary")
    width, height = opened.size
    return Stored(np.frombuffer(data, ">u2", 3 * width * height, offset).reshape(height, width, 3), "RGB", 16)


def _most(opened: Any) -> int:
    """The maximum that the file declares, where it is not that of 8 or 16 bits."""
    arguments = opened.tile[0].args
    return arguments[-1] if isinstance(arguments, tuple) and isinstance(arguments[-1], int) else 255
