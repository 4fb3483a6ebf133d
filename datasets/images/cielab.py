"""CIE L*a*b* of 8 bits, as TIFF 6.0 stores it, to sRGB.

Pillow leaves this to a table of 33 points a side, which is up to 26 levels off for saturated colours. The white of the
numbers is D50, as image editors write them, and is adapted to that of sRGB (D65) by Bradford's matrix, as colour
profiles do.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_D50 = (0.96422, 1.0, 0.82521)
_TO_LINEAR = np.array(  # from XYZ under D50: Bradford's adaptation to D65 and the primaries of sRGB
    [[3.1338561, -1.6168667, -0.4906146], [-0.9787684, 1.9161415, 0.0334540], [0.0719453, -0.2289914, 1.4052427]]
)
_KNEE = 6 / 29
_PIXELS = 1 << 20  # in memory at a time, as 64-bit numbers


def lab_to_rgb(image: Image.Image) -> Image.Image:
    """An image in mode LAB as RGB; colours that sRGB lacks are clipped."""
    numbers = np.asarray(image)
    pixels = np.empty_like(numbers)
    rows = max(1, _PIXELS // image.width)
    for top in range(0, image.height, rows):
        pixels[top : top + rows] = _srgb(numbers[top : top + rows])
    return Image.fromarray(pixels, "RGB")


def _srgb(numbers: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """From `(height, width, 3)`: L* of 0 to 100 as 0 to 255, a* and b* as bytes with a sign."""
    signed = numbers.view(np.int8)
    middle = (numbers[..., 0] * (100 / 255) + 16) / 116
    roots = np.stack([middle + signed[..., 1] / 500, middle, middle - signed[..., 2] / 200], axis=-1)
    xyz = np.where(roots > _KNEE, roots**3, 3 * _KNEE**2 * (roots - 4 / 29)) * _D50
    linear = (xyz @ _TO_LINEAR.T).clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    shown: NDArray[np.uint8] = np.rint(encoded * 255).astype(np.uint8)
    return shown
