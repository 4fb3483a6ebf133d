"""Multi-crop: two large crops and several cheap small ones (SwAV, arXiv 2006.09882, section 3.2)."""

from __future__ import annotations

from pydantic import Field

from leoclr.datasets.policies.values import Number, Probability, Range, Share
from leoclr.datasets.views import PolicySettings, View, ViewPolicy

EachKind = tuple[Probability, Probability, Probability]


class MulticropViews(PolicySettings):
    """Multi-crop: large crops x1 and x2, small crops s1, s2, ...; all are pulled to each large crop."""

    small: Number = Field(default=6, description="Number of small crops: 6 in SwAV, 8 in DINO.")
    small_size: Share = Field(
        default=96 / 224,
        description="Side of small crops as a share of data.image_size: 96 of 224 px in SwAV and DINO.",
    )
    large_scale: Range = Field(default=(0.14, 1.0), description="Range of a large crop's share of the image area.")
    small_scale: Range = Field(default=(0.05, 0.14), description="Range of a small crop's share of the image area.")
    blur: EachKind = Field(
        default=(0.5, 0.5, 0.5),
        description="Probability of blur in x1, x2 and small crops; replaces augmentation.blur. DINO: 1, 0.1, 0.5.",
    )
    solarize: EachKind = Field(
        default=(0.0, 0.0, 0.0),
        description="Probability of solarisation in the same; replaces augmentation.solarize. DINO: 0, 0.2, 0.",
    )

    def policy(self) -> ViewPolicy:
        large, small = ("x1", "x2"), tuple(f"s{number}" for number in range(1, self.small + 1))
        views = {name: self._view(kind, 1.0, self.large_scale) for kind, name in enumerate(large)}
        views |= {name: self._view(2, self.small_size, self.small_scale) for name in small}
        pairs = tuple((anchor, positive) for positive in large for anchor in (*large, *small) if anchor != positive)
        return ViewPolicy("multicrop", views, pairs)

    def _view(self, kind: int, size: float, scale: tuple[float, float]) -> View:
        changes = {"crop_scale": scale, "blur": self.blur[kind], "solarize": self.solarize[kind]}
        return View("crop", size, changes)
