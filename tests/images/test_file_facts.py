"""What of an image file is not used, or not declared, is counted by `leoclr shard` and `leoclr check` alike."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from leoclr.cli.commands.app import main
from leoclr.datasets.images.file_facts import (
    DAMAGED_JPEG,
    FOURTH_CHANNEL,
    FURTHER_CHANNELS,
    FURTHER_IMAGES,
    REDUCED,
    TRANSPARENT,
    UNMARKED_CMYK,
    facts_of,
)

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 4), dtype=np.uint8)
RGB, OTHER = Image.fromarray(PIXELS[..., :3]), Image.fromarray(PIXELS[::-1, :, :3].copy())


def saved(image: Image.Image, format: str, *more: Image.Image, **options: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, format, **options, **({"save_all": True, "append_images": more} if more else {}))
    return data.getvalue()


def tiff(channels: int, extra: list[int], kind: int = 0) -> bytes:
    """RGB of 8 bits, with more channels that ExtraSamples says what they are; `kind` is its NewSubfileType."""
    pixels = np.dstack([PIXELS, PIXELS])[..., :channels].tobytes()
    entries = {256: [5], 257: [6], 258: [8] * channels, 259: [1], 262: [2], 277: [channels], 278: [6]}
    entries |= {273: [8], 279: [len(pixels)]} | ({338: extra} if extra else {})
    entries |= {254: [kind]} if kind else {}
    directory, behind = b"", b""
    for tag, values in sorted(entries.items()):
        value = struct.pack(f"<{len(values)}H", *values)
        if len(value) > 4:
            place = 8 + len(pixels) + 2 + 12 * len(entries) + 4 + len(behind)
            value, behind = struct.pack("<I", place), behind + value
        directory += struct.pack("<HHI", tag, 3, len(values)) + value.ljust(4, b"\0")
    head = b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels
    return head + struct.pack("<H", len(entries)) + directory + bytes(4) + behind


def unmarked(jpeg: bytes) -> bytes:
    """The JPEG without Adobe's marker."""
    start = jpeg.index(b"\xff\xee")
    return jpeg[:start] + jpeg[start + 2 + int.from_bytes(jpeg[start + 2 : start + 4], "big") :]


def interrupted(jpeg: bytes) -> bytes:
    """As a copy leaves it that ended half-way in a file of the full length."""
    return jpeg[: len(jpeg) * 3 // 4] + bytes(len(jpeg) - len(jpeg) * 3 // 4)


LARGE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8))
CLEAR = Image.fromarray(PIXELS * np.array([1, 1, 1, 0], np.uint8))
CMYK = saved(RGB.convert("CMYK"), "JPEG")
FILES = {
    "anim.gif": (saved(RGB.quantize(8), "GIF", OTHER.quantize(8)), FURTHER_IMAGES),
    "anim.png": (saved(RGB, "PNG", OTHER), FURTHER_IMAGES),
    "anim.webp": (saved(RGB, "WEBP", OTHER), FURTHER_IMAGES),
    "anim.avif": (saved(RGB, "AVIF", OTHER), FURTHER_IMAGES),
    "pages.tif": (saved(RGB, "TIFF", OTHER), FURTHER_IMAGES),
    "phone.jpg": (saved(RGB, "MPO", OTHER), None),
    "cmyk.jpg": (CMYK, None),
    "unmarked.jpg": (unmarked(CMYK), UNMARKED_CMYK),
    "alpha.tif": (tiff(4, [2]), None),
    "undeclared.tif": (tiff(4, []), FOURTH_CHANNEL),
    "infrared.tif": (tiff(4, [0]), FURTHER_CHANNELS),
    "two-more.tif": (tiff(5, [2, 0]), FURTHER_CHANNELS),
    "preview.tif": (tiff(3, [], 1), REDUCED),
    "page.tif": (tiff(3, [], 2), None),
    "clear.png": (saved(CLEAR, "PNG"), TRANSPARENT),
    "clear.tif": (saved(CLEAR, "TIFF"), TRANSPARENT),
    "clear.webp": (saved(CLEAR, "WEBP"), TRANSPARENT),
    "clear-grey.png": (saved(CLEAR.convert("LA"), "PNG"), TRANSPARENT),
    "clear-key.png": (saved(Image.new("RGB", (5, 6)), "PNG", transparency=(0, 0, 0)), TRANSPARENT),
    "clear.bmp": (saved(CLEAR, "BMP"), None),
    "half-clear.png": (saved(Image.fromarray(PIXELS), "PNG"), None),
    "half.jpg": (interrupted(saved(LARGE, "JPEG")), DAMAGED_JPEG),
    "half-cmyk.jpg": (interrupted(saved(LARGE.convert("CMYK"), "JPEG")), DAMAGED_JPEG),
    "whole.jpg": (saved(LARGE, "JPEG"), None),
    "longer.jpg": (saved(LARGE, "JPEG") + bytes(100), None),
    "plain.tif": (tiff(3, []), None),
    "plain.png": (saved(RGB, "PNG"), None),
    "still.gif": (saved(RGB.quantize(8), "GIF"), None),
}


@pytest.mark.parametrize("name", FILES)
def test_remarks_of_a_file(name: str) -> None:
    data, remark = FILES[name]
    assert facts_of(data).remarks == ((remark,) if remark else ())


def test_shard_and_check_tell_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    for name, (data, _) in FILES.items():
        (tmp_path / "in" / name).write_bytes(data)
    with pytest.raises(SystemExit, match="0"):
        main(["shard", str(tmp_path / "in"), str(tmp_path / "out")])
    said = capsys.readouterr().err
    with pytest.raises(SystemExit, match="0"):
        main(["check", str(tmp_path / "out"), "--json"])
    warnings = " ".join(warning["what"] for warning in json.loads(capsys.readouterr().out)["warnings"])
    for remark in (FURTHER_IMAGES, FURTHER_CHANNELS, FOURTH_CHANNEL, UNMARKED_CMYK, DAMAGED_JPEG, REDUCED, TRANSPARENT):
        count = sum(found == remark for _, found in FILES.values())
        assert f"warning: {remark}: {count} (" in said and f"{remark}: {count} (" in warnings
