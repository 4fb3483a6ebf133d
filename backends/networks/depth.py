"""Layer number of a backbone parameter, counted from the input."""

from __future__ import annotations

import re
from collections.abc import Iterable

# ViTs (blocks.7), ResNets (layer3), ConvNeXts and EfficientNets (stages.2, features.5), Swins (layers.1).
_NUMBERED = re.compile(r"(?:^|\.)(?:blocks|layers?|stages|features)\.?(\d+)\.")
_LAST = re.compile(r"^(?:norm|fc_norm|head|fc|final_conv)\b")


def layers(names: Iterable[str]) -> dict[str, int]:
    """The layer of each parameter of a backbone: 0 for stem and embeddings, then as the layers are numbered, and what
    comes after them last."""
    names = list(names)
    numbers = {name: int(match[1]) for name in names if (match := _NUMBERED.search(name))}
    first = min(numbers.values(), default=0)  # timm counts from 0, ResNets from 1
    found = {name: number - first + 1 for name, number in numbers.items()}
    last = max(found.values(), default=0) + 1
    return {name: found.get(name, last if _LAST.match(name) else 0) for name in names}
