"""Sinkhorn-Knopp: soft assignment of a batch to prototypes that uses all prototypes equally."""

from __future__ import annotations

import torch
from torch import Tensor

from leoclr.backends.distributed import gather


@torch.no_grad()
def sinkhorn(scores_BK: Tensor, epsilon: float, iterations: int) -> Tensor:
    """The codes of this rank's rows, over the batches of all ranks: `(B, K)`, each row with the sum 1. No gradient.

    SwAV, equation 3 and its appendix: exp(scores / epsilon), of which columns and rows are scaled by turns.

    Args:
        scores_BK: In float32 or better. The largest of all is taken off first: exp(1 / 0.05) would overflow fp16.
        epsilon: Of the entropy term: the smaller, the sharper the codes.
        iterations: Times that the columns and then the rows are scaled.
    """
    scaled = scores_BK / epsilon
    codes = torch.exp(scaled - gather(scaled.max()[None]).max())
    for _ in range(iterations):
        of_prototypes_K = gather(codes.sum(dim=0, keepdim=True)).sum(dim=0)
        codes = codes / of_prototypes_K.clamp_min(torch.finfo(codes.dtype).tiny)
        codes = codes / codes.sum(dim=1, keepdim=True).clamp_min(torch.finfo(codes.dtype).tiny)
    return codes
