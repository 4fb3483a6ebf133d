"""The original and any number of crops, large or small, pulled together in either direction."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from leoclr.datasets.policies.values import Number, PositiveNumber, Range, Share
from leoclr.datasets.views import PolicySettings, View, ViewPolicy


class OriginalViews(PolicySettings):
    """The uncropped original and crops of it, which are pulled to it, or it to them, and never to each other."""

    crops: PositiveNumber = Field(default=2, description="Number of large crops x1, x2, ...")
    anchors: Literal["original", "crops", "both"] = Field(
        default="both",
        description="Which views are anchors: the original, as in LeOCLR, the large crops, or both in turn.",
    )
    small: Number = Field(
        default=0, description="Number of small crops s1, s2, ...; each is an anchor and is pulled to the original."
    )
    small_size: Share = Field(default=0.5, description="Side of small crops as a share of data.image_size.")
    small_scale: Range = Field(default=(0.05, 0.4), description="Range of a small crop's share of the image area.")

    def policy(self) -> ViewPolicy:
        large = [f"x{number}" for number in range(1, self.crops + 1)]
        small = [f"s{number}" for number in range(1, self.small + 1)]
        views = {"x": View("whole")} | {name: View() for name in large}
        views |= {name: View(size=self.small_size, changes={"crop_scale": self.small_scale}) for name in small}
        outward = [("x", name) for name in large] if self.anchors != "crops" else []
        inward = [(name, "x") for name in (*(large if self.anchors != "original" else ()), *small)]
        return ViewPolicy("original", views, (*outward, *inward))
