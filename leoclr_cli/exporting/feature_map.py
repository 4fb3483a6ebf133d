"""The last feature map of a backbone, beside its pooled features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from leoclr.backends.networks.backbones import Backbone


class WithFeatureMap(nn.Module):
    """From images to the pooled features and what they are pooled from.

    The map of a convolutional network has shape `(n, channels, height, width)`, that of timm's Swin transformers `(n,
    height, width, channels)`; that of a vision transformer is its tokens, `(n, tokens, dim)`, with the class token.

    Args:
        backbone: In evaluation mode.
        image_size: Of a square image that it takes, in pixels.
    """

    def __init__(self, backbone: Backbone, image_size: int) -> None:
        super().__init__()
        self.backbone: Any = backbone
        self._is_timms = hasattr(backbone, "forward_features")
        if not self._is_timms:
            self._layer = backbone.get_submodule(_last_map_layer(backbone, image_size))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if self._is_timms:
            found = self.backbone.forward_features(images)
            return self.backbone.forward_head(found), found
        maps: list[Tensor] = []
        hook = self._layer.register_forward_hook(lambda module, inputs, output: maps.append(output))
        try:
            return self.backbone(images), maps[-1]
        finally:
            hook.remove()


@torch.no_grad()
def _last_map_layer(backbone: Backbone, image_size: int) -> str:
    """Name of the last layer whose output has places, before the pooling over all of them."""
    ended: list[tuple[str, bool, bool]] = []

    def note(name: str) -> Any:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            has_places = isinstance(output, Tensor) and output.ndim > 2
            ended.append((name, has_places, isinstance(module, nn.AdaptiveAvgPool2d)))

        return look

    hooks = [module.register_forward_hook(note(name)) for name, module in backbone.named_modules() if name]
    try:
        backbone(next(backbone.parameters()).new_zeros(1, 3, image_size, image_size))
    finally:
        for hook in hooks:
            hook.remove()
    pools = [number for number, (_, _, is_pool) in enumerate(ended) if is_pool]
    before = ended[: pools[-1]] if pools else ended
    return next(name for name, has_places, _ in reversed(before) if has_places)
