"""Memory formats: layers for which channels-last is slower (wide kernels on tiny maps, in bf16 on a CPU).

oneDNN's channels-last convolutions work along rows of pixels. A row of 2 to 5 pixels is too short for weights that no
cache holds (512 x 512 x 3 x 3 in bf16: 4.7 MB), and the same convolution of contiguous tensors takes 0.7 of the time
(AMD EPYC, Zen 5). The last stage of ResNet-18 at 32 px is of this kind; a step of MoCo becomes 7 % faster. With fewer
channels, longer rows or float32 channels-last is as fast or faster.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from leoclr.backends.networks.backbones import Backbone, Seen, convolutions

_SHORTEST, _LONGEST = 2, 5  # pixels
_WIDE = 512  # channels


def keep_short_rows_contiguous(backbone: Backbone, size: int) -> None:
    """Make the stages that are slow in channels-last contiguous: their weights now, their inputs as they come.

    Args:
        backbone: In channels-last. A stage is one of its direct children.
        size: Of the images, in pixels.
    """
    stages: dict[str, list[Seen]] = {}
    for seen in convolutions(backbone, size):
        stages.setdefault(seen.name.partition(".")[0], []).append(seen)
    for name, members in stages.items():
        if all(_SHORTEST <= seen.output_width <= _LONGEST for seen in members) and any(map(_has_wide_kernel, members)):
            stage = backbone.get_submodule(name)
            stage.to(memory_format=torch.contiguous_format)
            stage.register_forward_pre_hook(_contiguous)


def _has_wide_kernel(seen: Seen) -> bool:
    layer = seen.layer
    return layer.kernel_size[0] > 1 and layer.groups == 1 and layer.out_channels >= _WIDE


def _contiguous(stage: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(each.contiguous() if isinstance(each, Tensor) else each for each in inputs)
