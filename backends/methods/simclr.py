"""SimCLR: one encoder, trained end to end through all views, with the rest of the batch as negatives.

With the `leoclr` views this is the end-to-end LeOCLR of the paper's Table 5: the crops are pulled to the original and
never to each other. With `pairwise` views it is SimCLR (arXiv 2002.05709).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor

from leoclr.backends.losses import nt_xent
from leoclr.backends.method import Facts, Method, Output, Progress, encode_views, reduce_pairs
from leoclr.backends.networks.backbones import Backbone
from leoclr.backends.networks.batchnorm import split_batch_norm, sync_batch_norm
from leoclr.backends.networks.encoder import Encoder, contrastive_encoder
from leoclr.backends.settings import MethodSettings, Pairs, Positive, RunFacts


class Settings(MethodSettings):
    """SimCLR and end-to-end LeOCLR: one encoder, negatives from the batch (`--backend simclr`)."""

    default_views: ClassVar[str] = "leoclr"

    temperature: Positive = Field(
        default=0.1, description="NT-Xent temperature; SimCLR's for ImageNet, 0.5 for CIFAR-10."
    )
    reduction: Literal["sum", "mean"] = Field(
        default="sum", description="Reduction over the pairs of an image; the paper's equation 3 sums."
    )
    stop_gradient: bool = Field(
        default=False, description="Stop the gradient through positives; the paper's end-to-end form does not."
    )
    sync_batchnorm: bool = Field(default=True, description="BatchNorm statistics over all GPUs (CUDA only).")

    def problems(self, facts: RunFacts) -> Iterator[str]:
        if facts.micro * facts.ranks < 2:
            yield "SimCLR's negatives are the other images of the batch, and a batch of one has none"

    def warnings(self, facts: RunFacts) -> Iterator[str]:
        if facts.accumulation > 1:
            yield f"with accumulation, SimCLR's negatives come from micro-batches of {facts.micro} images only"


class SimCLR(Method):
    """The end-to-end backend."""

    def __init__(self, settings: Settings, facts: Facts) -> None:
        super().__init__()
        self.settings = settings
        self.encoder = contrastive_encoder(facts.new_backbone(), *facts.projector)
        if settings.sync_batchnorm and facts.device_type == "cuda" and facts.ranks > 1:
            self.encoder = cast(Encoder, sync_batch_norm(self.encoder))
        else:
            split_batch_norm(self.encoder, 1)

    def forward(self, views: Mapping[str, Tensor], pairs: Pairs, now: Progress) -> Output:
        embeddings = encode_views(self.encoder, views)
        losses = [
            nt_xent(embeddings[anchor], embeddings[positive], self.settings.temperature, self.settings.stop_gradient)
            for anchor, positive in pairs
        ]
        return Output(reduce_pairs(torch.stack(losses), self.settings.reduction), embeddings[pairs[0][0]].detach())

    def backbones(self) -> dict[str, Backbone]:
        return {"encoder.backbone": self.encoder.backbone}
