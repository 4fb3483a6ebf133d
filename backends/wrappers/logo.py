"""LoGo: local crops are pulled to both global crops, and the two locals of an image made unlike each other
(Zhang and others, CVPR 2022).

How alike two local crops are is learned by a regressor, so that a step has three phases, each with an update:

1. The regressor learns to tell local pairs of one image, with noise added, from pairs of two images.
2. The encoder makes the regressor take the locals of an image for those of two. This gradient is clipped to a small
   part of the norm that the contrastive gradient had in the step before.
3. The method's own loss: the mean over six pairs, both directions of the globals and each local to both globals.

Unlike in the released code, phases 2 and 3 share the optimizer's momentum, and the momentum encoder moves once a step.
The regressor's rate is the peak learning rate, constant. There is no published list of scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leoclr.backends.distributed import rank, ranks
from leoclr.backends.extras import Extra
from leoclr.backends.method import Facts, Output, ParameterGroup, Progress, share_batch_norm
from leoclr.backends.networks.heads import mlp
from leoclr.backends.settings import MethodSettings, Pairs
from leoclr.backends.step_inputs import sent
from leoclr.backends.wrappers.mixing import generator, partners
from leoclr.backends.wrappers.wrapper import Wrapper

_HIDDEN = 256
_NOISE = 0.3  # over the root of the embedding's dimension
_SHARE = 0.015  # of the contrastive gradient's norm
_LARGEST = 100.0
_REGRESSOR, _UNLIKE, _CONTRASTIVE = range(3)


class LoGo(Wrapper):
    """The method's loss of six pairs, and the dissimilarity of the local crops.

    Attributes:
        regressor: Two embeddings, side by side, to how alike they are.
        contrastive_norm: Of the newest contrastive gradient.
    """

    phases: ClassVar[int] = 3
    contrastive_norm: Tensor

    def __init__(self, settings: MethodSettings, facts: Facts) -> None:
        super().__init__(settings, facts)
        dim = [part.out_features for part in self.encoder.projector.modules() if isinstance(part, nn.Linear)][-1]
        self.regressor = mlp([2 * dim, _HIDDEN, _HIDDEN, 1], norm=True)
        share_batch_norm(self.regressor, settings, facts)
        self.register_buffer("contrastive_norm", torch.zeros(()))
        self.groups = (ParameterGroup(r"^regressor\.", lr=1.0, constant_lr=True), *self.groups)

    def forward(self, views: Mapping[str, Tensor], pairs: Pairs, now: Progress, **extras: Extra) -> Output:
        if now.phase == _CONTRASTIVE:
            output = super().forward(views, pairs, now, **extras)
        else:
            with torch.set_grad_enabled(now.phase == _UNLIKE):
                first, second = self.encoder(views["local1"]), self.encoder(views["local2"])
            if now.phase == _REGRESSOR:
                loss = self.regressor_loss(first, second, now.step)
            else:
                loss = F.softplus(self.alike(first, second)).mean()
            output = Output(loss, first.detach())
        # A process group waits for the gradient of every parameter; those of other phases are zero, and dropped.
        unused = sum(
            (p.sum() for p in self.parameters() if p.requires_grad), start=torch.zeros((), device=output.loss.device)
        )
        return output._replace(loss=output.loss + 0.0 * unused, predictions={}, targets={})

    def reduce(self, losses: Tensor) -> Tensor:
        """The mean over the pairs, whatever the method's own settings say."""
        return losses.mean()

    def alike(self, first: Tensor, second: Tensor) -> Tensor:
        """How alike the regressor takes two embeddings for, `(n,)`."""
        result: Tensor = self.regressor(torch.cat([first, second], dim=1)).float().squeeze(1)
        return result

    def regressor_loss(self, first: Tensor, second: Tensor, step: int) -> Tensor:
        """Pairs of one image, with noise, against pairs of two images; both in both orders."""
        batch, dim = first.shape
        shape = (2, ranks(), batch, dim)  # that of all processes, so that their number changes nothing
        noise = generator(self.draws, step, 0).standard_normal(shape)[:, rank()] * _NOISE / dim**0.5
        both = zip((first, second), noise, strict=True)
        one, other = (part + sent(torch.from_numpy(n), part.device).to(part.dtype) for part, n in both)
        same = F.softplus(-self.alike(one, other)) + F.softplus(-self.alike(other, one))
        two = F.softplus(self.alike(first, partners(second))) + F.softplus(self.alike(second, partners(first)))
        return (same + two).mean() / 2

    def before_update(self, now: Progress) -> None:
        """Leave each phase the gradients that are its own, and clip those of the encoder."""
        for name, parameter in self.named_parameters():
            if name.startswith("regressor.") != (now.phase == _REGRESSOR):
                parameter.grad = None
        trained = [parameter for parameter in self.parameters() if parameter.grad is not None]
        if now.phase == _UNLIKE:
            norm = nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
            nn.utils.clip_grads_with_norm_(trained, 1.0, norm / (_SHARE * self.contrastive_norm).clamp_min(1e-12))
        elif now.phase == _CONTRASTIVE:
            norm = nn.utils.clip_grad_norm_(trained, _LARGEST)
            self.contrastive_norm.copy_(torch.where(norm.isfinite(), norm, self.contrastive_norm))  # fp16 may overflow
            super().before_update(now)

    def after_update(self, now: Progress) -> None:
        if now.phase == _CONTRASTIVE:
            super().after_update(now)
