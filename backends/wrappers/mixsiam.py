"""MixSiam: a mixture of the two views of an image, pulled to the maximum of both views' targets (arXiv 2111.02679).

There is no published code. Open in the paper and chosen here: the share is drawn for the whole batch from Beta(1, 1),
the maximum is taken of the targets as the method compares them (of length one again, where they are), and the term
counts as much as the method's own loss.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from leoclr.backends.extras import Extra
from leoclr.backends.method import Output, Progress
from leoclr.backends.settings import Pairs
from leoclr.backends.wrappers.mixing import generator
from leoclr.backends.wrappers.wrapper import Wrapper, with_term


class MixSiam(Wrapper):
    """The method's loss, and that of the mixture of its two views. The policy's pairs are symmetric."""

    def forward(self, views: Mapping[str, Tensor], pairs: Pairs, now: Progress, **extras: Extra) -> Output:
        output = super().forward(views, pairs, now, **extras)
        first, second = pairs[0]
        alpha = self.of_policy["alpha"]
        share = float(generator(self.draws, now.step, 0).beta(alpha, alpha))
        prediction = self.predict(self.encoder(share * views[first] + (1 - share) * views[second]))
        target = torch.maximum(output.targets[first], output.targets[second]).detach()
        if self.encoder.normalise:
            target = F.normalize(target, dim=1)
        return with_term(output, "mixture_loss", self.reduce(self.pull(prediction, [target])), self.of_policy["weight"])
