"""SwAV: predict the prototype assignment of another view.

arXiv 2006.09882. Codes are the assignments of the positives, equally spread over the prototypes by Sinkhorn-Knopp over
the batches of all processes, and have no gradient. `-sum_k code_k log softmax(scores / temperature)_k` is averaged over
the anchors of each positive, then over the positives. With the `leoclr` views X predicts the codes of X1 and of X2,
which are assigned separately and never predict each other. BatchNorm normalises each view separately; the authors join
crops of one size. Health: `used_prototypes`, the share of prototypes that are nearest to an image (of as many as a
batch could use); `code_entropy`, of the codes, as a share of log(prototypes).

A loss that stays at log(prototypes), with a code entropy that goes to 1: uniform codes and predictions fit each other.
To first order a difference between images grows out of them only where the two views' embeddings, less their means,
correlate by more than `epsilon / temperature`. The authors' 0.05 / 0.1 asks for 0.5, which early and narrow encoders do
not reach: lower `epsilon`, or weaken the augmentation. The paper, too, warns of uniform codes at a high epsilon.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from leoclr.backends.losses import cross_entropy
from leoclr.backends.method import Facts, Method, Output, ParameterGroup, Progress, share_batch_norm
from leoclr.backends.networks.backbones import Backbone
from leoclr.backends.networks.encoder import Encoder
from leoclr.backends.networks.heads import mlp
from leoclr.backends.settings import (
    BatchNormSettings,
    Count,
    NonNegative,
    Pairs,
    Positive,
    PositiveCount,
    RunFacts,
    anchors_first,
    anchors_of,
    positives_of,
)
from leoclr.backends.sinkhorn import sinkhorn


class Settings(BatchNormSettings):
    """SwAV: prototypes and balanced codes (`--backend swav`)."""

    default_views: ClassVar[str] = "multicrop"
    small: ClassVar[Mapping[str, Any]] = {"hidden": 32, "dim": 16, "prototypes": 12, "queue": 8, "frozen_epochs": 0.5}

    hidden: PositiveCount = Field(default=2048, description="Width of the projector's hidden layer.")
    dim: PositiveCount = Field(default=128, description="Dimension of the embedding.")
    prototypes: PositiveCount = Field(default=3000, description="Number of prototypes, about three per class.")
    temperature: Positive = Field(default=0.1, description="Temperature of the predictions.")
    epsilon: Positive = Field(
        default=0.05,
        description="Sinkhorn's regularisation; 0.03 or less if the loss stays at the logarithm of the prototypes.",
    )
    iterations: PositiveCount = Field(default=3, description="Sinkhorn iterations.")
    queue: Count = Field(
        default=0,
        description="Earlier embeddings, over all processes, for balancing codes: 3840 for batches of 256; 0: none.",
    )
    queue_epochs: NonNegative = Field(
        default=15.0, description="Epoch at which the queue starts to fill; used once full."
    )
    frozen_epochs: NonNegative = Field(default=1.0, description="Epochs for which the prototypes are frozen.")

    def problems(self, facts: RunFacts) -> Iterator[str]:
        yield from super().problems(facts)
        if self.queue % facts.ranks:
            yield f"swav.queue {self.queue} cannot be split evenly over {facts.ranks} processes"

    def forward_passes(self, facts: RunFacts) -> float:
        anchors = anchors_of(facts.pairs)
        return facts.passes(anchors, [name for name in positives_of(facts.pairs) if name not in anchors])

    def warnings(self, facts: RunFacts) -> Iterator[str]:
        if facts.accumulation > 1:
            yield f"with accumulation, SwAV's codes are balanced over micro-batches of {facts.micro} images only"


class SwAV(Method):
    """The clustering backend.

    Attributes:
        prototypes: Their rows have length one.
        queue: Embeddings of this rank's images, newest first, `(length, positives, dim)`, where there is a queue.
    """

    queue: Tensor

    def __init__(self, settings: Settings, facts: Facts) -> None:
        super().__init__()
        self.settings, self.images = settings, facts.batch_size // facts.ranks
        backbone = facts.new_backbone()
        self.encoder = Encoder(backbone, mlp((backbone.feature_dim, settings.hidden, settings.dim), norm=True))
        self.prototypes = nn.Linear(settings.dim, settings.prototypes, bias=False)
        self._normalise_prototypes()
        self.groups = (ParameterGroup("^prototypes", frozen=lambda now: now.epoch < settings.frozen_epochs),)
        if settings.queue:
            shape = (settings.queue // facts.ranks, len(positives_of(facts.pairs)), settings.dim)
            self.register_buffer("queue", torch.zeros(shape))
            self.per_rank = ("queue",)
        self._waiting: list[Tensor] = []
        share_batch_norm(self, settings, facts)

    def forward(self, views: Mapping[str, Tensor], pairs: Pairs, now: Progress) -> Output:
        anchors, positives = anchors_of(pairs), positives_of(pairs)
        embeddings = {}
        for name in anchors_first(views, pairs):
            with torch.set_grad_enabled(name in anchors):
                embeddings[name] = self.encoder(views[name])
        if self._since_queue_began(now) >= 0:
            self._waiting.append(torch.stack([embeddings[name].detach() for name in positives], dim=1))
        with torch.autocast(next(iter(views.values())).device.type, enabled=False):
            scores = {name: self.prototypes(each) for name, each in embeddings.items()}
            predictions = {name: F.log_softmax(scores[name] / self.settings.temperature, dim=1) for name in anchors}
            losses, codes = [], []
            for number, positive in enumerate(positives):
                code_BK = self._codes(scores[positive].detach(), number, now)
                own = [predictions[anchor] for anchor, other in pairs if other == positive]
                losses.append(torch.stack([cross_entropy(code_BK, each) for each in own]).mean())
                codes.append(code_BK)
            metrics = _health(codes)
        return Output(torch.stack(losses).mean(), embeddings[anchors[0]].detach(), metrics)

    @torch.no_grad()
    def after_update(self, now: Progress) -> None:
        self._normalise_prototypes()
        if self._waiting:
            self.queue.copy_(torch.cat([*reversed(self._waiting), self.queue])[: len(self.queue)].to(self.queue.dtype))
            self._waiting.clear()

    def backbones(self) -> dict[str, Backbone]:
        return {"encoder.backbone": self.encoder.backbone}

    def _codes(self, scores_BK: Tensor, number: int, now: Progress) -> Tensor:
        """The codes of a positive, balanced together with its queue where that is full."""
        batch, settings = len(scores_BK), self.settings
        since = self._since_queue_began(now)
        if since >= 0 and since * self.images >= len(self.queue):
            scores_BK = torch.cat([scores_BK, self.prototypes(self.queue[:, number]).detach()])
        return sinkhorn(scores_BK, settings.epsilon, settings.iterations)[:batch]

    def _since_queue_began(self, now: Progress) -> int:
        """Steps; negative before and where there is no queue."""
        if not self.settings.queue:
            return -1
        return now.step - math.ceil(self.settings.queue_epochs * now.steps_per_epoch)

    @torch.no_grad()
    def _normalise_prototypes(self) -> None:
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))


@torch.no_grad()
def _health(codes: list[Tensor]) -> dict[str, Tensor]:
    used, entropies = [], []
    for code_BK in codes:
        nearest = torch.zeros_like(code_BK[0]).index_fill_(0, code_BK.argmax(dim=1), 1.0)
        used.append(nearest.sum() / min(code_BK.shape))
        entropies.append(torch.special.entr(code_BK).sum(dim=1).mean() / math.log(max(2, code_BK.shape[1])))
    return {"used_prototypes": torch.stack(used).mean(), "code_entropy": torch.stack(entropies).mean()}
