"""Whatever bytes come: RGB pixels or a refusal, within bounds of memory, and without running anything."""

from __future__ import annotations

import io
import re
import struct
import subprocess
import sys
import time
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from leoclr.datasets.errors import BadImage
from leoclr.datasets.images.decode import FORMATS, MAX_BYTES, decode_image, decode_pixels
from leoclr.datasets.images.file_facts import facts_of


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, format, **options)
    return data.getvalue()


def noise(width: int, height: int, channels: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def pixels(data: bytes) -> NDArray[np.uint8]:
    image = decode_image(data)
    assert image.mode == "RGB"
    return np.asarray(image)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *chunks: bytes) -> bytes:
    """A PNG by hand, for what Pillow does not write. Colour: 0 grey, 2 RGB, 3 palette, 4 grey and alpha."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def png_bomb(side: int) -> bytes:
    """One bit a pixel, all nought: zlib makes a thousandth of it, and RGB 24 times as much."""
    compressor = zlib.compressobj(9)
    row = bytes(1 + side // 8)
    return png(side, side, 1, 0, b"".join(compressor.compress(row) for _ in range(side)) + compressor.flush())


def huge_jpeg(side: int) -> bytes:
    """A JPEG whose header says `side` x `side`."""
    data = bytearray(saved(Image.new("RGB", (16, 16)), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", side, side)
    return bytes(data)


LIMITED = """
import resource, sys
from leoclr.datasets.images.decode import decode_image
from leoclr.datasets.errors import BadImage
from PIL import Image
Image.init()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    decode_image(sys.stdin.buffer.read())
except BadImage as error:
    print(error)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
assert grown < 20_000, f"{grown} KiB"
"""


@pytest.mark.parametrize("bomb", [lambda: png_bomb(40_000), lambda: huge_jpeg(65_500), lambda: png_bomb(8_200)])
def test_a_bomb_is_refused_before_its_pixels_take_memory(bomb: Callable[[], bytes]) -> None:
    data = bomb()
    assert len(data) < 250_000
    done = subprocess.run([sys.executable, "-c", LIMITED], input=data, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    assert b"pixels" in done.stdout and b"the limit" in done.stdout
    assert not done.stderr


def test_too_many_bytes_are_refused() -> None:
    class Long(bytes):
        def __len__(self) -> int:
            return MAX_BYTES + 1

    with pytest.raises(BadImage, match=r"268,435,457 bytes; the limit is 268,435,456"):
        decode_image(Long())


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_extreme_shapes(size: tuple[int, int]) -> None:
    picture = noise(*size)
    np.testing.assert_array_equal(pixels(saved(Image.fromarray(picture), "PNG")), picture)


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_lossless_formats_come_out_as_they_went_in(format: str) -> None:
    picture = noise(7, 5)
    options = {"lossless": True} if format == "WEBP" else {}
    np.testing.assert_array_equal(pixels(saved(Image.fromarray(picture), format, **options)), picture)


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "MPO", "AVIF"])
def test_lossy_formats_come_out_nearly_so(format: str) -> None:
    picture = np.full((16, 24, 3), (200, 100, 50), np.uint8)
    np.testing.assert_allclose(pixels(saved(Image.fromarray(picture), format)), picture, atol=6)


def test_grey_in_every_depth() -> None:
    grey = noise(9, 4, 1)[..., 0]
    expected = np.repeat(grey[..., None], 3, axis=2)
    np.testing.assert_array_equal(pixels(saved(Image.fromarray(grey), "PNG")), expected)

    bits = grey > 127
    np.testing.assert_array_equal(pixels(saved(Image.fromarray(bits), "PNG")), np.where(expected > 127, 255, 0))

    # 16 bits: Pillow's own conversion would make everything above 255 white.
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    for format in ("PNG", "TIFF"):
        np.testing.assert_array_equal(pixels(saved(deep, format)), expected)
    big_endian = Image.frombytes("I;16B", (9, 4), (grey.astype(">u2") * 257).astype(">u2").tobytes())
    np.testing.assert_array_equal(pixels(saved(big_endian, "TIFF")), expected)


def test_sixteen_bits_a_channel() -> None:
    levels = (noise(3, 2).astype(">u2") * 257).astype(">u2")
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in levels))
    np.testing.assert_array_equal(pixels(png(3, 2, 16, 2, rows)), noise(3, 2))


def test_cmyk() -> None:
    data = saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
    np.testing.assert_allclose(pixels(data)[8, 8], (255, 0, 0), atol=8)


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP"])
def test_much_text_in_a_png_does_not_concern_its_pixels(kind: bytes) -> None:
    """Pillow refuses more than 1 MiB, which programs that keep their whole state in a PNG exceed."""
    picture = noise(7, 5)
    plain = saved(Image.fromarray(picture), "PNG")
    text = chunk(kind, b"name\0\0" + zlib.compress(bytes(1 << 22)))
    for place in (33, len(plain) - 12):  # behind the header, before the end
        data = plain[:place] + text + plain[place:]
        np.testing.assert_array_equal(pixels(data), picture)
        np.testing.assert_array_equal(decode_pixels(data), picture)
        assert facts_of(data).format == "PNG"


def test_damage_is_told_in_words() -> None:
    picture = Image.fromarray(noise(16, 16))
    tiff = bytearray(saved(picture, "TIFF", compression="tiff_adobe_deflate"))
    tiff[20:40] = bytes(20)
    for data in (bytes(tiff), saved(picture, "WEBP", lossless=True)[:-30]):
        with pytest.raises(BadImage, match="its compressed data are damaged or truncated"):
            decode_image(data)


def bitmap(picture: NDArray[np.uint8]) -> bytes:
    """A BMP of 32 bits whose header declares the fourth byte as alpha."""
    height, width, _ = picture.shape
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    head = struct.pack("<IiiHHIIiiII4I", 108, width, height, 1, 32, 3, picture.size, 0, 0, 0, 0, *masks).ljust(
        108, b"\0"
    )
    data = picture[::-1, :, [2, 1, 0, 3]].tobytes()
    return b"BM" + struct.pack("<IHHI", 122 + len(data), 0, 0, 122) + head + data


def test_a_bitmap_whose_alpha_is_zero_everywhere_is_opaque() -> None:
    picture = noise(7, 5, 4)
    picture[..., 3] = 0
    np.testing.assert_array_equal(pixels(bitmap(picture)), picture[..., :3])
    picture[0, 0, 3] = 255
    expected = np.full((5, 7, 3), 255, np.uint8)
    expected[0, 0] = picture[0, 0, :3]
    np.testing.assert_array_equal(pixels(bitmap(picture)), expected)


def test_transparency_is_laid_on_white() -> None:
    half_red = Image.new("RGBA", (2, 2), (255, 0, 0, 128))
    np.testing.assert_array_equal(pixels(saved(half_red, "PNG"))[0, 0], (255, 127, 127))
    np.testing.assert_array_equal(pixels(saved(Image.new("LA", (2, 2), (10, 0)), "PNG"))[0, 0], (255, 255, 255))

    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    for options in ({"transparency": 0}, {"transparency": b"\x00\xff"}):
        np.testing.assert_array_equal(pixels(saved(palette, "PNG", **options)), [[(255, 255, 255), (200, 100, 50)]])
    np.testing.assert_array_equal(pixels(saved(palette, "PNG")), [[(10, 20, 30), (200, 100, 50)]])
    np.testing.assert_array_equal(pixels(saved(palette, "GIF", transparency=1)), [[(10, 20, 30), (255, 255, 255)]])
    colour_key = Image.new("RGB", (2, 1), (1, 2, 3))
    colour_key.putpixel((1, 0), (9, 9, 9))
    np.testing.assert_array_equal(
        pixels(saved(colour_key, "PNG", transparency=(1, 2, 3))), [[(255, 255, 255), (9, 9, 9)]]
    )


def test_floating_point_is_refused() -> None:
    data = saved(Image.fromarray(np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)), "TIFF")
    with pytest.raises(BadImage, match="floating-point"):
        decode_image(data)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken(format: str) -> None:
    first, second = Image.new("RGB", (6, 4), (250, 10, 10)), Image.new("RGB", (6, 4), (10, 10, 250))
    data = saved(first, format, save_all=True, append_images=[second])
    with Image.open(io.BytesIO(data)) as image:
        assert getattr(image, "n_frames", 1) == 2
    np.testing.assert_allclose(pixels(data), np.asarray(first), atol=8)


TURNS: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: stored.swapaxes(0, 1)[:, ::-1],
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: stored.swapaxes(0, 1)[::-1],
    0: lambda stored: stored,  # not an orientation
    9: lambda stored: stored,
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_exif_orientation_is_applied_once(format: str, orientation: int) -> None:
    stored = np.kron(noise(4, 3), np.ones((16, 16, 1), np.uint8)) // 2 + 60
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, dict[str, Any]] = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95, "subsampling": 0}}
    data = saved(Image.fromarray(stored), format, exif=exif, **options.get(format, {}))
    upright = TURNS[orientation](stored)
    decoded = pixels(data)
    assert decoded.shape == upright.shape
    assert np.abs(decoded.astype(int) - upright).mean() < (5 if format == "JPEG" else 1e-9)


def test_an_odd_tag_beside_the_orientation_does_not_cost_the_image() -> None:
    """A resolution that is a letter: Pillow reads it and cannot write it again."""
    tags = ((0x0112, 3, 1, 6), (0x011A, 2, 1, ord("A")))
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    assert pixels(saved(Image.fromarray(noise(8, 4)), "JPEG", exif=exif)).shape == (8, 4, 3)


def test_damaged_metadata_do_not_cost_the_image_nor_a_warning() -> None:
    picture = noise(8, 8)
    image = Image.fromarray(picture)
    assert pixels(saved(image, "JPEG", exif=b"Exif\0\0garbage")).shape == (8, 8, 3)
    np.testing.assert_array_equal(pixels(saved(image, "PNG", exif=b"Exif\0\0garbage")), picture)

    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in picture))
    no_frames = png(8, 8, 8, 2, rows, chunk(b"acTL", struct.pack(">II", 0, 0)))
    with pytest.warns(UserWarning, match="Invalid APNG"):
        Image.open(io.BytesIO(no_frames)).close()
    np.testing.assert_array_equal(pixels(no_frames), picture)  # pytest turns warnings into errors


def test_threads_may_decode_and_keep_their_own_warnings() -> None:
    picture = noise(8, 8)
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in picture))
    odd = png(8, 8, 8, 2, rows, chunk(b"acTL", struct.pack(">II", 0, 0)))
    with ThreadPoolExecutor(4) as pool:
        decoded = list(pool.map(pixels, [odd] * 200))
    assert all((one == picture).all() for one in decoded)
    with pytest.warns(UserWarning, match="ours"):  # only Pillow's are ignored
        warnings.warn("ours", stacklevel=1)


NOT_IMAGES = {
    b"": "the file is empty",
    b"not an image": "or other known image)",
    b"<!DOCTYPE html><html><body>404</body></html>": "but HTML or XML: was an error page saved?",
    b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>': "but HTML or XML",
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n": "but PostScript",
    b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\n": "but a PDF document",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n": "a pointer of Git LFS: `git lfs pull`",
    bytes(5000): "but zero bytes alone: was a copy or download interrupted?",
    b"\0\0\0\x18ftypheic" + bytes(99): "but HEIF (HEIC): convert it to JPEG or PNG",
    bytes(128) + b"DICM" + bytes(99): "but DICOM: store its pixels as PNG or TIFF of 16 bits",
    b"\x93NUMPY\x01\0" + bytes(99): "but an array of NumPy",
    b"II+\0" + bytes(99): "a damaged TIFF, or of a kind that is not read",
    saved(Image.new("RGB", (8, 8)), "JPEG2000"): "but JPEG 2000",
    saved(Image.new("RGB", (16, 16)), "ICO"): "but a Windows icon",
    b"\xff\xd8\xff\xe0\x00\x10JFIF": "",
    b"\x89PNG\r\n\x1a\n": "",
}


@pytest.mark.parametrize(("data", "reason"), NOT_IMAGES.items(), ids=lambda value: "")
def test_what_is_no_image_of_the_known_formats_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(BadImage, match=f"cannot be decoded .*{re.escape(reason)}"):
        decode_image(data)


def test_nothing_is_run_and_nothing_is_unpickled() -> None:
    """In a process of its own, because an audit hook cannot be taken out again."""
    script = """
import sys
from leoclr.datasets.images.decode import decode_image
from leoclr.datasets.errors import BadImage
from PIL import Image
Image.init()
refused = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect"}
refused |= {"pickle.find_class"}
def hook(event, arguments):
    if event in refused or event.startswith("os.spawn"):
        print(event, arguments)
sys.addaudithook(hook)
for line in sys.stdin:
    try:
        decode_image(bytes.fromhex(line))
    except BadImage:
        print("refused")
"""
    lines = "\n".join(data.hex() for data in NOT_IMAGES)
    done = subprocess.run([sys.executable, "-c", script], input=lines, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["refused"] * len(NOT_IMAGES), done.stdout + done.stderr


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_a_truncated_image_is_refused(format: str) -> None:
    data = saved(Image.fromarray(noise(40, 40)), format)
    for part in (0.3, 0.7, 0.95):
        with pytest.raises(BadImage):
            decode_image(data[: int(len(data) * part)])


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF", "PPM"])
def test_flipped_bytes_give_an_image_or_a_refusal_and_nothing_else(format: str) -> None:
    good = saved(Image.fromarray(noise(24, 24)), format)
    generator = np.random.default_rng(7)
    for _ in range(60):
        data = bytearray(good)
        for place in generator.integers(0, len(data), 4):
            data[place] = generator.integers(256)
        try:
            assert decode_image(bytes(data)).mode == "RGB"
        except BadImage:
            pass


def test_the_care_costs_little() -> None:
    """Beside Pillow alone: tens of microseconds; an ImageNet picture takes thousands."""
    data = saved(Image.fromarray(noise(16, 16)), "JPEG")

    def bare() -> None:
        Image.open(io.BytesIO(data), formats=FORMATS).load()

    def seconds(decode: Callable[[], object]) -> float:
        start = time.process_time()
        for _ in range(50):
            decode()
        return (time.process_time() - start) / 50

    decode_image(data)
    rounds = [(seconds(lambda: decode_image(data)), seconds(bare)) for _ in range(20)]
    careful, plain = (min(column) for column in zip(*rounds, strict=True))
    assert careful - plain < 100e-6  # about 15 on an idle machine
