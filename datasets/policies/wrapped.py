"""View policies with a wrapper in `backends/wrappers/`: their settings, views and pairs.

Each is named after the method that it comes from, and runs under every backend that offers what it needs.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat

from leoclr.datasets.policies.values import Probability, Share
from leoclr.datasets.views import POLICIES, PolicySettings, View, ViewPolicy

Positive = Annotated[FiniteFloat, Field(gt=0)]
Shares = tuple[Share, Share]
Base = Literal["pairwise", "pairwise-symmetric", "leoclr"]

# CLSA's sizes, and shares of the area that a crop covers; the first has those of the settings.
_SIZES: tuple[tuple[float, dict[str, Any]], ...] = (
    (1.0, {}),
    (192 / 224, {"crop_scale": (0.172, 0.86)}),
    (160 / 224, {"crop_scale": (0.143, 0.715)}),
    (128 / 224, {"crop_scale": (0.114, 0.571)}),
    (96 / 224, {"crop_scale": (0.086, 0.429)}),
)


class Clsa(PolicySettings):
    """Weak and strong views; the strong learn the distribution of the weak (CLSA)."""

    crops: Literal["single", "multi"] = Field(
        default="single",
        description="Sizes of views. single: weak at full size, strong at 3/7; multi: both at five sizes.",
    )
    operations: Annotated[int, Field(ge=1, le=20)] = Field(
        default=5, description="Number of random operations of a strong view, each with probability 0.5."
    )
    weight: Positive = Field(default=1.0, description="Weight of the distributional loss.")

    def policy(self) -> ViewPolicy:
        weak, strong = (_SIZES[:1], _SIZES[-1:]) if self.crops == "single" else (_SIZES, _SIZES)
        views = {"key": View()}
        for number, (size, changes) in enumerate(weak, start=1):
            views[f"weak{number}"] = View(size=size, changes=changes)
        for number, (size, changes) in enumerate(strong, start=1):
            views[f"strong{number}"] = View(size=size, changes={**changes, "strong": self.operations})
        pairs = tuple((f"weak{number}", "key") for number in range(1, len(weak) + 1))
        return ViewPolicy(
            "clsa", views, pairs, _line(self), ("pairs", "similarities"), sum(size**2 for size, _ in strong)
        )


class UnMix(PolicySettings):
    """Mixtures of images beside the views, pulled to the targets of both images (Un-Mix)."""

    base: Base = Field(default="pairwise", description="Views and pairs whose anchors are mixed.")
    alpha: Positive = Field(default=1.0, description="The share of a mixture is drawn from Beta(alpha, alpha).")
    cutmix: Probability = Field(default=0.5, description="Probability of CutMix; otherwise mixup.")

    def policy(self) -> ViewPolicy:
        base = POLICIES[self.base]
        return ViewPolicy("unmix", base.views, base.pairs, _line(self), ("pairs",), _anchors(base))


class MixSiam(PolicySettings):
    """Two crops, each pulled to the other, and their mixture pulled to the maximum of both (MixSiam)."""

    alpha: Positive = Field(default=1.0, description="The share of a mixture is drawn from Beta(alpha, alpha).")
    weight: Positive = Field(default=1.0, description="Weight of the mixture's loss.")

    def policy(self) -> ViewPolicy:
        base = POLICIES["pairwise-symmetric"]
        return ViewPolicy("mixsiam", base.views, base.pairs, _line(self), ("pairs",), passes=1)


class RegionCL(PolicySettings):
    """Rectangles swapped between images; both regions of a composite find their own image (RegionCL)."""

    base: Base = Field(default="pairwise", description="Views and pairs whose anchors are swapped.")
    weight: Positive = Field(default=1.0, description="Weight of the regions' loss.")

    def policy(self) -> ViewPolicy:
        base = POLICIES[self.base]
        return ViewPolicy("regioncl", base.views, base.pairs, _line(self), ("pairs",), _anchors(base))


class LoGo(PolicySettings):
    """Two global and two local crops: locals pulled to both globals and made unlike each other (LoGo)."""

    size: Share = Field(default=96 / 224, description="Side of local crops as a share of data.image_size.")
    global_scale: Shares = Field(default=(0.4, 1.0), description="Range of a global crop's share of the image area.")
    local_scale: Shares = Field(default=(0.05, 0.4), description="Range of a local crop's share of the image area.")

    def policy(self) -> ViewPolicy:
        whole = View(changes={"crop_scale": self.global_scale})
        part = View(size=self.size, changes={"crop_scale": self.local_scale})
        views = {"global1": whole, "global2": whole, "local1": part, "local2": part}
        pairs = [("global1", "global2"), ("global2", "global1")]
        pairs += [(local, target) for local in ("local1", "local2") for target in ("global1", "global2")]
        passes = 2 * self.size**2 * (1 + 1 / 3)  # both locals with gradient, and once more without
        return ViewPolicy("logo", views, tuple(pairs), _line(self), ("pairs",), passes)


def _line(settings: PolicySettings) -> str:
    return str(type(settings).__doc__)


def _anchors(policy: ViewPolicy) -> int:
    return len({anchor for anchor, _ in policy.pairs})
