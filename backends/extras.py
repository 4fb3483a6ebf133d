"""What `forward` takes beside views, pairs and progress, where a method asks for it by a flag of its class.

Each is an argument of its name. A flag is `takes_` and that name; see `leoclr.backends.method.Method`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

Extra = Tensor | Mapping[str, Tensor]
EXTRAS = ("samples", "boxes", "labels")


def asked(method: Any) -> list[str]:
    """The names of the extras that a method, or the class of one, asks for."""
    return [name for name in EXTRAS if getattr(method, f"takes_{name}", False)]


def examples(
    method: Any, views: Iterable[str], images: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> dict[str, Extra]:
    """The extras that a method asks for, for views that are of no data: the first samples; boxes that overlap, of which
    every other one is mirrored; labels 0, 0, 1, 1, and again.

    Args:
        views: Their names.
        dtype: Of boxes; that of the views where these are not float32.
    """
    numbers = torch.arange(images, device=device)
    made: dict[str, Extra] = {
        "samples": numbers,
        "boxes": {name: _boxes(numbers + shift).to(dtype) for shift, name in enumerate(views)},
        "labels": numbers // 2 % 2,
    }
    return {name: made[name] for name in asked(method)}


def rows(extras: Mapping[str, Extra], part: slice) -> dict[str, Extra]:
    """The extras of some images of a batch."""
    return {
        name: extra[part] if isinstance(extra, Tensor) else {view: tensor[part] for view, tensor in extra.items()}
        for name, extra in extras.items()
    }


def _boxes(numbers: Tensor) -> Tensor:
    left, top = numbers % 3 / 10, numbers // 3 % 3 / 10
    right, bottom = left + 0.7, top + 0.7
    mirrored = numbers % 2 == 1
    return torch.stack([torch.where(mirrored, right, left), top, torch.where(mirrored, left, right), bottom], dim=1)
