"""The seam between a contrastive method and everything else.

A backend is an `nn.Module` that is told the views of a batch and which of them are positives of each other, encodes
each view once in the role the pairs give it, and returns a loss. It does not know how views are made; what makes views
does not know of backends. One file a backend; a new one also needs its settings and a word in `build.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from leoclr.backends.networks.encoder import Encoder

Pairs = tuple[tuple[str, str], ...]


class StepOutput(NamedTuple):
    """The loss, a scalar with gradient, and the first anchor's embeddings, `(n, dim)`, to watch for collapse."""

    loss: Tensor
    embeddings: Tensor


class Backend(Protocol):
    """What the training loop needs of a contrastive method, beside being an `nn.Module`."""

    encoder: Encoder

    def __call__(self, views: Mapping[str, Tensor], pairs: Pairs, step: int) -> StepOutput:
        """The loss of this rank's part of a batch.

        Args:
            views: Normalised images by view name, each of shape `(n, 3, size, size)`; row i is image i in all.
            pairs: (anchor, positive) view names.
            step: Number of the step; all randomness of the backend comes from it and a seed.
        """
        ...

    def after_step(self) -> None:
        """Called once after each optimizer step."""
        ...


def anchors_of(pairs: Pairs) -> list[str]:
    """The views that are anchors, each once, in order."""
    return list(dict.fromkeys(anchor for anchor, _ in pairs))


def encode_views(encoder: Encoder, views: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The embeddings of each view, in one pass where that makes no difference: without statistics over the batch."""
    if encoder.batch_statistics:
        return {name: encoder(images) for name, images in views.items()}
    embeddings = encoder(torch.cat(list(views.values())))
    return dict(zip(views, embeddings.chunk(len(views)), strict=True))


def reduce_pairs(losses: Tensor, reduction: Literal["sum", "mean"]) -> Tensor:
    """One loss from those of all pairs: their sum (LeOCLR, equation 3) or mean."""
    return losses.sum() if reduction == "sum" else losses.mean()


def spread(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """How far embeddings are from collapse.

    Returns:
        The standard deviation per dimension, averaged and multiplied by sqrt(dim): 1 where the unit sphere is filled
        evenly, 0 at collapse. And the effective rank (Roy and Vetterli, 2007), exp of the entropy of the normalised
        singular values: from 1, one direction, to dim.
    """
    embeddings = embeddings.float()
    deviation = embeddings.std(dim=0).mean() * embeddings.shape[1] ** 0.5
    values = torch.linalg.svdvals(embeddings - embeddings.mean(dim=0))
    share = values / values.sum().clamp_min(1e-12)
    return deviation, torch.exp(-(share * share.clamp_min(1e-12).log()).sum())
