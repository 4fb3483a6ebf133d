"""SimCLR: one encoder, trained end to end through all views; the rest of the batch provides negatives.

With the `leoclr` views this is the end-to-end LeOCLR of the paper's Table 5: the crops are pulled to the original and
never to each other. With `pairwise` views it is SimCLR (arXiv 2002.05709).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from leoclr.backends.losses import nt_xent
from leoclr.backends.method import (
    Facts,
    Output,
    PairMethod,
    Progress,
    encode_views,
    reduce_pairs,
    share_batch_norm,
)
from leoclr.backends.networks.encoder import contrastive_encoder
from leoclr.backends.settings import MethodSettings, Pairs, Positive, RunFacts


class Settings(MethodSettings):
    """SimCLR and end-to-end LeOCLR: one encoder, negatives from the batch (`--backend simclr`)."""

    default_views: ClassVar[str] = "leoclr"
    offers: ClassVar[tuple[str, ...]] = ("pairs",)

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

    def chance(self, facts: RunFacts) -> float | None:
        terms = len(facts.pairs) if self.reduction == "sum" else 1
        return terms * math.log(2 * facts.micro * facts.ranks - 1)


class SimCLR(PairMethod):
    """The end-to-end backend."""

    def __init__(self, settings: Settings, facts: Facts) -> None:
        super().__init__()
        self.settings = settings
        self.encoder = contrastive_encoder(facts.new_backbone(), *facts.projector)
        share_batch_norm(self, settings, facts)

    def forward(self, views: Mapping[str, Tensor], pairs: Pairs, now: Progress) -> Output:
        embeddings = encode_views(self.encoder, views)
        losses = [self.pull(embeddings[anchor], [embeddings[positive]]) for anchor, positive in pairs]
        return Output(
            self.reduce(torch.cat(losses)),
            embeddings[pairs[0][0]].detach(),
            predictions=embeddings,
            targets=embeddings,
        )

    def pull(self, predictions: Tensor, targets: Sequence[Tensor], negatives: Tensor | None = None) -> Tensor:
        """The negatives are the other images of the batch; a row's own are not used."""
        temperature, stop_gradient = self.settings.temperature, self.settings.stop_gradient
        return torch.stack([nt_xent(predictions, target, temperature, stop_gradient) for target in targets])

    def reduce(self, losses: Tensor) -> Tensor:
        return reduce_pairs(losses, self.settings.reduction)
