"""View policies: which views of an image there are, and which of them are positives of each other.

A policy is data, a small graph. It knows nothing of losses, and a backend knows nothing of images: any policy runs
under any backend. A new policy is a new entry here and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

ViewKind = Literal["whole", "crop"]


@dataclass(frozen=True)
class ViewPolicy:
    """The views of an image and the pairs among them.

    Attributes:
        views: Name of each view, and whether it shows the whole image or a random crop. Both are augmented.
        pairs: (anchor, positive) names. The anchor gets the gradient; each anchor is pulled to its positives only.
    """

    name: str
    views: Mapping[str, ViewKind]
    pairs: tuple[tuple[str, str], ...]


def _policy(name: str, views: dict[str, ViewKind], *pairs: tuple[str, str]) -> ViewPolicy:
    return ViewPolicy(name, views, pairs)


POLICIES: Mapping[str, ViewPolicy] = MappingProxyType(
    {
        # The two crops are pulled to the original and never to each other (LeOCLR, section 3, equation 3).
        "leoclr": _policy("leoclr", {"x": "whole", "x1": "crop", "x2": "crop"}, ("x", "x1"), ("x", "x2")),
        # What MoCo and SimCLR do; MoCo's is asymmetric: the second crop is always the key.
        "pairwise": _policy("pairwise", {"x1": "crop", "x2": "crop"}, ("x1", "x2")),
        "pairwise-symmetric": _policy("pairwise-symmetric", {"x1": "crop", "x2": "crop"}, ("x1", "x2"), ("x2", "x1")),
    }
)
