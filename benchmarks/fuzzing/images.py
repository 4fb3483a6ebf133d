"""PNG, TIFF, JPEG and other images."""

from __future__ import annotations

import io
import struct
import zlib
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.fuzzing.target import Target, refusable
from leoclr.datasets.images.decode import decode_image, decode_pixels, depends_on_levels, image_size
from leoclr.datasets.images.file_facts import facts_of
from leoclr.datasets.images.file_names import IMAGE_SUFFIXES
from leoclr.datasets.packing.encoding import Encoding

_FEW_PIXELS = 1 << 20  # larger images are decoded as smaller ones are, but slowly


def _try_image(data: bytes, folder: Path) -> None:
    data = _sealed_png(data)
    width, height = image_size(data)
    if width * height > _FEW_PIXELS:
        return
    image = decode_image(data)
    assert image.mode == "RGB"
    pixels = decode_pixels(data, lambda width, height: 1.0)
    assert pixels.shape == (image.height, image.width, 3)
    reduced = decode_pixels(data, lambda width, height: 8.0)
    assert reduced.ndim == 3 and all(side <= whole for side, whole in zip(reduced.shape, pixels.shape, strict=True))
    facts_of(data)
    levels = (0.0, 1000.0) if depends_on_levels(data) else None
    for encoding in (Encoding(levels=levels), Encoding(shortest_side=3, levels=levels), Encoding(format="jpg")):
        stored, suffix, _ = encoding.apply(data, "png")
        assert suffix in IMAGE_SUFFIXES and decode_image(stored).mode == "RGB"


def _sealed_png(data: bytes) -> bytes:
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    sealed, place = bytearray(data), 8
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        end = place + 8 + length
        if end + 4 > len(data):
            break
        sealed[end : end + 4] = struct.pack(">I", zlib.crc32(data[place + 4 : end]))
        place = end + 4
    return bytes(sealed)


def _saved(image: Image.Image, format: str, **options: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, format, **options)
    return data.getvalue()


def _pictures(modes: str) -> list[Image.Image]:
    ramp = np.arange(9 * 7 * 4, dtype=np.uint8).reshape(7, 9, 4)
    colours = Image.fromarray(ramp[..., :3].copy())
    images = [colours if mode == "RGB" else colours.convert(mode) for mode in modes.split()]
    return images


def _png_seeds() -> list[bytes]:
    wide = Image.fromarray(np.arange(63, dtype=np.uint16).reshape(7, 9) * 1000)
    plain = [_saved(image, "PNG") for image in (*_pictures("1 L LA P RGB RGBA"), wide)]
    keyed = _saved(_pictures("L")[0], "PNG", transparency=3)
    bits = [
        data[:33] + _chunk(b"sBIT", b"\x05" * count) + data[33:]
        for data, count in zip(plain[4:], (3, 4, 1), strict=True)
    ]
    frames = _saved(_pictures("RGB")[0], "PNG", save_all=True, append_images=_pictures("L"))
    return [*plain, keyed, *bits, frames]


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _jpeg_seeds() -> list[bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    grey, colours, inks = _pictures("L RGB CMYK")
    return [
        _saved(grey, "JPEG"),
        _saved(colours, "JPEG", exif=exif.tobytes()),
        _saved(colours, "JPEG", progressive=True, restart_marker_blocks=1),
        _saved(colours, "JPEG", subsampling=0, quality=95, optimize=True),
        _saved(inks, "JPEG"),
        _saved(colours, "MPO", save_all=True, append_images=[grey.convert("RGB")]),
    ]


def _tiff_seeds() -> list[bytes]:
    wide = Image.fromarray(np.arange(63, dtype=np.uint16).reshape(7, 9) * 1000)
    whole, real = wide.convert("I"), wide.convert("F")
    images = (*_pictures("1 L LA P RGB RGBA CMYK YCbCr LAB"), wide, whole, real)
    kinds = (None, "tiff_lzw", "tiff_adobe_deflate", "packbits")
    seeds = [_saved(image, "TIFF", compression=kind) for image in images for kind in kinds]
    for photometric, bits, most in product((0, 1), (8, 12, 16), (None, 4095)):
        seeds.append(_grey_tiff(photometric, bits, most))
    return seeds


def _grey_tiff(photometric: int, bits: int, most: int | None) -> bytes:
    pixels = np.arange(256, dtype=np.uint16).astype("<u2" if bits == 16 else "u1").tobytes()[: 16 * 16 * bits // 8]
    pixels = pixels.ljust(16 * 16 * bits // 8, b"\x55")
    entries = {256: 16, 257: 16, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 16, 279: len(pixels)}
    entries |= {} if most is None else {281: most}
    body = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in sorted(entries.items()))
    head = b"II*\0" + struct.pack("<I", 8 + len(pixels))
    return head + pixels + struct.pack("<H", len(entries)) + body + b"\0\0\0\0"


def _image_seeds() -> list[bytes]:
    others = [_saved(_pictures("RGB")[0], format) for format in ("BMP", "GIF", "WEBP", "PPM")]
    plain = b"P2 3 2 999\n1 2 3\n4 500 6\n", b"Pf\n2 1\n-1.0\n" + bytes(8)
    return [*_png_seeds(), *_jpeg_seeds(), *_tiff_seeds(), *others, *plain]


IMAGES = Target(refusable(_try_image), _image_seeds, 4096)
