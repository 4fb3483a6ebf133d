"""Contrastive losses as pure functions. B = batch, N = batch over all ranks, D = embedding, K = queue, P = positives.

The contrastive ones take embeddings of length one and return means over the batch, in the precision of their input,
also where autocast is on: at a temperature of 0.1, bf16 similarities would be off by 4 %. Temperature is what
similarities are divided by.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from leoclr.backends.distributed import gather_with_gradient, rank


def exact(values: Tensor) -> Tensor:
    """The values in float32 or float64: what losses are computed in, whatever autocast made of the layers before."""
    return values if values.dtype == torch.float64 else values.float()


def cosine(first_BD: Tensor, second_BD: Tensor) -> Tensor:
    """The cosine of each pair of rows, which may have any length: shape `(B,)`."""
    with torch.autocast(first_BD.device.type, enabled=False):
        return F.cosine_similarity(exact(first_BD), exact(second_BD), dim=1)


def info_nce(
    anchor_BD: Tensor,
    positives_PBD: Sequence[Tensor],
    negatives_KD: Tensor,
    temperature: float,
    own_negative_BD: Tensor | None = None,
) -> Tensor:
    """LeOCLR's equation 2, for each of the anchor's positives: shape `(P,)`.

    `l(u, v) = -log(exp(u.v/t) / (exp(u.v/t) + sum_n exp(u.v_n/t)))`. A positive never stands in the denominator of
    another one. The sum over the negatives is the same for all positives of an anchor and is computed once, so that
    a second positive costs B products and not B x K.

    Args:
        own_negative_BD: One more negative for each anchor.
    """
    with torch.autocast(anchor_BD.device.type, enabled=False):
        scaled_BD = anchor_BD / temperature  # and not the B x K products: that would be a second copy of them
        log_negatives_B = torch.logsumexp(scaled_BD @ negatives_KD.T, dim=1)
        if own_negative_BD is not None:
            log_negatives_B = torch.logaddexp(log_negatives_B, (scaled_BD * own_negative_BD).sum(dim=1))
        losses = []
        for positive_BD in positives_PBD:
            positive_B = (scaled_BD * positive_BD).sum(dim=1)
            losses.append((torch.logaddexp(positive_B, log_negatives_B) - positive_B).mean())
        return torch.stack(losses)


def nt_xent(first_BD: Tensor, second_BD: Tensor, temperature: float, stop_gradient: bool = False) -> Tensor:
    """SimCLR's loss of one pair of views (arXiv 2002.05709, equation 1), over the batches of all ranks: a scalar.

    Each embedding of either view is an anchor once; its positive is the other view of its image, its negatives are
    both views of all other images: 2N - 2. Averaging the gradients over ranks, as DistributedDataParallel does, gives
    the gradient of the loss of the whole batch.

    Args:
        stop_gradient: Whether the positive of an anchor is a constant.
    """
    batch, start = len(first_BD), rank() * len(first_BD)
    anchors_2BD = torch.cat([first_BD, second_BD])
    all_2ND = torch.cat([gather_with_gradient(first_BD), gather_with_gradient(second_BD)])
    total = len(all_2ND) // 2
    with torch.autocast(first_BD.device.type, enabled=False):
        similarity_2B2N = (anchors_2BD / temperature) @ all_2ND.T
    rows = torch.arange(batch, device=first_BD.device)
    itself = torch.cat([start + rows, total + start + rows])
    positive = torch.cat([total + start + rows, start + rows])
    similarity_2B2N.scatter_(1, itself[:, None], float("-inf"))
    if stop_gradient:
        constant = torch.cat([second_BD, first_BD]).detach()
        similarity_2B2N.scatter_(1, positive[:, None], (anchors_2BD * constant).sum(dim=1, keepdim=True) / temperature)
    return F.cross_entropy(similarity_2B2N, positive)


def cross_entropy(targets: Tensor, log_predictions: Tensor) -> Tensor:
    """`-sum_k target_k log prediction_k`, the mean over the batch."""
    return -(targets * log_predictions).sum(dim=-1).mean()
