"""BYOL: predict a momentum encoder's embedding of another view.

arXiv 2006.07733. There are no negatives: the predictor and the slow target keep the embeddings from collapsing. For
each pair the loss is `2 - 2 cos(q(f(anchor)), sg f_target(positive))`; the pairs of an image are summed, as in the
authors' code. The target moves after the optimizer's step. With the `leoclr` views the predictor is on X and the
targets are X1 and X2, which have no gradient and are not pulled to each other. Health: `std`, of the target's
embeddings scaled to length sqrt(dim), is about 1, and 0 at collapse, where `cosine` is 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from leoclr.backends.losses import cosine
from leoclr.backends.method import (
    Facts,
    Output,
    PairMethod,
    Progress,
    momentum_copy,
    momentum_update,
    reduce_pairs,
    share_batch_norm,
)
from leoclr.backends.networks.backbones import Backbone
from leoclr.backends.networks.batchnorm import zero_last_norms
from leoclr.backends.networks.encoder import Encoder
from leoclr.backends.networks.heads import mlp
from leoclr.backends.schedules import cosine as cosine_schedule
from leoclr.backends.settings import (
    BatchNormSettings,
    Fraction,
    Pairs,
    PositiveCount,
    RunFacts,
    anchors_of,
    positives_of,
)
from leoclr.backends.spread import mean_std
from leoclr.backends.step_inputs import step_number


class Settings(BatchNormSettings):
    """BYOL: predictor and momentum target (`--backend byol`)."""

    default_views: ClassVar[str] = "byol"
    offers: ClassVar[tuple[str, ...]] = ("pairs",)
    small: ClassVar[Mapping[str, Any]] = {"hidden": 32, "dim": 16, "momentum": 0.9}

    hidden: PositiveCount = Field(default=4096, description="Width of the hidden layer of projector and predictor.")
    dim: PositiveCount = Field(default=256, description="Dimension of the embedding.")
    momentum: Fraction = Field(
        default=0.996, description="Initial EMA decay of the target: 0.996 for 1000 epochs, 0.99 for 100."
    )
    final_momentum: Fraction = Field(
        default=1.0, description="Final EMA decay of the target, reached by a cosine schedule."
    )
    reduction: Literal["sum", "mean"] = Field(
        default="sum",
        description="Reduction over the pairs of an image. mean halves the effective rate: -11 points on ImageNet.",
    )
    zero_init_residual: bool = Field(default=True, description="Initialise residual blocks as the identity.")

    def forward_passes(self, facts: RunFacts) -> float:
        return facts.passes(anchors_of(facts.pairs), positives_of(facts.pairs))


class BYOL(PairMethod):
    """The predictor backend.

    Attributes:
        encoder: Trained by gradient, backbone and projector.
        predictor: Behind it; the target has none.
        target: The encoder's momentum copy.
    """

    def __init__(self, settings: Settings, facts: Facts) -> None:
        super().__init__()
        self.settings = settings
        backbone, hidden, dim = facts.new_backbone(), settings.hidden, settings.dim
        if settings.zero_init_residual:
            zero_last_norms(backbone)
        self.encoder = Encoder(backbone, mlp((backbone.feature_dim, hidden, dim), norm=True), normalise=False)
        self.predictor = mlp((dim, hidden, dim), norm=True)
        self.target = momentum_copy(self.encoder)
        self.momentum = cosine_schedule(settings.momentum, settings.final_momentum)
        share_batch_norm(self, settings, facts)

    def forward(self, views: Mapping[str, Tensor], pairs: Pairs, now: Progress) -> Output:
        with torch.no_grad():  # and not in evaluation mode: BatchNorm of the target uses the batch's statistics
            targets = {name: self.target(views[name]) for name in positives_of(pairs)}
        embeddings = {name: self.encoder(views[name]) for name in anchors_of(pairs)}
        predictions = {name: self.predict(embedding) for name, embedding in embeddings.items()}
        losses = torch.cat([self.pull(predictions[anchor], [targets[positive]]) for anchor, positive in pairs])
        metrics = {"cosine": 1 - losses.detach().mean() / 2, "std": mean_std(targets.values())}
        return Output(self.reduce(losses), embeddings[pairs[0][0]].detach(), metrics, predictions, targets)

    def predict(self, embeddings: Tensor) -> Tensor:
        predictions: Tensor = self.predictor(embeddings)
        return predictions

    def pull(self, predictions: Tensor, targets: Sequence[Tensor], negatives: Tensor | None = None) -> Tensor:
        return torch.stack([2 - 2 * cosine(predictions, target).mean() for target in targets])

    def reduce(self, losses: Tensor) -> Tensor:
        return reduce_pairs(losses, self.settings.reduction)

    def after_update(self, now: Progress) -> None:
        device = next(self.parameters()).device
        momentum_update(self.target, self.encoder, step_number(self.momentum, now, device))

    def backbones(self) -> dict[str, Backbone]:
        return {"encoder.backbone": self.encoder.backbone, "target.backbone": self.target.backbone}
