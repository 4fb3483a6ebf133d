"""The paper's Table 7: how much accuracy is lost when the test image is a random crop instead of the centre crop.

The probe is trained on centre crops. A random crop is drawn for each test image and seed, and for nothing else, so
any part of the data set gives the same crops. The interval is over seeds: it holds the chance of the crops, not that
of the test images or of the pre-training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import stats

from leoclr.datasets.images.augmentation import UNIFORMS, AugmentationSpec, crop_box
from leoclr.datasets.randomness import uniforms
from leoclr.evals.features.preprocessing import resized_side

DEFAULT_SEEDS = 5
CROP_SCALE = (0.08, 1.0)  # torchvision's RandomResizedCrop; the paper names no range
CROP_RATIO = (3 / 4, 4 / 3)
CURVE_SHARES = (0.08, 0.15, 0.25, 0.4, 0.6, 0.8, 1.0)
_SQUARE = (1.0, 1.0)
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class RandomCrop:
    """The image resized to a square of 256/224 of the size, then a random part of it resized to the size.

    Attributes:
        seed: With the sample's number, decides the crop.
        scale: Range of the share of the square's area that is kept.
        ratio: Range of width to height of the part.
    """

    image_size: int
    seed: int
    scale: tuple[float, float] = CROP_SCALE
    ratio: tuple[float, float] = CROP_RATIO

    @property
    def protocol(self) -> str:
        side = resized_side(self.image_size)
        scale = f"{self.scale[0]:g}-{self.scale[1]:g}" if self.scale[0] < self.scale[1] else f"{self.scale[0]:g}"
        shape = "square " if self.ratio == _SQUARE else ""
        crop = f"random {shape}crop of {scale} of the area to {self.image_size} px, seed {self.seed}"
        return f"resized to {side} x {side} px (bicubic), {crop}"

    def __call__(self, image: Image.Image, sample: int) -> NDArray[np.uint8]:
        side = resized_side(self.image_size)
        spec = AugmentationSpec(self.image_size, crop_scale=self.scale, crop_ratio=self.ratio)
        box = crop_box(side, side, spec, uniforms(self.seed, 0, np.array([sample]), 0, UNIFORMS)[0])
        square = image.resize((side, side), Image.Resampling.BICUBIC)
        size = (self.image_size, self.image_size)
        return np.asarray(square.resize(size, Image.Resampling.BICUBIC, box=box))


def square_part(image_size: int, seed: int, share: float) -> RandomCrop:
    """A square part of exactly this share of the area, anywhere; with a share of 1 the whole of it."""
    return RandomCrop(image_size, seed, (share, share), _SQUARE)


@dataclass(frozen=True)
class CropDrop:
    """Accuracies in [0, 1].

    Attributes:
        centre: On centre crops.
        random: On random crops, one for each seed.
        mean: Of `random`.
        half_width: Of the 95 % interval of the mean (Student's t over the seeds); None with a single seed.
    """

    centre: float
    random: tuple[float, ...]
    mean: float
    half_width: float | None

    @property
    def drop(self) -> float:
        """What random crops cost. Its interval is as wide as that of the mean: the centre crop is not random."""
        return self.centre - self.mean


def crop_drop(centre: float, random: Sequence[float]) -> CropDrop:
    """Summarise the accuracy on centre crops and those on random crops, one for each seed."""
    half_width = None
    if len(random) > 1:
        deviation = float(np.std(random, ddof=1))
        half_width = float(stats.t.ppf((1 + _CONFIDENCE) / 2, len(random) - 1)) * deviation / len(random) ** 0.5
    return CropDrop(centre, tuple(random), float(np.mean(random)), half_width)
