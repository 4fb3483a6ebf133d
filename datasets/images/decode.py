"""Decode untrusted images to RGB pixels, within limits.

The result depends on the content only, not on the name of the file:
- Formats are an allowlist, so that no parser outside it runs (EPS would start Ghostscript).
- The pixel count is checked from the header, before anything is allocated.
- Orientation from EXIF is applied; of an animation the first frame is taken.
- Samples of other depths become 8 bits by what the file declares, see `samples`; transparency is laid on white.

`decode_pixels` gives the same result faster for most JPEGs. It leaves everything unusual to Pillow, which alone
decides which images are refused.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from leoclr.datasets.errors import BadImage
from leoclr.datasets.images.cielab import lab_to_rgb
from leoclr.datasets.images.not_images import refusal
from leoclr.datasets.images.pillow_messages import silence
from leoclr.datasets.images.png_chunks import without_texts
from leoclr.datasets.images.samples import Levels, eight_bits, has_levels, stored
from leoclr.datasets.wording import first_line

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")  # Pillow opens MPO as JPEG
silence()
MAX_PIXELS = 1 << 26  # 8192 x 8192: 192 MiB as RGB
MAX_BYTES = 1 << 28
_ORIENTATION = 0x0112  # the EXIF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)  # orientations that exchange width and height
_PILLOW_MODULES = r"PIL\."
_DAMAGED = ("decoder error", "could not create decoder")  # how Pillow puts it of TIFF and WebP
_REDUCTIONS = (8, 4, 2)  # those that libjpeg-turbo computes in vector instructions

Result = TypeVar("Result")


def decode_image(data: bytes, levels: Levels | None = None) -> Image.Image:
    """Decode one image. May be called from several threads.

    Args:
        data: The encoded file, at most 256 MiB.
        levels: Which numbers become black and white in images of more than 8 bits a sample; by default what the file
            declares.

    Returns:
        An image in mode RGB.

    Raises:
        BadImage: It is not one of `FORMATS`, has more than 2**26 pixels, is damaged, or holds numbers without a range
            (signed, of 32 bits, floating point) where there are no `levels`.
    """
    return examine(data, lambda opened, data: _rgb(opened, data, levels))


def decode_pixels(data: bytes, spare: Callable[[int, int], float] | None = None) -> NDArray[np.uint8]:
    """The pixels of `decode_image(data)`, shape `(height, width, 3)`. The same limits, the same errors.

    Args:
        spare: Told width and height, says how many pixels there are along a side for each that is needed. A JPEG is
            then decoded at a half, a quarter or an eighth of its size, where that leaves enough, in a fraction of the
            time. Without it, and for all other files, in full: it is not asked for those that are turned.
    """

    def decode(opened: Image.Image, data: bytes) -> NDArray[np.uint8]:
        if opened.format != "JPEG":
            return _pixels(opened, data)
        return _jpeg_pixels(opened, data, spare)

    return examine(data, decode)


def image_size(data: bytes) -> tuple[int, int]:
    """(width, height) by the header, before any rotation that it asks for. Raises BadImage."""
    return examine(data, lambda opened, _: opened.size)


def upright_size(data: bytes) -> tuple[int, int]:
    """(width, height) by the header, after any rotation that it asks for. Raises BadImage."""

    def upright(opened: Image.Image, _: bytes) -> tuple[int, int]:
        width, height = opened.size
        return (height, width) if _orientation(opened) in _SIDEWAYS else (width, height)

    return examine(data, upright)


def depends_on_levels(data: bytes) -> bool:
    """Whether `decode_image` would look at `levels`: an image of more than 8 bits a sample. Raises BadImage."""
    return examine(data, has_levels)


def eight_bit_rgb(image: Image.Image) -> Image.Image:
    """An opened image in mode RGB, transparent parts on white, as `decode_image` makes it; its orientation stays.

    Raises:
        BadImage: It has more than 8 bits a sample, so that black and white are not known without its file.
    """
    if image.mode.startswith(("I", "F")):
        raise BadImage(f"the image has mode {image.mode}: scale it to 8 bits a sample, or decode its file")
    return _to_rgb(image)


def too_long(length: int) -> str:
    """What is wrong with an image of more than `MAX_BYTES` bytes."""
    return f"the image has {length:,} bytes; the limit is {MAX_BYTES:,}"


def examine(data: bytes, look: Callable[[Image.Image, bytes], Result]) -> Result:
    """What `look` makes of the image, whose header has been read and found to be within the limits, and of its bytes.

    Raises:
        BadImage: As `decode_image` does; also in place of whatever `look` raises.
    """
    if len(data) > MAX_BYTES:
        raise BadImage(too_long(len(data)))
    _ignore_pillow_warnings()
    try:
        try:
            return _within_limits(data, look)
        except ValueError:  # as Pillow raises for a PNG with much text, which does not concern the pixels
            shorter = without_texts(data)
            if len(shorter) == len(data):
                raise
            return _within_limits(shorter, look)
    except BadImage:
        raise
    except Image.DecompressionBombError:
        raise BadImage(f"the image has far more pixels than the limit of {MAX_PIXELS:,}") from None
    except MemoryError:
        raise BadImage("the image needs more memory than there is") from None
    except Exception as error:  # Pillow's parsers raise nearly every built-in exception on damaged input
        raise BadImage(f"the image cannot be decoded ({_reason(error, data)})") from error


def _within_limits(data: bytes, look: Callable[[Image.Image, bytes], Result]) -> Result:
    opened = Image.open(io.BytesIO(data), formats=FORMATS)
    width, height = opened.size
    if width * height > MAX_PIXELS:
        raise BadImage(f"the image has {width} x {height} pixels; the limit is {MAX_PIXELS:,} in all")
    return look(opened, data)


def _jpeg_pixels(opened: Image.Image, data: bytes, spare: Callable[[int, int], float] | None) -> NDArray[np.uint8]:
    """By libjpeg-turbo alone, which saves a quarter of Pillow's time; by Pillow what makes it hesitate."""
    if opened.mode in ("RGB", "L") and _orientation(opened) == 1:
        most = 1.0 if spare is None else spare(*opened.size)
        factor = next((factor for factor in _REDUCTIONS if factor <= most), 1)
        height, width = -(-opened.height // factor), -(-opened.width // factor)
        try:
            pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
                data, min_height=height, min_width=width, min_factor=factor
            )
        except ValueError:  # also for damage that Pillow puts up with
            return _pixels(opened, data)
        if pixels.shape == (height, width, 3):
            return pixels
    return _pixels(opened, data)


def _pixels(opened: Image.Image, data: bytes) -> NDArray[np.uint8]:
    return np.array(_rgb(opened, data, None))  # a copy, because torch wants to be allowed to write


def _rgb(opened: Image.Image, data: bytes, levels: Levels | None) -> Image.Image:
    numbers = stored(opened, data, levels)
    opened.load()  # before its orientation is looked up: a PNG may hold it behind the pixels
    image = opened if numbers is None else eight_bits(numbers, levels)
    if opened.format == "BMP" and image.mode == "RGBA" and not any(image.getchannel("A").getextrema()):
        image = image.convert("RGB")  # many writers declare alpha and leave it 0
    return _to_rgb(_upright(image, _orientation(opened)))


def _ignore_pillow_warnings() -> None:
    """Pillow warns of odd metadata, which does not concern the pixels, once for each such image.

    The filter is added where it is missing and stays. warnings.catch_warnings would take it back, but it replaces
    the filters of the whole process and so is not for threads, which packing decodes in.
    """
    if not any(module and getattr(module, "pattern", "") == _PILLOW_MODULES for *_, module, _ in warnings.filters):
        warnings.filterwarnings("ignore", module=_PILLOW_MODULES)


def _upright(image: Image.Image, orientation: Any) -> Image.Image:
    """The image turned as its EXIF data ask for.

    Not by ImageOps.exif_transpose, which writes the other tags anew and fails where one is odd.
    """
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # as above; the pixels are good
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, image).convert("RGB")
    if image.mode == "LAB":
        return lab_to_rgb(image)
    return image.convert("RGB")


def _reason(error: Exception, data: bytes) -> str:
    if isinstance(error, UnidentifiedImageError):
        return refusal(data, FORMATS[:4])
    text = first_line(error)
    if text.startswith(_DAMAGED):
        return "its compressed data are damaged or truncated"
    return text[:120]
