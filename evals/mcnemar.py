"""McNemar's test of two classifiers on the same test images. M = test images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats


@dataclass(frozen=True)
class Comparison:
    """Two classifiers on the same images.

    Attributes:
        images: M.
        only_first, only_second: Images that one classifies rightly and the other does not.
        difference: Accuracy of the first less that of the second, in [-1, 1].
        half_width: Of the 95 % interval of the difference over the test images (normal approximation, paired).
        p_value: Of McNemar's exact test: how probable a split of the discordant images at least as uneven is, were
            either classifier as likely to be the right one. Two-sided, by the binomial distribution, for any number
            of discordant images.
    """

    images: int
    only_first: int
    only_second: int
    difference: float
    half_width: float
    p_value: float

    def __str__(self) -> str:
        p = f"p = {self.p_value:.2g}" if self.p_value >= 1e-4 else "p < 0.0001"
        return (
            f"{100 * self.difference:+.2f} +/- {100 * self.half_width:.2f} points over {self.images:,} images; right "
            f"only in the first {self.only_first:,}, only in the second {self.only_second:,}; McNemar's exact test {p}"
        )


def compare(first_right_M: NDArray[np.bool_], second_right_M: NDArray[np.bool_]) -> Comparison:
    """Compare which images two classifiers get right, image by image."""
    count = len(first_right_M)
    first = int((first_right_M & ~second_right_M).sum())
    second = int((second_right_M & ~first_right_M).sum())
    discordant = first + second
    difference = (first - second) / count
    variance = max(0.0, discordant / count - difference**2) / count
    p_value = min(1.0, 2 * float(stats.binom.cdf(min(first, second), discordant, 0.5)))
    z = float(stats.norm.ppf(0.975))
    return Comparison(count, first, second, difference, z * math.sqrt(variance), p_value)
