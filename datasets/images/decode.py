"""Bytes of an untrusted image to RGB pixels, within limits.

One answer for every input, whatever the file is called:
- Formats are an allowlist, so that no parser outside it runs (EPS would start Ghostscript).
- The pixel count is checked from the header, before anything is allocated.
- Orientation from EXIF is applied; of an animation the first frame is taken.
- 16-bit grey is scaled to 8 bits (Pillow's own conversion clips it to white); transparency is laid on white.

`decode_pixels` gives the same answer faster for most JPEGs. Whatever is not plain it leaves to Pillow, so that Pillow
alone decides what is refused.
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

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")  # Pillow opens MPO as JPEG
IMAGE_SUFFIXES = frozenset(
    {"jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "mpo", "avif"}
)
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
_PILLOW_MODULES = r"PIL\."
_REDUCTIONS = (8, 4, 2)  # those that libjpeg-turbo computes in vector instructions

Decoded = TypeVar("Decoded")


def decode_image(data: bytes) -> Image.Image:
    """Decode one image. May be called from several threads.

    Args:
        data: The encoded file, at most 256 MiB.

    Returns:
        An image in mode RGB.

    Raises:
        BadImage: It is not one of `FORMATS`, has more than 2**26 pixels, or is damaged.
    """
    return _guarded(data, lambda opened: _to_rgb(_upright(opened)))


def decode_pixels(data: bytes, spare: Callable[[int, int], float] | None = None) -> NDArray[np.uint8]:
    """The pixels of `decode_image(data)`, shape `(height, width, 3)`. The same limits, the same errors.

    Args:
        spare: Told width and height, says how many pixels there are along a side for each that is needed. A JPEG is
            then decoded at a half, a quarter or an eighth of its size, where that leaves enough, in a fraction of the
            time. Without it, and for all other files, in full.
    """

    def decode(opened: Image.Image) -> NDArray[np.uint8]:
        if opened.format != "JPEG":
            return _pixels(opened)
        return _jpeg_pixels(opened, data, 1.0 if spare is None else spare(*opened.size))

    return _guarded(data, decode)


def too_long(length: int) -> str:
    """What is wrong with an image of more than `MAX_BYTES` bytes."""
    return f"the image has {length:,} bytes; the limit is {MAX_BYTES:,}"


def _guarded(data: bytes, decode: Callable[[Image.Image], Decoded]) -> Decoded:
    """What `decode` makes of the image whose header has been read and found to be within the limits."""
    if len(data) > MAX_BYTES:
        raise BadImage(too_long(len(data)))
    _ignore_pillow_warnings()
    try:
        opened = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = opened.size
        if width * height > MAX_PIXELS:
            raise BadImage(f"the image has {width} x {height} pixels; the limit is {MAX_PIXELS:,} in all")
        return decode(opened)
    except BadImage:
        raise
    except Image.DecompressionBombError:
        raise BadImage(f"the image has far more pixels than the limit of {MAX_PIXELS:,}") from None
    except MemoryError:
        raise BadImage("the image needs more memory than there is") from None
    except Exception as error:  # Pillow's parsers raise nearly every built-in exception on damaged input
        raise BadImage(f"the image cannot be decoded ({_reason(error)})") from error


def _jpeg_pixels(opened: Image.Image, data: bytes, spare: float) -> NDArray[np.uint8]:
    """By libjpeg-turbo alone, which saves a quarter of Pillow's time; by Pillow what makes it hesitate."""
    if opened.mode in ("RGB", "L") and _orientation(opened) == 1:
        factor = next((factor for factor in _REDUCTIONS if factor <= spare), 1)
        height, width = -(-opened.height // factor), -(-opened.width // factor)
        try:
            pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
                data, min_height=height, min_width=width, min_factor=factor
            )
        except ValueError:  # also for damage that Pillow puts up with
            return _pixels(opened)
        if pixels.shape == (height, width, 3):
            return pixels
    return _pixels(opened)


def _pixels(opened: Image.Image) -> NDArray[np.uint8]:
    return np.array(_to_rgb(_upright(opened)))  # a copy, because torch wants to be allowed to write


def _ignore_pillow_warnings() -> None:
    """Pillow warns of odd metadata, which does not concern the pixels, once for each such image.

    The filter is added where it is missing and stays. warnings.catch_warnings would take it back, but it replaces
    the filters of the whole process and so is not for threads, which packing decodes in.
    """
    if not any(module and getattr(module, "pattern", "") == _PILLOW_MODULES for *_, module, _ in warnings.filters):
        warnings.filterwarnings("ignore", module=_PILLOW_MODULES)


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF data ask for; as it is where they are damaged.

    Not by ImageOps.exif_transpose, which writes the other tags anew and fails where one is odd.
    """
    image.load()
    turn = _TURNS.get(_orientation(image))
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.info.pop("exif", None)
    return turned


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # as above; the pixels are good
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        levels = np.asarray(image)
        if image.mode == "I":
            levels = levels.clip(0, 65535)
        return Image.fromarray((levels >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise BadImage("floating-point images have no defined range; convert them to 8 bits first")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, image).convert("RGB")
    return image.convert("RGB")


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not a " + ", ".join(FORMATS[:4]) + " or other known image"
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return text[:120]
