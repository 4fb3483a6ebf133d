"""View policies: the views of an image and their positive pairs.

A policy is a small graph of views and pairs. Policies are independent of losses, and methods of images: any policy runs
under any method that does not refuse it. Entry points `leoclr.views` register all policies, also the built-in ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict

from leoclr.datasets.errors import SettingsError

ViewKind = Literal["whole", "crop"]
Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class View:
    """One view of an image.

    Attributes:
        kind: Whether it shows the whole image or a random crop. Both are augmented.
        size: Its side as a share of `data.image_size`.
        changes: Settings of `[augmentation]` that differ for this view, such as `{"blur": 1.0, "solarize": 0.2}`; not
            `executor`, `reduced_decoding`, `mean` and `std`, which all views share. `strong` is a number of random
            operations that follow, of FixMatch's fourteen.

    Raises:
        SettingsError: There is no such kind or size. Changes are checked where the settings are.
    """

    kind: ViewKind = "crop"
    size: float = 1.0
    changes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in get_args(ViewKind):
            raise SettingsError(f"a view's kind must be {' or '.join(get_args(ViewKind))}, got {self.kind!r}")
        if not 0 < self.size < math.inf:
            raise SettingsError(
                f"a view's size is a share of data.image_size, above 0 and usually at most 1; got {self.size}"
            )

    def side(self, image_size: int) -> int:
        """Its side in pixels."""
        return max(1, round(self.size * image_size))


@dataclass(frozen=True)
class ViewPolicy:
    """The views of an image and the pairs among them.

    Attributes:
        views: By name. The order numbers them, and with it their random draws.
        pairs: (anchor, positive) names. The anchor gets the gradient; each anchor is pulled to its positives only.
        summary: What it is, in a line.
        needs: What its wrapper, the entry point of its name in `leoclr.wrappers`, needs of the method.
        passes: Forward passes with gradient that the wrapper adds to those of the pairs, in passes over a view of full
            size; one without gradient counts a third.

    Raises:
        SettingsError: A pair is not of two of the views.
    """

    name: str
    views: Mapping[str, View]
    pairs: Pairs
    summary: str = ""
    needs: tuple[str, ...] = ()
    passes: float = 0

    def __post_init__(self) -> None:
        for anchor, positive in self.pairs:
            missing = next((name for name in (anchor, positive) if name not in self.views), None)
            if missing is not None:
                raise SettingsError(
                    f"the view policy {self.name}: the pair ({anchor}, {positive}) names {missing!r}, no view; "
                    f"there are {', '.join(self.views)}"
                )
            if anchor == positive:
                raise SettingsError(
                    f"the view policy {self.name}: {anchor} is pulled to itself; a pair is of two views"
                )

    def sides(self, image_size: int) -> dict[str, int]:
        """Side of each view in pixels, by name, where a view of full size has `image_size`."""
        return {name: view.side(image_size) for name, view in self.views.items()}


class PolicySettings(BaseModel):
    """A policy with settings of its own: a subclass, registered as an entry point, becomes the settings section of its
    name, and makes the policy."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    def policy(self) -> ViewPolicy:
        """The policy that these settings describe."""
        raise NotImplementedError


# LeOCLR, section 3, equation 3.
LEOCLR = ViewPolicy(
    "leoclr",
    {"x": View("whole"), "x1": View(), "x2": View()},
    (("x", "x1"), ("x", "x2")),
    "Two crops, each pulled to the uncropped original and never to each other.",
)
PAIRWISE = ViewPolicy(
    "pairwise", {"x1": View(), "x2": View()}, (("x1", "x2"),), "Two crops, the first pulled to the second (MoCo-v2)."
)
PAIRWISE_SYMMETRIC = ViewPolicy(
    "pairwise-symmetric",
    {"x1": View(), "x2": View()},
    (("x1", "x2"), ("x2", "x1")),
    "Two crops, each pulled to the other.",
)

POLICIES: Mapping[str, ViewPolicy] = MappingProxyType(
    {policy.name: policy for policy in (LEOCLR, PAIRWISE, PAIRWISE_SYMMETRIC)}
)
