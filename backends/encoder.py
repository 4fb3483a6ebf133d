"""The encoder of a contrastive method: backbone, projector, normalisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leoclr.backends.backbones import Backbone
from leoclr.backends.batchnorm import has_batch_norm


class Encoder(nn.Module):
    """Images to embeddings on the unit sphere: f(X) of the paper.

    Args:
        backbone: Its features are what is kept after pre-training.
        hidden: Width of the projector's hidden layer; 0 takes the backbone's feature dimension (MoCo-v2, SimCLR).
        dim: Dimension of the embedding.

    Attributes:
        batch_statistics: Whether, in training, the embedding of an image depends on the others in its batch.
    """

    def __init__(self, backbone: Backbone, hidden: int, dim: int) -> None:
        super().__init__()
        hidden = hidden or backbone.feature_dim
        self.backbone = backbone
        self.projector = nn.Sequential(nn.Linear(backbone.feature_dim, hidden), nn.ReLU(), nn.Linear(hidden, dim))
        self.dim = dim
        self.batch_statistics = has_batch_norm(backbone)

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings, shape `(n, dim)`, of length one; never below float32, whatever autocast makes of the layers."""
        projected = self.projector(self.backbone(images))
        with torch.autocast(projected.device.type, enabled=False):
            return F.normalize(projected if projected.dtype == torch.float64 else projected.float(), dim=1)
