"""The encoder of a contrastive method: backbone, projector, normalisation."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leoclr.backends.networks.backbones import Backbone
from leoclr.backends.networks.batchnorm import has_batch_norm


class Encoder(nn.Module):
    """Images to embeddings on the unit sphere: f(X) of the paper.

    Args:
        backbone: Its features are what is kept after pre-training.
        hidden: Width of the projector's hidden layers; 0 takes the backbone's feature dimension (MoCo-v2, SimCLR).
        dim: Dimension of the embedding.
        layers: Linear layers of the projector, with ReLUs between them.

    Attributes:
        batch_statistics: Whether, in training, the embedding of an image depends on the others in its batch.
    """

    def __init__(self, backbone: Backbone, hidden: int, dim: int, layers: int = 2) -> None:
        super().__init__()
        widths = [backbone.feature_dim, *[hidden or backbone.feature_dim] * (layers - 1), dim]
        linear = [nn.Linear(before, after) for before, after in pairwise(widths)]
        self.backbone = backbone
        self.projector = nn.Sequential(*(module for layer in linear for module in (layer, nn.ReLU())))[:-1]
        self.dim = dim
        self.batch_statistics = has_batch_norm(backbone)

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings, shape `(n, dim)`, of length one; never below float32, whatever autocast makes of the layers."""
        projected = self.projector(self.backbone(images))
        with torch.autocast(projected.device.type, enabled=False):
            return F.normalize(projected if projected.dtype == torch.float64 else projected.float(), dim=1)
