"""RegionCL: a rectangle of each image is swapped with that of its partner, and both regions find their own image
(arXiv 2111.12309).

One more forward pass for each anchor. The feature map of a composite is averaged inside the rectangle (paste) and
outside (canvas); both go through the same projector, and each is pulled to the targets of the image that it comes from.
The other region of the composite is one more negative, where the method has negatives. Sides are 3 to 5 sevenths of
the map, whole cells of it, at any place: 3 to 5 of 7 cells at 224 px, 2 or 3 of 4 for 32 px images and the CIFAR stem.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from leoclr.backends.extras import Extra
from leoclr.backends.method import Facts, Output, Progress
from leoclr.backends.networks.backbones import Backbone, convolutions
from leoclr.backends.settings import MethodSettings, Pairs, anchors_of
from leoclr.backends.wrappers.mixing import Box, generator, inside, partners
from leoclr.backends.wrappers.wrapper import Wrapper, targets_of, with_term

_SHORTEST, _LONGEST = 3 / 7, 5 / 7


class RegionCL(Wrapper):
    """The method's loss, and that of the two regions of composites.

    Raises:
        ValueError: The backbone has no layer that pools a feature map, or the map is a single cell.
    """

    def __init__(self, settings: MethodSettings, facts: Facts) -> None:
        super().__init__(settings, facts)
        pooling_layer(self.encoder.backbone)
        self.cells = convolutions(self.encoder.backbone, facts.image_size)[-1].output_width
        if self.cells < 2:
            raise ValueError(
                f"regioncl views need a feature map of 2 x 2 cells or more, and images of {facts.image_size} px have "
                "one cell; a larger data.image_size or encoder.stem cifar gives more"
            )

    def forward(self, views: Mapping[str, Tensor], pairs: Pairs, now: Progress, **extras: Extra) -> Output:
        output = super().forward(views, pairs, now, **extras)
        losses = []
        for number, anchor in enumerate(anchors_of(pairs)):
            images, own = views[anchor], targets_of(anchor, pairs, output)
            mask = self._swapped(images, generator(self.draws, now.step, number))
            composites = torch.where(mask, partners(images), images)
            with pooled_by_region(self.encoder.backbone, mask):
                embeddings = self.encoder.forward(composites)  # not a compiled call, which would leave out the hook
            canvas, paste = self.predict(embeddings).chunk(2)
            of_partner = [partners(target) for target in own]
            losses.append(self.pull(canvas, own, negatives=paste.detach()) / 2)
            losses.append(self.pull(paste, of_partner, negatives=canvas.detach()) / 2)
        return with_term(output, "region_loss", self.reduce(torch.cat(losses)), self.of_policy["weight"])

    def _swapped(self, images: Tensor, random: np.random.Generator) -> Tensor:
        """Where the rectangle is, `(size, size)`."""
        size = images.shape[-1]
        left, top, right, bottom = (edge * size // self.cells for edge in region(self.cells, random))
        return inside((left, top, right, bottom), size, size, images.device)


def region(cells: int, random: np.random.Generator) -> Box:
    """A rectangle (left, top, right, bottom) in cells of a map that leaves some of it on the outside."""
    shortest, longest = max(1, round(_SHORTEST * cells)), max(1, min(cells - 1, round(_LONGEST * cells)))
    width, height = (int(random.integers(shortest, longest + 1)) for _ in range(2))
    left, top = int(random.integers(cells - width + 1)), int(random.integers(cells - height + 1))
    return left, top, left + width, top + height


def pooling_layer(backbone: Backbone) -> nn.Module:
    """The layer that averages the last feature map. Raises ValueError where there is none."""
    for name in ("avgpool", "global_pool"):  # torchvision's name and timm's
        layer = getattr(backbone, name, None)
        if isinstance(layer, nn.Module):
            return layer
    raise ValueError("regioncl views need a backbone with a pooling layer, such as a ResNet or a ConvNeXt")


@contextmanager
def pooled_by_region(backbone: Backbone, mask: Tensor) -> Iterator[None]:
    """Within it, the backbone averages each feature map outside and inside of a mask `(size, size)`: features of n
    images become `(2 n, dim)`, those of the outside first."""

    def pool(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        maps: Tensor = inputs[0]
        cells = nn.functional.interpolate(mask[None, None].to(maps.dtype), maps.shape[2:], mode="area")[0, 0]
        regions = [(maps * share).sum(dim=(2, 3)) / share.sum().clamp_min(1e-6) for share in (1 - cells, cells)]
        return torch.cat(regions).reshape(-1, *output.shape[1:])

    hook = pooling_layer(backbone).register_forward_hook(pool)
    try:
        yield
    finally:
        hook.remove()
