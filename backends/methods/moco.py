"""MoCo: an encoder, its slowly moving copy that makes the keys, and a queue of old keys as negatives.

With the `leoclr` views this is LeOCLR (arXiv 2403.06813, section 3): the original is the query, the crops are keys.
With `pairwise` views it is MoCo-v2 (arXiv 2003.04297).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from leoclr.backends.distributed import gather, rank, ranks
from leoclr.backends.losses import info_nce
from leoclr.backends.method import Pairs, StepOutput, anchors_of, encode_views, reduce_pairs
from leoclr.backends.networks.batchnorm import split_batch_norm
from leoclr.backends.networks.encoder import Encoder
from leoclr.backends.queue import KeyQueue


class MoCo(nn.Module):
    """The momentum-queue backend.

    Args:
        encoder: Trained by gradient: f_q. Its BatchNorm is put in splits here.
        queue: The negatives, of the encoder's dimension.
        momentum: m of `theta_k <- m theta_k + (1 - m) theta_q`.
        enqueue: Which positives' keys become negatives of later steps: the first positive's of the policy (X1 of
            LeOCLR), the last's (X2), or all.
        reduction: Whether the losses of an image's pairs are summed (equation 3) or averaged.
        bn_splits: Groups of the global batch with statistics of their own.
        seed: Of the shuffle of keys among the groups.
    """

    def __init__(
        self,
        encoder: Encoder,
        queue: KeyQueue,
        momentum: float,
        temperature: float,
        enqueue: Literal["first", "last", "all"] = "first",
        reduction: Literal["sum", "mean"] = "sum",
        bn_splits: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        split_batch_norm(encoder, max(1, bn_splits // ranks()))
        self.encoder = encoder
        self.key_encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.queue = queue
        self.momentum = momentum
        self.temperature = temperature
        self.enqueue = enqueue
        self.reduction = reduction
        self.shuffles = encoder.batch_statistics and (bn_splits > 1 or ranks() > 1)
        self.seed = seed
        self._waiting: list[Tensor] = []

    def forward(self, views: Mapping[str, Tensor], pairs: Pairs, step: int) -> StepOutput:
        """The loss of this rank's part of a batch; see `leoclr.backends.method`."""
        positives = list(dict.fromkeys(positive for _, positive in pairs))
        keys = self._encode_keys({name: views[name] for name in positives}, step)
        losses, embeddings = [], []
        for anchor in anchors_of(pairs):
            query = self.encoder(views[anchor])
            embeddings.append(query.detach())
            own = [keys[positive] for name, positive in pairs if name == anchor]
            losses.append(info_nce(query, own, self.queue.keys, self.temperature))
        chosen = {"first": positives[:1], "last": positives[-1:], "all": positives}[self.enqueue]
        self._waiting.extend(keys[name] for name in chosen)
        return StepOutput(reduce_pairs(torch.cat(losses), self.reduction), embeddings[0])

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the key encoder, then enqueue: no key is ever among the negatives of its own batch."""
        theta_k: list[Tensor] = list(self.key_encoder.parameters())
        theta_q: list[Tensor] = list(self.encoder.parameters())
        torch._foreach_lerp_(theta_k, theta_q, 1 - self.momentum)
        for keys in self._waiting:
            self.queue.enqueue(gather(keys))
        self._waiting.clear()

    @torch.no_grad()
    def _encode_keys(self, views: Mapping[str, Tensor], step: int) -> dict[str, Tensor]:
        """Keys of some views, sg(f_k(X))."""
        if not self.shuffles:
            return encode_views(self.key_encoder, views)
        return {name: self._encode_shuffled(images, step) for name, images in views.items()}

    def _encode_shuffled(self, images: Tensor, step: int) -> Tensor:
        """The images are shuffled over all groups and ranks first, so that query and key of an image do not share
        BatchNorm statistics (shuffling BN, MoCo section 3.3)."""
        everything, batch = gather(images), len(images)
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + step) % 2**64)
        order = torch.randperm(len(everything), generator=generator).to(images.device, non_blocking=True)
        mine = order[rank() * batch :][:batch]
        keys = gather(self.key_encoder(everything[mine]))
        return keys[torch.argsort(order)][rank() * batch :][:batch]
