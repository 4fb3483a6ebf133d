"""The encoder of a method: backbone, projector, normalisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leoclr.backends.networks.backbones import Backbone
from leoclr.backends.networks.batchnorm import has_batch_norm
from leoclr.backends.networks.heads import mlp


class Encoder(nn.Module):
    """Images to embeddings: f(X) of the paper, on the unit sphere unless the method wants their length.

    Args:
        backbone: Its features are what is kept after pre-training.
        projector: From the backbone's features to embeddings.
        normalise: Whether embeddings have length one.

    Attributes:
        batch_statistics: Whether, in training, the embedding of an image depends on the others in its batch.
    """

    def __init__(self, backbone: Backbone, projector: nn.Module, normalise: bool = True) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector
        self.normalise = normalise
        self.batch_statistics = has_batch_norm(backbone) or has_batch_norm(projector)

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings, shape `(n, dim)`; never below float32, whatever autocast makes of the layers."""
        projected: Tensor = self.projector(self.backbone(images))
        with torch.autocast(projected.device.type, enabled=False):
            exact = projected if projected.dtype == torch.float64 else projected.float()
            return F.normalize(exact, dim=1) if self.normalise else exact


def contrastive_encoder(backbone: Backbone, layers: int, hidden: int, dim: int) -> Encoder:
    """The encoder of MoCo-v2 and SimCLR.

    Args:
        layers: Linear layers of the projector, with ReLUs between them.
        hidden: Width of its hidden layers; 0 takes the backbone's feature dimension.
        dim: Dimension of the embedding.
    """
    width = backbone.feature_dim
    return Encoder(backbone, mlp([width, *[hidden or width] * (layers - 1), dim]))
