"""SimCLR: one encoder, trained end to end through all views, with the rest of the batch as negatives.

With the `leoclr` views this is the end-to-end LeOCLR of the paper's Table 5: the crops are pulled to the original and
never to each other. With `pairwise` views it is SimCLR (arXiv 2002.05709).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from leoclr.backends.losses import nt_xent
from leoclr.backends.method import Pairs, StepOutput, encode_views, reduce_pairs
from leoclr.backends.networks.encoder import Encoder


class SimCLR(nn.Module):
    """The end-to-end backend.

    Args:
        reduction: Whether the losses of an image's pairs are summed (equation 3) or averaged.
        stop_gradient: Whether the positive of an anchor is a constant. The paper's end-to-end form learns both.
    """

    def __init__(
        self,
        encoder: Encoder,
        temperature: float,
        reduction: Literal["sum", "mean"] = "sum",
        stop_gradient: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.temperature = temperature
        self.reduction = reduction
        self.stop_gradient = stop_gradient

    def forward(self, views: Mapping[str, Tensor], pairs: Pairs, step: int) -> StepOutput:
        """The loss of this rank's part of a batch; see `leoclr.backends.method`."""
        embeddings = encode_views(self.encoder, views)
        losses = [
            nt_xent(embeddings[anchor], embeddings[positive], self.temperature, self.stop_gradient)
            for anchor, positive in pairs
        ]
        return StepOutput(reduce_pairs(torch.stack(losses), self.reduction), embeddings[pairs[0][0]].detach())

    def after_step(self) -> None:
        """Nothing to do: there is no state beside the encoder."""
