"""SCFS: DINO, and small crops that search the teacher's feature maps for what they show.

arXiv 2212.06486. Beside DINO's loss there is one for each of some stages of a ResNet, the mean of two halves. The first
is DINO's loss on the stage's map, with a head and a centre of its own, over the pairs of large views. The second is the
search: the student's map of a small crop, averaged and at length one, has a cosine with each cell of the teacher's map
of the first large view; the map, each cell multiplied by its cosine, goes through the teacher's head, and its softmax,
without a centre, is the target of the small crop's own head. The cosines have no gradient.

Small crops are the views that are never positives. Where there are none, each anchor searches the maps of its
positives: with the `leoclr` views X searches X1 and X2, which never meet. As in `dino`, BatchNorm sees each view by
itself, the authors join crops of one size; the heads of the teacher use the batch's statistics. The cost of the heads,
two or three small convolutions a stage, is not counted in forward passes.

Health, beside DINO's: `map_entropy`, of the cosines of a map as a share of log(cells), 1 if a search prefers no cell;
`stage_loss`, the sum over the stages.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from leoclr.backends.losses import cross_entropy, exact
from leoclr.backends.method import Facts, Output, Progress, momentum_copy, momentum_update, share_batch_norm
from leoclr.backends.methods.dino import DINO, move_centre
from leoclr.backends.methods.dino import Settings as DINOSettings
from leoclr.backends.networks.encoder import Encoder
from leoclr.backends.networks.feature_maps import map_channels, recorded_maps
from leoclr.backends.networks.heads import mlp
from leoclr.backends.settings import Pairs, PositiveCount, anchors_of, positives_of


class Settings(DINOSettings):
    """SCFS: DINO and a search in feature maps (`--backend scfs`)."""

    small: ClassVar[Mapping[str, Any]] = {
        **DINOSettings.small,
        "stages": (3, 4),
        "stage_bottleneck": 8,
        "stage_hidden": 16,
        "stage_dim": 8,
    }

    stages: Annotated[tuple[Annotated[int, Field(ge=1, le=4)], ...], Field(min_length=1)] = Field(
        default=(2, 3, 4), description="Stages of the ResNet whose feature maps are searched."
    )
    stage_bottleneck: PositiveCount = Field(default=256, description="Channels within the block of a stage's head.")
    stage_hidden: PositiveCount = Field(default=2048, description="Width of the hidden layer of a stage's head.")
    stage_dim: PositiveCount = Field(default=256, description="Outputs of a stage's head.")


class SCFS(DINO):
    """The backend that searches feature maps.

    Attributes:
        heads: The student's, one for each stage.
        teacher_heads: Their momentum copies.
        stage_centre: What is taken off the outputs of the teacher's heads, `(stages, stage_dim)`.
    """

    stage_centre: Tensor

    def __init__(self, settings: Settings, facts: Facts) -> None:
        super().__init__(settings, facts)
        self.stages = sorted(set(settings.stages))
        channels = map_channels(self.encoder.backbone, self.stages, facts.image_size)
        widths = (settings.stage_bottleneck, settings.stage_hidden, settings.stage_dim)
        self.heads = nn.ModuleList(_Head(each, *widths) for each in channels)
        self.teacher_heads = momentum_copy(self.heads)
        self.register_buffer("stage_centre", torch.zeros(len(self.stages), settings.stage_dim))
        self._stages_waiting: list[Tensor] = []
        for heads in (self.heads, self.teacher_heads):
            share_batch_norm(heads, settings, facts)

    def forward(self, views: Mapping[str, Tensor], pairs: Pairs, now: Progress) -> Output:
        with recorded_maps(self.encoder.backbone, self.stages) as student:
            with recorded_maps(self.teacher.backbone, self.stages) as teacher:
                output = super().forward(views, pairs, now)
        losses, entropies, means = [], [], []
        for stage in range(len(self.stages)):
            of_student = dict(zip(anchors_of(pairs), (maps[stage] for maps in student), strict=True))
            of_teacher = dict(zip(positives_of(pairs), (maps[stage] for maps in teacher), strict=True))
            targets, found, mean, entropy = self._targets(stage, of_student, of_teacher, pairs, now)
            predictions = {
                name: F.log_softmax(self.heads[stage](maps) / self.settings.temperature, dim=1)
                for name, maps in of_student.items()
            }
            for half in (targets, found):
                terms = [cross_entropy(target, predictions[anchor]) for anchor, target in half]
                losses.append(torch.stack(terms).mean() / 2)
            entropies.append(entropy)
            means.append(mean)
        self._stages_waiting.append(torch.stack(means))
        loss = torch.stack(losses).sum()
        metrics = {**output.metrics, "map_entropy": torch.stack(entropies).mean(), "stage_loss": loss.detach()}
        return output._replace(loss=output.loss + loss, metrics=metrics)

    def encode(self, encoder: Encoder, images: Tensor) -> Tensor:
        return encoder.forward(images)  # not a compiled call, which would leave out the hooks

    @torch.no_grad()
    def after_update(self, now: Progress) -> None:
        super().after_update(now)
        move_centre(self.stage_centre, self._stages_waiting, self.settings.centre_momentum)
        momentum_update(self.teacher_heads, self.heads, self.momentum(now))

    @torch.no_grad()
    def _targets(
        self,
        stage: int,
        of_student: Mapping[str, Tensor],
        of_teacher: Mapping[str, Tensor],
        pairs: Pairs,
        now: Progress,
    ) -> tuple[list[tuple[str, Tensor]], list[tuple[str, Tensor]], Tensor, Tensor]:
        """Targets of a stage with their anchors, those of large views and those that are searched; the teacher's mean
        output; and the entropy of the maps."""
        head, temperature = self.teacher_heads[stage], self.teacher_temperature(now)
        large, searches = halves(pairs)
        logits = {name: head(maps) for name, maps in of_teacher.items()}
        centre, mean = self.stage_centre[stage], torch.stack([each.mean(dim=0) for each in logits.values()]).mean(dim=0)
        targets = [(anchor, F.softmax((logits[positive] - centre) / temperature, dim=1)) for anchor, positive in large]
        found, entropies = [], []
        for anchor, positive in searches:
            cosines = cosine_map(of_student[anchor], of_teacher[positive])
            found.append((anchor, F.softmax(head(cosines[:, None] * of_teacher[positive]) / temperature, dim=1)))
            entropies.append(_entropy(cosines))
        return targets, found, mean, torch.stack(entropies).mean()


class _Head(nn.Module):
    """A residual block of 1x1, 3x3 and 1x1 convolutions, the average over the map, two linear layers, length one."""

    def __init__(self, channels: int, bottleneck: int, hidden: int, dim: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(channels, bottleneck, 1, bias=False),
            nn.BatchNorm2d(bottleneck),
            nn.ReLU(),
            nn.Conv2d(bottleneck, bottleneck, 3, padding=1, bias=False),
            nn.BatchNorm2d(bottleneck),
            nn.ReLU(),
            nn.Conv2d(bottleneck, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.projector = mlp((channels, hidden, dim), norm=True, last_norm="affine")

    def forward(self, maps: Tensor) -> Tensor:
        """Maps `(n, channels, height, width)` to outputs `(n, dim)`, never below float32."""
        features = F.relu(self.block(maps) + maps).mean(dim=(2, 3))
        projected = exact(self.projector(features))
        with torch.autocast(projected.device.type, enabled=False):
            return F.normalize(projected, dim=1)


def halves(pairs: Pairs) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The pairs of large views, and the pairs (anchor, searched view): small crops search their first positive, and
    where there are none, each anchor searches all of its positives."""
    anchors, positives = anchors_of(pairs), positives_of(pairs)
    small = [name for name in anchors if name not in positives]
    if len(small) in (0, len(anchors)):
        return list(pairs), list(pairs)
    large = [pair for pair in pairs if pair[0] not in small]
    return large, [next(pair for pair in pairs if pair[0] == name) for name in small]


def cosine_map(crop: Tensor, searched: Tensor) -> Tensor:
    """Cosines of the mean over a map with each cell of another, `(n, height, width)`, in float32 or better."""
    with torch.autocast(crop.device.type, enabled=False):
        sought = F.normalize(exact(crop).mean(dim=(2, 3)), dim=1)
        return (F.normalize(exact(searched), dim=1) * sought[:, :, None, None]).sum(dim=1)


def _entropy(cosines: Tensor) -> Tensor:
    shares = cosines.flatten(1).clamp_min(0)
    shares = shares / shares.sum(dim=1, keepdim=True).clamp_min(1e-12)
    each: Tensor = torch.special.entr(shares).sum(dim=1)
    return each.mean() / math.log(max(2, shares.shape[1]))
