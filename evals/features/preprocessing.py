"""Preprocessing of test images.

There are no random numbers here: the standard test view of every score. The random crops of the robustness test are
in `leoclr.evals.robustness`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from leoclr.datasets.errors import BadImage
from leoclr.datasets.images.decode import MAX_PIXELS

SMALL_IMAGE = 64
RESIZE_RATIO = 256 / 224


class TestView(Protocol):
    """From an image to what the encoder sees of it. Picklable: worker processes call it."""

    @property
    def image_size(self) -> int:
        """Side of the result in pixels."""

    @property
    def protocol(self) -> str:
        """What is done, in words that identify it: printed with every score, and part of the key of cached features."""

    def __call__(self, image: Image.Image, sample: int) -> NDArray[np.uint8]:
        """The view of an RGB image, uint8, shape `(image_size, image_size, 3)`. `sample` is its number in the data."""


@dataclass(frozen=True)
class Preprocessing:
    """A view and the normalisation that follows it on the device.

    Attributes:
        mean, std: Per channel, for pixels in [0, 1].
    """

    view: TestView
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def protocol(self) -> str:
        """The view's words and the normalisation's numbers."""
        return f"{self.view.protocol}; mean {_numbers(self.mean)}, std {_numbers(self.std)}"


@dataclass(frozen=True)
class ResizeRule:
    """How an image of any size becomes the square that the encoder sees, in words that other programs act on.

    Attributes:
        filter: Pillow's bicubic filter, which averages over the pixels it drops (`antialias`).
        mode: "short side" keeps the proportions, "squash" makes a square.
        size: The short side, or the square's side, after resizing, in pixels.
        crop: Side of the square that is cut out of the centre, in pixels.
    """

    mode: Literal["short side", "squash"]
    size: int
    crop: int
    filter: Literal["bicubic"] = "bicubic"
    antialias: bool = True

    def __str__(self) -> str:
        resized = f"short side to {self.size} px" if self.mode == "short side" else f"{self.size} x {self.size} px"
        cut = f", centre crop {self.crop} px" if self.crop != self.size or self.mode == "short side" else ""
        return f"{resized}, {self.filter} with antialiasing{cut}"


@dataclass(frozen=True)
class CentreCrop:
    """ImageNet's test view, at any size: short side to 256/224 of the size, then the centre. The same pixels as
    torchvision's Resize (bicubic, on Pillow images) and CenterCrop."""

    image_size: int

    @property
    def protocol(self) -> str:
        return f"short side to {resized_side(self.image_size)} px (bicubic), centre crop {self.image_size} px"

    def __call__(self, image: Image.Image, sample: int) -> NDArray[np.uint8]:
        short = resized_side(self.image_size)
        width, height = image.size
        if width <= height:
            size = (short, int(short * height / width))
        else:
            size = (int(short * width / height), short)
        if size[0] * size[1] > MAX_PIXELS:
            raise BadImage(f"the image of {width} x {height} pixels is too thin: it would be resized to {max(size):,}")
        left, top = (round((side - self.image_size) / 2) for side in size)
        crop = (left, top, left + self.image_size, top + self.image_size)
        return np.asarray(image.resize(size, Image.Resampling.BICUBIC).crop(crop))


@dataclass(frozen=True)
class WholeImage:
    """The image as it is, or resized to the square where its size differs."""

    image_size: int

    @property
    def protocol(self) -> str:
        return f"whole image, resized to {self.image_size} x {self.image_size} px (bicubic) where its size differs"

    def __call__(self, image: Image.Image, sample: int) -> NDArray[np.uint8]:
        size = (self.image_size, self.image_size)
        return np.asarray(image if image.size == size else image.resize(size, Image.Resampling.BICUBIC))


def standard_view(image_size: int) -> TestView:
    """The view in which scores are reported: whole small images (CIFAR's 32 px), the centre crop of larger ones."""
    return WholeImage(image_size) if image_size <= SMALL_IMAGE else CentreCrop(image_size)


def standard_rule(image_size: int) -> ResizeRule:
    """What `standard_view` does."""
    if image_size <= SMALL_IMAGE:
        return ResizeRule("squash", image_size, image_size)
    return ResizeRule("short side", resized_side(image_size), image_size)


def resized_side(image_size: int) -> int:
    """To what the short side is resized before a crop of `image_size`: 256 for 224."""
    return round(image_size * RESIZE_RATIO)


def _numbers(values: tuple[float, ...]) -> str:
    return "/".join(f"{value:g}" for value in values)
