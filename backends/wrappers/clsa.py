"""CLSA: strongly augmented views learn the distribution over keys of the weak views (arXiv 2104.07713).

Each strong view adds `-sum p_weak log p_strong` for each weak view (its gradient is that of the divergence of the two),
where both are softmaxes over the keys of the whole batch and the queue, and the weak one is a constant: 25 terms with
crops of five sizes. A strong view is pulled to no key directly. The policy names strong views `strong1`, ...

Unlike in the released code, the keys of other images of the batch are no negatives of the method's own loss.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from leoclr.backends.extras import Extra
from leoclr.backends.losses import cross_entropy
from leoclr.backends.method import Output, Progress
from leoclr.backends.settings import Pairs, anchors_of
from leoclr.backends.wrappers.wrapper import Wrapper, targets_of, with_term


class Clsa(Wrapper):
    """The method's loss of the weak views, and the distributional loss of the strong ones."""

    def similarities(self, embeddings: Tensor, keys: Tensor) -> Tensor:
        """Logits over keys: the method's, which comes after this in the order of classes."""
        logits: Tensor = super().similarities(embeddings, keys)  # type: ignore[misc]
        return logits

    def forward(self, views: Mapping[str, Tensor], pairs: Pairs, now: Progress, **extras: Extra) -> Output:
        output = super().forward(views, pairs, now, **extras)
        strong = [self.predict(self.encoder(images)) for name, images in views.items() if name.startswith("strong")]
        losses = []
        for anchor in anchors_of(pairs):
            keys = targets_of(anchor, pairs, output)[0]
            weak = self.similarities(output.predictions[anchor].detach(), keys).softmax(dim=1)
            losses += [cross_entropy(weak, self.similarities(each, keys).log_softmax(dim=1)) for each in strong]
        return with_term(output, "distribution_loss", torch.stack(losses).sum(), self.of_policy["weight"])
