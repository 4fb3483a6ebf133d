"""DINO: a student matches the output distribution of a momentum teacher for another view.

arXiv 2104.14294. `-sum_k softmax((teacher - centre) / teacher_temperature)_k log softmax(student / temperature)_k`,
averaged over the pairs of an image. Centring (against one output) and a low teacher temperature (against a uniform
output) keep it from collapsing. The centre moves after its use, the teacher after the optimizer's step. With the
`leoclr` views the student sees X and the teacher X1 and X2, which are never compared. BatchNorm sees each view by
itself; the authors join crops of one size. Health, as shares of log(outputs): `centre_entropy`, of the teacher's mean
output, 0 if all images share one output; `teacher_entropy`, of the output of each image, 1 if all are uniform.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from leoclr.backends.distributed import gather
from leoclr.backends.losses import cross_entropy
from leoclr.backends.method import (
    Facts,
    Method,
    Output,
    ParameterGroup,
    Progress,
    momentum_copy,
    momentum_update,
    share_batch_norm,
)
from leoclr.backends.networks.backbones import Backbone
from leoclr.backends.networks.encoder import Encoder
from leoclr.backends.networks.heads import mlp
from leoclr.backends.schedules import cosine, linear
from leoclr.backends.settings import (
    BatchNormSettings,
    Fraction,
    NonNegative,
    Pairs,
    Positive,
    PositiveCount,
    RunFacts,
    anchors_of,
    positives_of,
)


class Settings(BatchNormSettings):
    """DINO: momentum teacher and centring (`--backend dino`)."""

    default_views: ClassVar[str] = "multicrop"
    small: ClassVar[Mapping[str, Any]] = {
        "hidden": 32,
        "dim": 16,
        "outputs": 12,
        "momentum": 0.9,
        "frozen_epochs": 0.5,
    }

    layers: PositiveCount = Field(default=3, description="Linear layers of the head before its output layer.")
    hidden: PositiveCount = Field(default=2048, description="Width of the head's hidden layers.")
    dim: PositiveCount = Field(default=256, description="Dimension before the output layer.")
    outputs: PositiveCount = Field(default=65536, description="Outputs of the head.")
    head_norm: bool = Field(default=False, description="BatchNorm in the head.")
    momentum: Fraction = Field(default=0.996, description="Initial EMA decay of the teacher; 0.9995 at batch 256.")
    final_momentum: Fraction = Field(
        default=1.0, description="Final EMA decay of the teacher, reached by a cosine schedule."
    )
    temperature: Positive = Field(default=0.1, description="Temperature of the student.")
    teacher_temperature: Positive = Field(
        default=0.04, description="Final temperature of the teacher; unstable above 0.07."
    )
    first_teacher_temperature: Positive = Field(default=0.04, description="Initial temperature of the teacher.")
    teacher_temperature_epochs: NonNegative = Field(
        default=0.0, description="Epochs of linear warm-up of the teacher's temperature."
    )
    centre_momentum: Fraction = Field(default=0.9, description="EMA decay of the centre.")
    frozen_epochs: NonNegative = Field(default=1.0, description="Epochs for which the output layer is frozen.")
    clip: NonNegative = Field(default=3.0, description="Largest gradient norm of each parameter; 0: no limit.")

    def forward_passes(self, facts: RunFacts) -> float:
        return facts.passes(anchors_of(facts.pairs), positives_of(facts.pairs))


class DINO(Method):
    """The self-distillation backend.

    Attributes:
        encoder, outputs: The student.
        teacher, teacher_outputs: Its momentum copy.
        centre: What is taken off the teacher's outputs, `(outputs,)`.
    """

    centre: Tensor

    def __init__(self, settings: Settings, facts: Facts) -> None:
        super().__init__()
        self.settings = settings
        backbone = facts.new_backbone()
        widths = (backbone.feature_dim, *[settings.hidden] * (settings.layers - 1), settings.dim)
        head = mlp(widths, norm=settings.head_norm, activation=nn.GELU)
        for layer in head:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        self.encoder = Encoder(backbone, head)
        self.outputs = _Outputs(settings.dim, settings.outputs, bias=False)
        self.teacher = momentum_copy(self.encoder)
        self.teacher_outputs = momentum_copy(self.outputs)
        self.register_buffer("centre", torch.zeros(settings.outputs))
        self.groups = (ParameterGroup("^outputs", frozen=lambda now: now.epoch < settings.frozen_epochs),)
        self.momentum = cosine(settings.momentum, settings.final_momentum)
        self.teacher_temperature = linear(
            settings.first_teacher_temperature, settings.teacher_temperature, settings.teacher_temperature_epochs
        )
        self._waiting: list[Tensor] = []
        share_batch_norm(self, settings, facts)

    def forward(self, views: Mapping[str, Tensor], pairs: Pairs, now: Progress) -> Output:
        with torch.no_grad():
            logits = {
                name: self.teacher_outputs(self.encode(self.teacher, views[name])) for name in positives_of(pairs)
            }
            self._waiting.append(torch.stack([each.mean(dim=0) for each in logits.values()]).mean(dim=0))
            temperature = self.teacher_temperature(now)
            targets = {name: F.softmax((each - self.centre) / temperature, dim=1) for name, each in logits.items()}
        embeddings = {name: self.encode(self.encoder, views[name]) for name in anchors_of(pairs)}
        predictions = {
            name: F.log_softmax(self.outputs(each) / self.settings.temperature, dim=1)
            for name, each in embeddings.items()
        }
        losses = [cross_entropy(targets[positive], predictions[anchor]) for anchor, positive in pairs]
        return Output(torch.stack(losses).mean(), embeddings[pairs[0][0]].detach(), _health(list(targets.values())))

    def encode(self, encoder: Encoder, images: Tensor) -> Tensor:
        """The embeddings of a view, by the student or the teacher."""
        embeddings: Tensor = encoder(images)
        return embeddings

    @torch.no_grad()
    def before_update(self, now: Progress) -> None:
        """Clip the gradient of each parameter by itself, as the authors do."""
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        if self.settings.clip:
            factors = [(self.settings.clip / (n + 1e-6)).clamp_max(1.0) for n in torch._foreach_norm(gradients)]
            torch._foreach_mul_(gradients, factors)

    @torch.no_grad()
    def after_update(self, now: Progress) -> None:
        move_centre(self.centre, self._waiting, self.settings.centre_momentum)
        momentum = self.momentum(now)
        momentum_update(self.teacher, self.encoder, momentum)
        momentum_update(self.teacher_outputs, self.outputs, momentum)

    def backbones(self) -> dict[str, Backbone]:
        return {"encoder.backbone": self.encoder.backbone, "teacher.backbone": self.teacher.backbone}


@torch.no_grad()
def move_centre(centre: Tensor, waiting: list[Tensor], momentum: float) -> None:
    """Move a centre towards the mean of the logits of a step, over all processes, whose means wait in a list."""
    mean = gather(torch.stack(waiting).mean(dim=0, keepdim=True)).mean(dim=0)
    waiting.clear()
    centre.lerp_(mean.to(centre.dtype), 1 - momentum)


class _Outputs(nn.Linear):
    """Cosines with rows of length one: weight normalisation whose gain is fixed at 1. float32 also under autocast:
    over a temperature of 0.04 an error of bf16, 0.004, would be one of 10 %."""

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return F.linear(input, F.normalize(self.weight, dim=1))


@torch.no_grad()
def _health(targets: list[Tensor]) -> dict[str, Tensor]:
    outputs = targets[0].shape[1]

    def entropy(shares: Tensor) -> Tensor:
        each: Tensor = torch.special.entr(shares).sum(dim=-1)
        return each.mean() / math.log(max(2, outputs))

    together = torch.cat(targets)
    return {"centre_entropy": entropy(together.mean(dim=0)), "teacher_entropy": entropy(together)}
