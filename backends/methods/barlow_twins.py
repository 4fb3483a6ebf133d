"""Barlow Twins: pull the cross-correlation of two views' embeddings to the identity.

arXiv 2103.03230. `sum_i (c_ii - 1)^2 + weight * sum_{i != j} c_ij^2`, where c is the correlation over the batches of
all processes, averaged over the pairs of an image. Two pairs that differ in direction alone have the same loss and
count once. With the `leoclr` views there is a matrix of X with X1 and one of X with X2, and none of X1 with X2; all
three have a gradient. Health: `diagonal`, the mean of c_ii, rises to 1, and `off_diagonal`, root mean square, falls.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from leoclr.backends.distributed import gather_with_gradient
from leoclr.backends.losses import exact
from leoclr.backends.method import Facts, Output, PairMethod, Progress, share_batch_norm
from leoclr.backends.networks.batchnorm import zero_last_norms
from leoclr.backends.networks.encoder import Encoder
from leoclr.backends.networks.heads import mlp
from leoclr.backends.settings import (
    BatchNormSettings,
    NonNegative,
    Pairs,
    Positive,
    PositiveCount,
    RunFacts,
    undirected,
)

_EPSILON = 1e-5  # BatchNorm's


class Settings(BatchNormSettings):
    """Barlow Twins: cross-correlation pulled to the identity (`--backend barlow-twins`)."""

    default_views: ClassVar[str] = "byol"
    offers: ClassVar[tuple[str, ...]] = ("pairs",)
    small: ClassVar[Mapping[str, Any]] = {"hidden": 32, "dim": 32}

    layers: PositiveCount = Field(default=3, description="Linear layers of the projector.")
    hidden: PositiveCount = Field(default=8192, description="Width of the projector's hidden layers.")
    dim: PositiveCount = Field(default=8192, description="Dimension of the embedding.")
    off_diagonal: NonNegative = Field(default=0.0051, description="Weight of the off-diagonal terms.")
    scale: Positive = Field(default=1.0, description="Factor of the loss; with LARS it has almost no effect.")
    zero_init_residual: bool = Field(default=True, description="Initialise residual blocks as the identity.")

    def warnings(self, facts: RunFacts) -> Iterator[str]:
        if facts.accumulation > 1:
            yield f"with accumulation, Barlow Twins' correlations are of micro-batches of {facts.micro} images"


def cross_correlation(first_BD: Tensor, second_BD: Tensor) -> Tensor:
    """Of each dimension of one embedding with each of the other, over the batches of all ranks: `(D, D)`, float32.

    The gradient flows through the means and deviations too, and back to the rank that each embedding came from.
    """
    with torch.autocast(first_BD.device.type, enabled=False):
        first_ND, second_ND = (_standardised(gather_with_gradient(exact(each))) for each in (first_BD, second_BD))
        return first_ND.T @ second_ND / len(first_ND)


def barlow_twins(correlation_DD: Tensor, off_diagonal: float) -> Tensor:
    """The redundancy-reduction loss of a cross-correlation matrix."""
    diagonal_D = correlation_DD.diagonal()
    others = correlation_DD.square().sum() - diagonal_D.square().sum()
    return (diagonal_D - 1).square().sum() + off_diagonal * others


class BarlowTwins(PairMethod):
    """The redundancy-reduction backend."""

    def __init__(self, settings: Settings, facts: Facts) -> None:
        super().__init__()
        self.settings = settings
        backbone = facts.new_backbone()
        if settings.zero_init_residual:
            zero_last_norms(backbone)
        widths = (backbone.feature_dim, *[settings.hidden] * (settings.layers - 1), settings.dim)
        self.encoder = Encoder(backbone, mlp(widths, norm=True, last_bias=False), normalise=False)
        share_batch_norm(self, settings, facts)

    def forward(self, views: Mapping[str, Tensor], pairs: Pairs, now: Progress) -> Output:
        embeddings = {name: self.encoder(images) for name, images in views.items()}
        matrices = [cross_correlation(embeddings[one], embeddings[other]) for one, other in undirected(pairs)]
        loss, health = self.reduce(torch.stack(list(map(self._of_matrix, matrices)))), _health(matrices[0].detach())
        return Output(loss, embeddings[pairs[0][0]].detach(), health, embeddings, embeddings)

    def pull(self, predictions: Tensor, targets: Sequence[Tensor], negatives: Tensor | None = None) -> Tensor:
        return torch.stack([self._of_matrix(cross_correlation(predictions, target)) for target in targets])

    def reduce(self, losses: Tensor) -> Tensor:
        return losses.mean()

    def _of_matrix(self, correlation_DD: Tensor) -> Tensor:
        return self.settings.scale * barlow_twins(correlation_DD, self.settings.off_diagonal)


def _standardised(embeddings_ND: Tensor) -> Tensor:
    variance_D, mean_D = torch.var_mean(embeddings_ND, dim=0, correction=0)
    return (embeddings_ND - mean_D) * torch.rsqrt(variance_D + _EPSILON)


def _health(correlation_DD: Tensor) -> dict[str, Tensor]:
    diagonal_D, dim = correlation_DD.diagonal(), len(correlation_DD)
    others = (correlation_DD.square().sum() - diagonal_D.square().sum()).clamp_min(0) / max(1, dim * (dim - 1))
    return {"diagonal": diagonal_D.mean(), "off_diagonal": others.sqrt()}
