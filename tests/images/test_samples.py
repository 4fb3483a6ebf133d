"""Pixels are what the file says: depth, sign, photometric meaning, alpha, colour key and the order of planes.

The files are written here number by number, and what they should look like is computed from the same numbers.
"""

from __future__ import annotations

import io
import itertools
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from leoclr.datasets.errors import BadImage
from leoclr.datasets.images.decode import decode_image, decode_pixels, depends_on_levels

HEIGHT, WIDTH = 6, 5
Numbers = NDArray[np.int64]
SHORT, LONG = "H", "I"


def tiff(
    numbers: Numbers,
    bits: int,
    tags: dict[int, list[int]],
    *,
    order: str = "<",
    planes: bool = False,
    deflate: bool = False,
    kind: str = "u",
) -> bytes:
    """A TIFF of `(height, width, channels)` numbers in one strip, or one for each plane."""
    height, width, channels = numbers.shape
    parts = [numbers[..., channel] for channel in range(channels)] if planes else [numbers]
    strips = [packed(part.reshape(height, -1), bits, order, kind) for part in parts]
    strips = [zlib.compress(strip) for strip in strips] if deflate else strips
    offsets = [8 + sum(len(strip) for strip in strips[:number]) for number in range(len(strips))]
    body = b"".join(strips)
    body += bytes(len(body) % 2)
    entries = {256: [width], 257: [height], 258: [bits] * channels, 259: [8 if deflate else 1], 277: [channels]}
    entries |= {273: offsets, 278: [height], 279: [len(strip) for strip in strips], 284: [2 if planes else 1]} | tags
    behind = 8 + len(body) + 2 + 12 * len(entries) + 4
    directory, extra = b"", b""
    for tag, values in sorted(entries.items()):
        form = LONG if tag in (256, 257, 273, 278, 279) else SHORT
        value = struct.pack(f"{order}{len(values)}{form}", *values)
        if len(value) > 4:
            value, extra = struct.pack(f"{order}I", behind + len(extra)), extra + value
        directory += struct.pack(f"{order}HHI", tag, 4 if form == LONG else 3, len(values)) + value.ljust(4, b"\0")
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(body))
    return start + body + struct.pack(f"{order}H", len(entries)) + directory + bytes(4) + extra


def packed(rows: Numbers, bits: int, order: str, kind: str) -> bytes:
    if bits % 8 == 0:
        return rows.astype(f"{order}{kind}{bits // 8}").tobytes()
    places = (rows[..., None] >> np.arange(bits)[::-1]) & 1  # the highest bit first, rows from whole bytes on
    return np.packbits(places.reshape(len(rows), -1).astype(np.uint8), axis=1).tobytes()


def png(numbers: Numbers, depth: int, colour: int, *chunks: tuple[bytes, bytes]) -> bytes:
    height, width, _ = numbers.shape
    rows = [packed(row.reshape(1, -1), depth, ">", "u") for row in numbers]
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in ((b"IHDR", head), *chunks, (b"IDAT", pixels), (b"IEND", b""))
    )


def pgm(numbers: Numbers, most: int) -> bytes:
    magic = b"P5" if numbers.shape[2] == 1 else b"P6"
    data = numbers.astype(">u2" if most > 255 else "u1").tobytes()
    return magic + f" {numbers.shape[1]} {numbers.shape[0]} {most}\n".encode() + data


def drawn(depth: int, channels: int, seed: int = 0) -> Numbers:
    """Numbers of all sizes, both ends among them."""
    numbers = np.random.default_rng(seed).integers(0, 1 << depth, (HEIGHT, WIDTH, channels))
    numbers[0, 0], numbers[0, 1] = 0, (1 << depth) - 1
    return numbers


def shown(shares: NDArray[np.float64], alpha: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """From shares of white to RGB of 0 to 255, what is transparent on white."""
    rgb = np.broadcast_to(shares, (*shares.shape[:2], 3)) * 255
    return rgb if alpha is None else rgb * alpha + 255 * (1 - alpha)


def assert_shows(data: bytes, expected: NDArray[np.float64], within: float = 1.0) -> None:
    """Every way to decode shows what is expected, but for rounding."""
    by_pillow = np.asarray(decode_image(data))
    np.testing.assert_array_equal(decode_pixels(data), by_pillow)
    np.testing.assert_array_equal(decode_pixels(data, lambda width, height: 1.0), by_pillow)
    np.testing.assert_allclose(by_pillow.astype(float), expected, atol=within)


LAYOUTS = [
    {"order": order, "planes": planes, "deflate": deflate}
    for order, planes, deflate in itertools.product("<>", (False, True), (False, True))
]
DECLARED = [(1, 1), (2, 2), (4, 4), (8, 8), (12, 12), (16, 16), (16, 15), (16, 14), (16, 12), (16, 10), (8, 6)]
"""Bits a sample, and bits in use."""


def most(depth: int, channels: int, bits: int) -> dict[int, list[int]]:
    return {} if depth == bits else {281: [(1 << depth) - 1] * channels}


@pytest.mark.parametrize("white_is_zero", [False, True])
@pytest.mark.parametrize(("bits", "depth"), DECLARED)
def test_grey_tiff(bits: int, depth: int, white_is_zero: bool) -> None:
    numbers = drawn(depth, 1)
    shares = numbers / ((1 << depth) - 1)
    for layout in LAYOUTS:
        tags = {262: [0 if white_is_zero else 1]} | most(depth, 1, bits)
        data = tiff(numbers, bits, tags, **layout)  # type: ignore[arg-type]
        assert_shows(data, shown(1 - shares if white_is_zero else shares))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(("bits", "depth"), [(8, 8), (16, 16), (16, 12), (16, 10), (8, 6)])
@pytest.mark.parametrize("channels", [3, 4])
def test_colour_tiff(bits: int, depth: int, channels: int, layout: dict[str, object]) -> None:
    numbers = drawn(depth, channels)
    alpha = {338: [2]} if channels == 4 else {}
    data = tiff(numbers, bits, {262: [2]} | alpha | most(depth, channels, bits), **layout)  # type: ignore[arg-type]
    shares = numbers / ((1 << depth) - 1)
    if bits == 16 and depth < 16 and layout["planes"] and layout["deflate"]:
        with pytest.raises(BadImage, match="planes of 16 bits"):
            decode_image(data)
    else:
        assert_shows(data, shown(shares[..., :3], shares[..., 3:] if channels == 4 else None), 2)


@pytest.mark.parametrize(("bits", "depth"), [(8, 8), (16, 16), (16, 12)])
def test_colours_that_are_multiplied_by_alpha(bits: int, depth: int) -> None:
    numbers = drawn(depth, 4)
    numbers[..., 3] |= 1 << (depth - 2)
    numbers[..., :3] = numbers[..., :3] * numbers[..., 3:] // ((1 << depth) - 1)
    data = tiff(numbers, bits, {262: [2], 338: [1]} | most(depth, 4, bits))
    shares = numbers / ((1 << depth) - 1)
    assert_shows(data, 255 * (shares[..., :3] + 1 - shares[..., 3:]), 4)


def test_inks_of_16_bits() -> None:
    for depth in (16, 12):
        numbers = drawn(depth, 4)
        inks = numbers / ((1 << depth) - 1)
        data = tiff(numbers, 16, {262: [5]} | most(depth, 4, 16))
        assert_shows(data, 255 * (1 - inks[..., :3]) * (1 - inks[..., 3:]), 2)


@pytest.mark.parametrize("bits", [8, 16])
def test_other_inks_than_cmyk_are_refused(bits: int) -> None:
    numbers = drawn(bits, 4)
    assert decode_image(tiff(numbers, bits, {262: [5], 332: [1]})).size == (WIDTH, HEIGHT)
    with pytest.raises(BadImage, match="inks are not declared as cyan"):
        decode_image(tiff(numbers, bits, {262: [5], 332: [2]}))


@pytest.mark.parametrize("layout", [{"planes": planes, "order": order} for planes in (False, True) for order in "<>"])
@pytest.mark.parametrize(("bits", "channels"), [(1, 1), (8, 1), (16, 1), (8, 3), (16, 4)])
def test_a_tiff_of_which_strips_are_missing_is_refused(bits: int, channels: int, layout: dict[str, object]) -> None:
    """Without a word of it, half of the image would be black, or be made of whatever stands behind the strip."""
    numbers = drawn(bits, channels)
    kind = {262: [2 if channels > 1 else 1]} | ({338: [2]} if channels == 4 else {})
    assert decode_image(tiff(numbers, bits, kind, **layout)).size == (WIDTH, HEIGHT)  # type: ignore[arg-type]
    for taller in ({257: [2 * HEIGHT]}, {257: [2 * HEIGHT], 278: [2 * HEIGHT]}):
        data = tiff(numbers, bits, kind | taller, **layout)  # type: ignore[arg-type]
        for decode in (decode_image, decode_pixels):
            with pytest.raises(BadImage, match="truncated"):
                decode(data + bytes(9999))


def test_a_maximum_that_is_a_statistic_is_no_depth() -> None:
    for bits, value in ((16, 4000), (16, 51234), (8, 200)):
        numbers = drawn(bits, 1) % value
        assert_shows(tiff(numbers, bits, {262: [1], 281: [value]}), shown(numbers / ((1 << bits) - 1)))


def test_a_declared_depth_that_is_not_true_is_none() -> None:
    numbers = drawn(16, 1)
    assert_shows(tiff(numbers, 16, {262: [1], 281: [4095]}), shown(numbers / 65535))


def without_range() -> Iterator[tuple[str, bytes]]:
    signed = drawn(7, 1) - 64
    for bits in (8, 16, 32):
        yield f"signed {bits}-bit integers", tiff(signed, bits, {262: [1], 339: [2]}, kind="i")
    yield "32-bit integers", tiff(drawn(32, 1), 32, {262: [1]})
    yield "floating-point samples", f"Pf\n{WIDTH} {HEIGHT}\n-1.0\n".encode() + drawn(7, 1).astype("<f4").tobytes()
    yield "floating-point samples", tiff(signed, 32, {262: [1], 339: [3]}, kind="f")


@pytest.mark.parametrize(
    ("what", "data"), list(without_range()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_numbers_without_a_range_are_refused(what: str, data: bytes) -> None:
    for decode in (decode_image, decode_pixels):
        with pytest.raises(BadImage, match=f"^{what} have no defined range"):
            decode(data)


PNG_COLOURS = {0: 1, 2: 3, 4: 2, 6: 4}
PNG_KINDS = [(colour, depth) for colour in PNG_COLOURS for depth in ((1, 2, 4, 8, 16) if colour == 0 else (8, 16))]


@pytest.mark.parametrize(("colour", "depth"), PNG_KINDS)
def test_png(colour: int, depth: int) -> None:
    numbers = drawn(depth, PNG_COLOURS[colour])
    shares = numbers / ((1 << depth) - 1)
    colours = shares.shape[2] - (colour in (4, 6))
    alpha = shares[..., colours:] if colour in (4, 6) else None
    assert_shows(png(numbers, depth, colour), shown(shares[..., :colours], alpha), 2)


@pytest.mark.parametrize(("colour", "depth"), [kind for kind in PNG_KINDS if kind[0] in (0, 2)])
def test_the_colour_key_of_png_has_the_depth_of_its_pixels(colour: int, depth: int) -> None:
    numbers = drawn(depth, PNG_COLOURS[colour])
    key = numbers[2, 3]
    alpha = (numbers != key).any(axis=2, keepdims=True).astype(float)
    body = struct.pack(f">{len(key)}H", *key)
    shares = numbers / ((1 << depth) - 1)
    assert_shows(png(numbers, depth, colour, (b"tRNS", body)), shown(shares, alpha))


@pytest.mark.parametrize("colour", PNG_COLOURS)
@pytest.mark.parametrize(("depth", "used"), [(16, 12), (16, 10), (16, 14), (8, 6), (8, 5)])
def test_significant_bits_of_png(colour: int, depth: int, used: int) -> None:
    """Scaled up, as the standard asks for, in any of three ways; or left as they were, as many writers do."""
    channels = PNG_COLOURS[colour]
    numbers = drawn(used, channels)
    shares = numbers / ((1 << used) - 1)
    shifted = numbers << (depth - used)
    repeated = shifted | shifted >> used
    even = np.rint(shares * ((1 << depth) - 1)).astype(np.int64)
    colours = channels - (colour in (4, 6))
    alpha = shares[..., colours:] if colour in (4, 6) else None
    for stored in (shifted, repeated, even, numbers):
        data = png(stored, depth, colour, (b"sBIT", bytes([used] * channels)))
        assert_shows(data, shown(shares[..., :colours], alpha), 8 if depth == 8 else 2)
    dark = numbers % 3 << (depth - used)  # all within the lower bits, and scaled up
    data = png(dark, depth, colour, (b"sBIT", bytes([used] * channels)))
    shares = dark / ((1 << depth) - 1)
    assert_shows(data, shown(shares[..., :colours], shares[..., colours:] if colour in (4, 6) else None), 2)


@pytest.mark.parametrize("most", [1, 15, 100, 255, 1023, 4095, 5000, 65535])
@pytest.mark.parametrize("channels", [1, 3])
def test_portable_maps(most: int, channels: int) -> None:
    numbers = np.random.default_rng(0).integers(0, most + 1, (HEIGHT, WIDTH, channels))
    assert_shows(pgm(numbers, most), shown(numbers / most))


def test_stated_levels() -> None:
    """Of numbers of more than 8 bits, whatever the file declares; 8 bits and alpha stay as they are."""
    numbers = drawn(12, 1)
    low, high = 500, 3000
    expected = shown(((numbers - low) / (high - low)).clip(0, 1))
    signed = tiff(numbers - 1000, 16, {262: [1], 339: [2]}, kind="i")
    for data, levels in (
        (tiff(numbers, 16, {262: [1]}), (low, high)),
        (tiff(numbers, 16, {262: [1], 281: [4095]}), (low, high)),
        (tiff(numbers, 32, {262: [1], 339: [3]}, kind="f"), (low, high)),
        (tiff(numbers, 32, {262: [1]}, order="<"), (low, high)),
        (signed, (low - 1000, high - 1000)),
        (png(numbers, 16, 0), (low, high)),
        (pgm(numbers, 4095), (low, high)),
    ):
        np.testing.assert_allclose(np.asarray(decode_image(data, levels)).astype(float), expected, atol=1)
    three = drawn(12, 3)
    expected = shown(((three - low) / (high - low)).clip(0, 1))
    for data in (pgm(three, 4095), png(three, 16, 2)):
        np.testing.assert_allclose(np.asarray(decode_image(data, (low, high))).astype(float), expected, atol=1)
    assert depends_on_levels(pgm(three, 4095)) and not depends_on_levels(pgm(three >> 4, 255))
    colours = drawn(16, 4)
    data = png(colours, 16, 6)
    shares = ((colours[..., :3] - 1000) / 9000).clip(0, 1)
    expected = shown(shares, colours[..., 3:] / 65535)
    np.testing.assert_allclose(np.asarray(decode_image(data, (1000, 10000))).astype(float), expected, atol=2)
    eight = png(drawn(8, 3), 8, 2)
    assert decode_image(eight, (0, 4095)).tobytes() == decode_image(eight).tobytes()


def test_not_a_number_is_black() -> None:
    values = np.linspace(0, 1, HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH)
    values[0, 0] = np.nan
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "TIFF")
    assert decode_image(buffer.getvalue(), (0, 1)).getpixel((0, 0)) == (0, 0, 0)


def lab_of(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """CIE L*a*b* under D50 of sRGB colours from 0 to 255, by the formulas of IEC 61966-2-1 and CIE 15."""
    shares = rgb / 255
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
    bradford = [
        [1.0478112, 0.0228866, -0.050127],
        [0.0295424, 0.9904844, -0.0170491],
        [-0.0092345, 0.0150436, 0.7521316],
    ]
    relative = linear @ np.array(to_xyz).T @ np.array(bradford).T / (0.96422, 1, 0.82521)
    roots = np.where(relative > (6 / 29) ** 3, np.cbrt(relative), relative / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = np.moveaxis(roots, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


@pytest.mark.parametrize("deflate", [False, True])
def test_cie_lab(deflate: bool) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(float)
    colours[0, :5] = [[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]
    lab = np.rint(lab_of(colours) * (2.55, 1, 1)).astype(int)
    data = tiff(lab % 256, 8, {262: [8]}, deflate=deflate)
    decoded = np.asarray(decode_image(data))
    np.testing.assert_array_equal(decode_pixels(data), decoded)
    again = lab_of(decoded.astype(float))
    inside = ((decoded > 5) & (decoded < 255)).all(axis=2)  # the others may have been clipped, or are rounded coarsely
    assert inside.sum() > 1500
    np.testing.assert_allclose(again[inside], (lab / (2.55, 1, 1))[inside], atol=1.2)  # rounding of RGB, in L*a*b*
    np.testing.assert_allclose(decoded[0, :3], colours[0, :3], atol=3)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("scale", [257, 256, 1])
def test_a_palette_of_16_or_of_8_bits(scale: int, bits: int, deflate: bool, order: str) -> None:
    colours = np.random.default_rng(1).integers(0, 256, (1 << bits, 3)).astype(float)
    numbers = drawn(bits, 1)
    tags = {262: [3], 320: (colours * scale).astype(int).T.ravel().tolist()}
    assert_shows(tiff(numbers, bits, tags, deflate=deflate, order=order), colours[numbers[..., 0]], within=0)


def test_a_palette_that_is_too_short_is_refused() -> None:
    data = tiff(drawn(8, 1), 8, {262: [3], 320: [65535] * 3 * 255})
    with pytest.raises(BadImage, match="palette has 765 values; 8 bits need 768"):
        decode_image(data)


@pytest.mark.parametrize("damage", ["channels", "data"])
def test_a_damaged_tiff_prints_no_line_beside_the_refusal(damage: str, tmp_path: Path) -> None:
    """Pillow logs the first, libtiff prints the second."""
    data = tiff(drawn(8, 1), 8, {262: [1]} | ({277: [256]} if damage == "channels" else {}), deflate=damage == "data")
    (tmp_path / "image.tif").write_bytes(data[:10] + b"\xff" * 10 + data[20:])
    program = (
        "import sys, pathlib; from leoclr.datasets.errors import BadImage\n"
        "from leoclr.datasets.images.decode import decode_image\n"
        "try: decode_image(pathlib.Path(sys.argv[1]).read_bytes())\n"
        "except BadImage: print('refused')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "image.tif")], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("refused\n", "")


def test_colours_of_fewer_samples_are_no_truncated_file() -> None:
    blocks = np.zeros((HEIGHT, WIDTH // 2, 3), int)  # as many bytes as 4:2:0 has for twice the width
    data = tiff(blocks, 8, {256: [WIDTH // 2 * 2], 262: [6], 530: [2, 2]})
    with pytest.raises(BadImage, match="YCbCr with fewer samples for colour is read from compressed TIFFs only"):
        decode_image(data)
