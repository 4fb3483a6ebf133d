"""Feature maps of a ResNet's stages, seen while images pass through it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from leoclr.backends.networks.backbones import Backbone, convolutions


def map_channels(backbone: Backbone, stages: Sequence[int], size: int) -> list[int]:
    """Channels of the feature map behind each of some stages, which torchvision and timm call layer1 to layer4.

    Args:
        size: Side of the images in pixels.

    Raises:
        ValueError: The backbone has no such stage.
    """
    seen = convolutions(backbone, size)
    channels = []
    for stage in stages:
        inside = [one.layer.out_channels for one in seen if one.name.startswith(f"layer{stage}.")]
        if not inside:
            raise ValueError(f"it needs the feature maps of a ResNet's stages, and this backbone has no layer{stage}")
        channels.append(inside[-1])
    return channels


@contextmanager
def recorded_maps(backbone: Backbone, stages: Sequence[int]) -> Iterator[list[list[Tensor]]]:
    """Within it, each pass through the backbone adds a list of the maps `(n, channels, height, width)` behind some
    stages, in ascending order, to the list that it yields. A compiled encoder would leave hooks out: call its
    `forward`.
    """
    passes: list[list[Tensor]] = []

    def see(number: int) -> Any:
        def hook(stage: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            if number == 0:
                passes.append([])
            passes[-1].append(output)

        return hook

    hooks = [
        backbone.get_submodule(f"layer{stage}").register_forward_hook(see(number))
        for number, stage in enumerate(stages)
    ]
    try:
        yield passes
    finally:
        for hook in hooks:
            hook.remove()
