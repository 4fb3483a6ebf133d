"""BYOL's two crops with different augmentations (arXiv 2006.07733, appendix B)."""

from __future__ import annotations

from pydantic import Field

from leoclr.datasets.policies.values import Probability
from leoclr.datasets.views import PolicySettings, View, ViewPolicy


class BYOLViews(PolicySettings):
    """Two crops, each pulled to the other, with different blur and solarisation (BYOL)."""

    blur: tuple[Probability, Probability] = Field(
        default=(1.0, 0.1), description="Probability of Gaussian blur in x1 and x2; replaces augmentation.blur."
    )
    solarize: tuple[Probability, Probability] = Field(
        default=(0.0, 0.2), description="Probability of solarisation in x1 and x2; replaces augmentation.solarize."
    )

    def policy(self) -> ViewPolicy:
        views = {
            name: View(changes={"blur": blur, "solarize": solarize})
            for name, blur, solarize in zip(("x1", "x2"), self.blur, self.solarize, strict=True)
        }
        return ViewPolicy("byol", views, (("x1", "x2"), ("x2", "x1")))
