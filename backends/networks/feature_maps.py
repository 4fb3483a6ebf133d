"""Feature maps of a ResNet's stages, or of a ViT's blocks, seen while images pass through it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from leoclr.backends.networks.backbones import Backbone, convolutions


def map_channels(backbone: Backbone, stages: Sequence[int], size: int) -> list[int]:
    """Channels of the feature map behind each of some stages, 1 to 4.

    Args:
        size: Side of the images in pixels.

    Raises:
        ValueError: The backbone has no such stage.
    """
    with recorded_maps(backbone, stages) as passes:
        convolutions(backbone, size)  # a pass of one image
    return [each.shape[1] for each in passes[0]]


@contextmanager
def recorded_maps(backbone: Backbone, stages: Sequence[int]) -> Iterator[list[list[Tensor]]]:
    """Within it, each pass through the backbone adds a list of the maps `(n, channels, height, width)` behind some
    stages, in ascending order, to the list that it yields. A compiled encoder would leave hooks out: call its
    `forward`.

    Raises:
        ValueError: The backbone has no such stage.
    """
    passes: list[list[Tensor]] = []

    def see(number: int) -> Any:
        def hook(stage: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            if number == 0:
                passes.append([])
            passes[-1].append(_as_map(output, backbone))

        return hook

    layers = [_stage(backbone, stage) for stage in stages]
    hooks = [layer.register_forward_hook(see(number)) for number, layer in enumerate(layers)]
    try:
        yield passes
    finally:
        for hook in hooks:
            hook.remove()


def _stage(backbone: Backbone, stage: int) -> nn.Module:
    """What torchvision and timm call layer1 to layer4 in a ResNet; in a ViT, the last block of that quarter of them."""
    layer, blocks = getattr(backbone, f"layer{stage}", None), getattr(backbone, "blocks", None)
    if isinstance(layer, nn.Module):
        return layer
    if isinstance(blocks, nn.Sequential | nn.ModuleList) and hasattr(backbone, "num_prefix_tokens"):
        return blocks[math.ceil(stage * len(blocks) / 4) - 1]
    raise ValueError(f"it needs the feature maps of a ResNet's stages or a ViT's blocks, and has no layer{stage}")


def _as_map(output: Tensor, backbone: Backbone) -> Tensor:
    """A ViT's tokens, `(n, prefix + height * width, channels)`, as the map of its patches."""
    if output.ndim == 4:
        return output
    patches = output[:, int(getattr(backbone, "num_prefix_tokens", 0)) :].transpose(1, 2)
    side = math.isqrt(patches.shape[2])  # views are square
    return patches.reshape(*patches.shape[:2], side, side)
