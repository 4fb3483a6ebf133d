"""Un-Mix: mixtures of images, each pulled to the targets of both of its images by their shares (arXiv 2003.05438).

For each anchor one more forward pass: `share * L(mixture, own target) + (1 - share) * L(mixture, partner's target)` is
added to the method's loss. Mixup or CutMix is drawn for the whole batch.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from leoclr.backends.extras import Extra
from leoclr.backends.method import Output, Progress
from leoclr.backends.settings import Pairs, anchors_of
from leoclr.backends.wrappers.mixing import generator, mixture, partners
from leoclr.backends.wrappers.wrapper import Wrapper, targets_of, with_term


class UnMix(Wrapper):
    """The method's loss, and that of mixtures of its anchors."""

    def forward(self, views: Mapping[str, Tensor], pairs: Pairs, now: Progress, **extras: Extra) -> Output:
        output = super().forward(views, pairs, now, **extras)
        losses = []
        for number, anchor in enumerate(anchors_of(pairs)):
            random = generator(self.draws, now.step, number)
            mixed, share = mixture(views[anchor], self.of_policy["alpha"], self.of_policy["cutmix"], random)
            own = targets_of(anchor, pairs, output)
            both = self.pull(self.predict(self.encoder(mixed)), [*own, *(partners(target) for target in own)])
            losses.append(share * both[: len(own)] + (1 - share) * both[len(own) :])
        return with_term(output, "mixture_loss", self.reduce(torch.cat(losses)))
