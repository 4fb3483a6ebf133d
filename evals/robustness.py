"""The paper's Table 7: the accuracy lost on random crops of test images compared with centre crops.

The probe is trained on centre crops. A random crop is drawn for each test image and draw, from (seed, draw, sample
number) alone, so any part of the data set gives the same crops. There are two intervals: over the draws, which holds
the chance of the crops, and over the test images, which holds the chance of these. Neither holds that of pre-training.
M = test images, S = draws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import stats

from leoclr.datasets.images.augmentation import UNIFORMS, AugmentationSpec, crop_box
from leoclr.datasets.randomness import stream, uniforms
from leoclr.evals.accuracy import CONFIDENCE, half_width
from leoclr.evals.features.preprocessing import resized_side

FEW_DRAWS = 4  # up to here Student's t is above 3, and a chance agreement of the draws makes the interval vanish
CROP_SCALE = (0.08, 1.0)  # torchvision's RandomResizedCrop; the paper names no range
CROP_RATIO = (3 / 4, 4 / 3)
CURVE_SHARES = (0.08, 0.15, 0.25, 0.4, 0.6, 0.8, 1.0)
_SQUARE = (1.0, 1.0)


@dataclass(frozen=True)
class RandomCrop:
    """The image resized to a square of 256/224 of the size, a random part of it cut out and resized to the size.

    Attributes:
        seed, draw: With the sample's number, decide the crop. Draws of different seeds are independent.
        scale: Range of the share of the square's area that is kept, before sides are rounded to pixels.
        ratio: Range of width to height of the part.
    """

    image_size: int
    seed: int
    draw: int = 0
    scale: tuple[float, float] = CROP_SCALE
    ratio: tuple[float, float] = CROP_RATIO

    @property
    def protocol(self) -> str:
        side = resized_side(self.image_size)
        scale = f"{self.scale[0]:g}-{self.scale[1]:g}" if self.scale[0] < self.scale[1] else f"{self.scale[0]:g}"
        part = f"random part of {scale} of the area"
        if self.ratio == _SQUARE:
            part = f"random square of {part_side(self.image_size, self.scale[0])} px"
        crop = f"{part} cut out and resized to {self.image_size} px (bicubic), seed {self.seed}, draw {self.draw}"
        return f"resized to {side} x {side} px (bicubic), {crop}"

    def __call__(self, image: Image.Image, sample: int) -> NDArray[np.uint8]:
        side = resized_side(self.image_size)
        spec = AugmentationSpec(self.image_size, crop_scale=self.scale, crop_ratio=self.ratio)
        numbers = uniforms(stream(self.seed, "robustness crop"), self.draw, np.array([sample]), 0, UNIFORMS)[0]
        square = image.resize((side, side), Image.Resampling.BICUBIC)
        # resize(box=...) would let pixels from outside the box into its rim.
        part = square.crop(crop_box(side, side, spec, numbers))
        return np.asarray(part.resize((self.image_size, self.image_size), Image.Resampling.BICUBIC))


def square_part(image_size: int, seed: int, draw: int, share: float) -> RandomCrop:
    """A square part of this share of the area, as far as whole pixels allow, anywhere; with a share of 1 all of it."""
    return RandomCrop(image_size, seed, draw, (share, share), _SQUARE)


def part_side(image_size: int, share: float) -> int:
    """Side in pixels of the square that `square_part` cuts out."""
    return round(math.sqrt(share * resized_side(image_size) ** 2))


def cut_share(image_size: int, share: float) -> float:
    """The share of the area that `square_part` cuts out: of 37 px for an asked share of 0.08, 10 px or 0.073."""
    return (part_side(image_size, share) / resized_side(image_size)) ** 2


@dataclass(frozen=True)
class CropDrop:
    """Accuracies in [0, 1], and halves of 95 % intervals.

    Attributes:
        centre: On centre crops.
        random: On random crops, one for each draw.
        mean: Of `random`.
        over_draws: Of the mean, by Student's t over the draws; None with a single draw. As wide for the drop: the
            centre crop is not random.
        centre_over_images, mean_over_images, drop_over_images: By the normal approximation over the test images; for
            the drop over the differences within an image.
    """

    centre: float
    random: tuple[float, ...]
    mean: float
    over_draws: float | None
    centre_over_images: float
    mean_over_images: float
    drop_over_images: float

    @property
    def drop(self) -> float:
        """The cost of random crops."""
        return self.centre - self.mean


def crop_drop(centre_M: NDArray[np.float64], random_SM: NDArray[np.float64]) -> CropDrop:
    """Summarise which test images are right: 1 or 0, on centre crops and on the random crops of each draw."""
    random_S, per_image_M = random_SM.mean(axis=1), random_SM.mean(axis=0)
    over_draws = None
    if len(random_S) > 1:
        t = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(random_S) - 1))
        over_draws = t * float(np.std(random_S, ddof=1)) / len(random_S) ** 0.5
    return CropDrop(
        centre=float(centre_M.mean()),
        random=tuple(random_S.tolist()),
        mean=float(random_S.mean()),
        over_draws=over_draws,
        centre_over_images=half_width(centre_M),
        mean_over_images=half_width(per_image_M),
        drop_over_images=half_width(centre_M - per_image_M),
    )
