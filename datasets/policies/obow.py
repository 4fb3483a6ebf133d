"""OBoW's views: the whole image, two crops of it and small patches (arXiv 2012.11552)."""

from __future__ import annotations

from pydantic import Field

from leoclr.datasets.policies.values import Number, PositiveNumber, Range, Share
from leoclr.datasets.views import PolicySettings, View, ViewPolicy


class OBoWViews(PolicySettings):
    """The whole image, only flipped; crops and small patches, each pulled to it and never to each other (OBoW)."""

    crops: PositiveNumber = Field(default=2, description="Number of crops.")
    crop_size: Share = Field(
        default=160 / 224, description="Side of crops as a share of data.image_size: 160 of 224 px in OBoW."
    )
    crop_scale: Range = Field(default=(0.08, 0.6), description="Range of a crop's share of the image area.")
    patches: Number = Field(default=5, description="Number of patches, which are not blurred.")
    patch_size: Share = Field(
        default=96 / 224, description="Side of patches as a share of data.image_size: 96 of 224 px in OBoW."
    )
    patch_scale: Range = Field(
        default=(0.084, 0.14),
        description="Range of a patch's share of the image area; in OBoW 96 x 96 of 256 x 256 px of 60 to 100 %.",
    )

    def policy(self) -> ViewPolicy:
        plain = {"jitter": 0.0, "grayscale": 0.0, "blur": 0.0, "solarize": 0.0}
        crop = View(size=self.crop_size, changes={"crop_scale": self.crop_scale})
        patch = View(size=self.patch_size, changes={"crop_scale": self.patch_scale, "blur": 0.0})
        views = {"x": View("whole", changes=plain)}
        views |= {f"x{number}": crop for number in range(1, self.crops + 1)}
        views |= {f"s{number}": patch for number in range(1, self.patches + 1)}
        return ViewPolicy("obow", views, tuple((name, "x") for name in views if name != "x"))
