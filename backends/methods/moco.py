"""MoCo and LeOCLR: a momentum encoder computes the keys; a queue of old keys provides negatives.

With the `leoclr` views this is LeOCLR (arXiv 2403.06813, section 3): the original is the query, the crops are keys.
With `pairwise` views it is MoCo-v2 (arXiv 2003.04297).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from leoclr.backends.distributed import exchange, gather, rank, ranks
from leoclr.backends.losses import info_nce
from leoclr.backends.method import (
    Facts,
    Output,
    PairMethod,
    Progress,
    encode_views,
    momentum_copy,
    momentum_update,
    reduce_pairs,
)
from leoclr.backends.networks.backbones import Backbone
from leoclr.backends.networks.batchnorm import split_batch_norm
from leoclr.backends.networks.encoder import contrastive_encoder
from leoclr.backends.queue import KeyQueue
from leoclr.backends.settings import (
    Fraction,
    MethodSettings,
    Pairs,
    Positive,
    PositiveCount,
    RunFacts,
    anchors_of,
    positives_of,
)
from leoclr.backends.step_inputs import sent, step_generator, step_input


class Settings(MethodSettings):
    """MoCo and LeOCLR: momentum encoder and queue (`--backend moco`)."""

    default_views: ClassVar[str] = "leoclr"
    section: ClassVar[str] = "moco"
    offers: ClassVar[tuple[str, ...]] = ("pairs", "similarities")
    small: ClassVar[Mapping[str, Any]] = {"queue": 16, "bn_splits": 2}

    queue: PositiveCount = Field(
        default=65536, description="Keys in the queue; MoCo-v2's value, as the paper states none."
    )
    momentum: Fraction = Field(default=0.999, description="EMA decay of the key encoder.")
    temperature: Positive = Field(
        default=0.2, description="InfoNCE temperature; MoCo-v2's value, as the paper states none."
    )
    enqueue: Literal["first", "last", "all"] = Field(
        default="first",
        description="Positives whose keys enter the queue (LeOCLR: X1, X2, both); the paper does not say.",
    )
    reduction: Literal["sum", "mean"] = Field(
        default="sum", description="Reduction over the pairs of an image; the paper's equation 3 sums."
    )
    bn_splits: PositiveCount = Field(
        default=8,
        description="Groups of the global batch with separate BatchNorm statistics; at least one per process.",
    )

    def problems(self, facts: RunFacts) -> Iterator[str]:
        splits = max(1, self.bn_splits // facts.ranks)
        if facts.micro % splits or facts.micro // splits < 2:
            what = "one image" if facts.micro == 1 else f"{facts.micro} images"
            fewer = f", or --set {self.section}.bn_splits=1" if splits > 1 and facts.micro > 1 else ""
            yield (
                f"a batch of {what} in a process cannot be split into groups of two images or more for BatchNorm, "
                f"{splits} in number; change --batch-size{fewer}"
            )

    def warnings(self, facts: RunFacts) -> Iterator[str]:
        if self.queue > facts.images:
            yield (
                f"the queue of {self.queue:,} keys is longer than the data set of {facts.images:,} images: an image is "
                f"among its own negatives; --set {self.section}.queue=... to about a tenth of the data set"
            )

    def batch_norm_groups(self, facts: RunFacts, on_gpus: bool) -> int:
        return max(1, self.bn_splits // facts.ranks) * facts.ranks * facts.accumulation

    def forward_passes(self, facts: RunFacts) -> float:
        return facts.passes(anchors_of(facts.pairs), positives_of(facts.pairs))

    def chance(self, facts: RunFacts) -> float | None:
        return math.log(1 + self.queue) * (len(facts.pairs) if self.reduction == "sum" else 1)


class MoCo(PairMethod):
    """The momentum-queue backend.

    Attributes:
        encoder: Trained by gradient: f_q.
        key_encoder: Its momentum copy: f_k.
        queue: The negatives.
    """

    def __init__(self, settings: Settings, facts: Facts) -> None:
        super().__init__()
        self.settings, self.seed = settings, facts.seed
        self.encoder = contrastive_encoder(facts.new_backbone(), *facts.projector)
        split_batch_norm(self.encoder, max(1, settings.bn_splits // ranks()))
        self.key_encoder = momentum_copy(self.encoder)
        self.queue = KeyQueue(settings.queue, facts.projector[2], facts.seed)
        self.shuffles = self.encoder.batch_statistics and (settings.bn_splits > 1 or ranks() > 1)
        self._waiting: list[Tensor] = []

    def forward(self, views: Mapping[str, Tensor], pairs: Pairs, now: Progress) -> Output:
        positives = positives_of(pairs)
        keys = self._encode_keys({name: views[name] for name in positives}, now)
        losses, queries = [], {}
        for anchor in anchors_of(pairs):
            queries[anchor] = self.encoder(views[anchor])
            own = [keys[positive] for name, positive in pairs if name == anchor]
            losses.append(self.pull(queries[anchor], own))
        chosen = {"first": positives[:1], "last": positives[-1:], "all": positives}[self.settings.enqueue]
        self._waiting.extend(keys[name] for name in chosen)
        embeddings = next(iter(queries.values())).detach()
        return Output(self.reduce(torch.cat(losses)), embeddings, predictions=queries, targets=keys)

    def pull(self, predictions: Tensor, targets: Sequence[Tensor], negatives: Tensor | None = None) -> Tensor:
        return info_nce(predictions, targets, self.queue.keys, self.settings.temperature, negatives)

    def reduce(self, losses: Tensor) -> Tensor:
        return reduce_pairs(losses, self.settings.reduction)

    def similarities(self, embeddings: Tensor, keys: Tensor) -> Tensor:
        """Logits of embeddings over the keys of the whole batch and the queue, `(n, batch + queue)`."""
        with torch.autocast(embeddings.device.type, enabled=False):
            return (embeddings / self.settings.temperature) @ torch.cat([gather(keys), self.queue.keys]).T

    @torch.no_grad()
    def after_update(self, now: Progress) -> None:
        """Move the key encoder, then enqueue: no key is ever among the negatives of its own batch."""
        momentum_update(self.key_encoder, self.encoder, self.settings.momentum)
        for keys in self._waiting:
            self.enqueue(gather(keys))
        self._waiting.clear()

    def enqueue(self, keys: Tensor) -> None:
        """Take in the keys of all processes."""
        self.queue.enqueue(keys)

    def backbones(self) -> dict[str, Backbone]:
        return {"encoder.backbone": self.encoder.backbone, "key_encoder.backbone": self.key_encoder.backbone}

    @torch.no_grad()
    def _encode_keys(self, views: Mapping[str, Tensor], now: Progress) -> dict[str, Tensor]:
        """Keys of some views, sg(f_k(X))."""
        if not self.shuffles:
            return encode_views(self.key_encoder, views)
        batch = len(next(iter(views.values())))
        if ranks() > 1:
            order = self._shuffle_order(batch * ranks(), now)
            return {name: self._encode_shuffled(images, order) for name, images in views.items()}
        order = step_input(lambda now: self._shuffle_order(batch, now), now, self.queue.keys.device)
        shuffled = encode_views(self.key_encoder, {name: images[order] for name, images in views.items()})
        return {name: torch.empty_like(keys).index_copy_(0, order, keys) for name, keys in shuffled.items()}

    def _encode_shuffled(self, images: Tensor, order: Tensor) -> Tensor:
        """The images are shuffled over all groups and ranks first, so that query and key of an image do not share
        BatchNorm statistics (shuffling BN, MoCo section 3.3)."""
        keys = gather(self.key_encoder(exchange(images, order)))
        own = torch.argsort(order)[rank() * len(images) :][: len(images)]
        return keys[sent(own, keys.device)]

    def _shuffle_order(self, images: int, now: Progress) -> Tensor:
        """The shuffle of a step's images, on the CPU."""
        generator = step_generator(self.seed, now)
        return torch.randperm(images, generator=generator)
