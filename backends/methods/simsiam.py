"""SimSiam: BYOL without a momentum encoder; a stop-gradient prevents collapse.

arXiv 2011.10566. For each pair the loss is `-cos(p(f(anchor)), sg f(positive))`, averaged over the pairs of an image.
With the `leoclr` views the predictor is on X and the constants are X1 and X2, which pull nothing and are not pulled to
each other. Health: `std`, of the embeddings scaled to length sqrt(dim): about 1, and 0 at collapse (loss -1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from leoclr.backends.losses import cosine
from leoclr.backends.method import Facts, Output, PairMethod, ParameterGroup, Progress, share_batch_norm
from leoclr.backends.networks.batchnorm import zero_last_norms
from leoclr.backends.networks.encoder import Encoder
from leoclr.backends.networks.heads import mlp
from leoclr.backends.settings import BatchNormSettings, Pairs, PositiveCount, RunFacts, anchors_first, anchors_of
from leoclr.backends.spread import mean_std


class Settings(BatchNormSettings):
    """SimSiam: predictor and stop-gradient (`--backend simsiam`)."""

    default_views: ClassVar[str] = "pairwise-symmetric"
    offers: ClassVar[tuple[str, ...]] = ("pairs",)
    small: ClassVar[Mapping[str, Any]] = {"hidden": 32, "dim": 16, "predictor_hidden": 8}

    layers: PositiveCount = Field(
        default=3, description="Linear layers of the projector; 2 in the authors' CIFAR setup."
    )
    hidden: PositiveCount = Field(default=2048, description="Width of the projector's hidden layers.")
    dim: PositiveCount = Field(default=2048, description="Dimension of the embedding.")
    predictor_hidden: PositiveCount = Field(default=512, description="Width of the predictor's hidden layer.")
    constant_predictor_lr: bool = Field(default=True, description="Keep the predictor's learning rate at its peak.")
    zero_init_residual: bool = Field(default=True, description="Initialise residual blocks as the identity.")

    def forward_passes(self, facts: RunFacts) -> float:
        anchors = anchors_of(facts.pairs)
        return facts.passes(anchors, {positive for _, positive in facts.pairs} - set(anchors))


class SimSiam(PairMethod):
    """The stop-gradient backend."""

    def __init__(self, settings: Settings, facts: Facts) -> None:
        super().__init__()
        backbone, dim = facts.new_backbone(), settings.dim
        if settings.zero_init_residual:
            zero_last_norms(backbone)
        widths = (backbone.feature_dim, *[settings.hidden] * (settings.layers - 1), dim)
        self.encoder = Encoder(backbone, mlp(widths, norm=True, last_norm="plain"), normalise=False)
        self.predictor = mlp((dim, settings.predictor_hidden, dim), norm=True)
        self.groups = (ParameterGroup("^predictor", constant_lr=settings.constant_predictor_lr),)
        share_batch_norm(self, settings, facts)

    def forward(self, views: Mapping[str, Tensor], pairs: Pairs, now: Progress) -> Output:
        anchors = anchors_of(pairs)
        embeddings = {}
        for name in anchors_first(views, pairs):
            with torch.set_grad_enabled(name in anchors):  # what is only ever a positive needs no graph
                embeddings[name] = self.encoder(views[name])
        predictions = {name: self.predict(embeddings[name]) for name in anchors}
        targets = {name: embedding.detach() for name, embedding in embeddings.items()}
        losses = [self.pull(predictions[anchor], [targets[positive]]) for anchor, positive in pairs]
        metrics = {"std": mean_std(targets.values())}
        return Output(self.reduce(torch.cat(losses)), targets[anchors[0]], metrics, predictions, targets)

    def predict(self, embeddings: Tensor) -> Tensor:
        predictions: Tensor = self.predictor(embeddings)
        return predictions

    def pull(self, predictions: Tensor, targets: Sequence[Tensor], negatives: Tensor | None = None) -> Tensor:
        return torch.stack([-cosine(predictions, target).mean() for target in targets])

    def reduce(self, losses: Tensor) -> Tensor:
        return losses.mean()
