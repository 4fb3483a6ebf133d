"""`Method`, the interface between a training method and everything else.

A method is an `nn.Module` in its own file, together with its settings. It receives the views of a batch and their
positive pairs, and returns a loss. Methods are independent of how views are made, and views of methods. Entry points
`leoclr.methods` register all methods, also the built-in ones; see docs/extending.md.

The training step calls, in this order: `forward` (for each micro-batch) and backward; `before_update`; the optimizer;
`after_update`. State needed to resume must be a parameter or a buffer. Randomness depends on (seed, step) only.

On a GPU a step may be replayed as a CUDA graph, without running its Python. Values that a method computes on the host
from `now`, such as a shuffle, must be requested by `leoclr.backends.step_inputs.step_input`; a method that reads `now`
in any other way is not replayed.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from leoclr.backends.networks.backbones import Backbone
from leoclr.backends.networks.batchnorm import (
    can_separate_statistics,
    separate_statistics,
    split_batch_norm,
    sync_batch_norm,
)
from leoclr.backends.networks.encoder import Encoder
from leoclr.backends.settings import MethodSettings, Pairs

NetworkT = TypeVar("NetworkT", bound=nn.Module)


class Progress(NamedTuple):
    """Where the run is. Every schedule of a method is a function of it.

    Attributes:
        step: Number of the step, from 0.
        steps: Steps of the whole run.
        steps_per_epoch: For schedules in epochs.
        phase: Number of the phase within the step, for a method with several.
    """

    step: int
    steps: int
    steps_per_epoch: int
    phase: int = 0

    @property
    def epoch(self) -> float:
        """Epochs that are done, with the part of the present one."""
        return self.step / self.steps_per_epoch

    @property
    def share(self) -> float:
        """Share of the run that is done, in [0, 1)."""
        return self.step / self.steps


Schedule = Callable[[Progress], float]


@dataclass(frozen=True)
class Facts:
    """What a method may know of its run when it is built.

    Attributes:
        new_backbone: Makes a backbone with random weights, as the settings say.
        projector: The settings `encoder.projector_layers`, `_hidden` and `_dim`.
        pairs: Of the view policy.
        sizes: Side of each view of the policy in pixels, by view name.
        batch_size: Images in a step, over all processes.
        images: Images in the data set.
        image_size: Side of a view of full size, in pixels.
        ranks: Processes that train together.
        seed: Of the run.
        device_type: "cpu" or "cuda"; a method is built on the CPU and moved afterwards.
        policy: Settings of the view policy, for its wrapper.
    """

    new_backbone: Callable[[], Backbone]
    projector: tuple[int, int, int] = (2, 0, 128)
    pairs: Pairs = (("x1", "x2"),)
    sizes: Mapping[str, int] = field(default_factory=lambda: {"x1": 224, "x2": 224})
    batch_size: int = 256
    images: int = 0
    image_size: int = 224
    ranks: int = 1
    seed: int = 0
    device_type: str = "cpu"
    policy: Mapping[str, Any] = field(default_factory=dict)


class Output(NamedTuple):
    """What a method makes of a batch.

    Attributes:
        loss: A scalar with gradient: this rank's part, such that the mean of the parameters' gradients over the ranks
            is the gradient of the whole batch's loss.
        embeddings: Detached, `(n, dim)`, of any length, to watch for collapse; None where there are none.
        metrics: More scalars for `metrics.jsonl`, by name, detached.
        predictions: What was pulled, by anchor, for wrappers of a `PairMethod`.
        targets: What it was pulled to, by positive.
    """

    loss: Tensor
    embeddings: Tensor | None = None
    metrics: Mapping[str, Tensor] = {}
    predictions: Mapping[str, Tensor] = {}
    targets: Mapping[str, Tensor] = {}


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters with schedules of their own. The first group whose pattern is found in a parameter's name has it.

    Attributes:
        pattern: A regular expression, searched in names such as `predictor.0.weight`.
        lr: Learning rate over the run's own: None for the same, a number, or a schedule of factors.
        constant_lr: Whether the factor applies to the peak rate instead of the scheduled one (SimSiam's predictor).
        weight_decay: In place of the optimizer's: None for the same, or a schedule.
        frozen: When the parameters have no gradient at all.
    """

    pattern: str
    lr: Schedule | float | None = None
    constant_lr: bool = False
    weight_decay: Schedule | None = None
    frozen: Callable[[Progress], bool] | None = None

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"ParameterGroup({self.pattern!r}): this is no regular expression: {error}") from None


class Method(nn.Module):
    """Base of all methods. A subclass takes `(settings, facts)`; its settings are the class `Settings` of its file.

    Attributes:
        groups: Parameters with schedules of their own.
        phases: Times that a step goes through forward, backward and update; `now.phase` tells which.
        per_rank: Names of buffers that differ between ranks, such as a queue of each rank's own embeddings. A
            checkpoint holds them one after another along their first dimension, and a resume splits them.
        takes_samples: Whether `forward` has one more argument, `samples`: which images of the data set the batch
            holds, for methods that remember each. int64, `(n,)`, from 0 to `facts.images - 1`.
        takes_boxes: Whether it has `boxes`: where in its image each view lies, by view name. float32, `(n, 4)`: left,
            top, right, bottom, in shares of the upright image's width and height; left and right are exchanged where
            the view is mirrored.
        takes_labels: Whether it has `labels`: class numbers, int64, `(n,)`, -1 for an image without one.
    """

    groups: tuple[ParameterGroup, ...] = ()
    phases: ClassVar[int] = 1
    per_rank: tuple[str, ...] = ()
    takes_samples: ClassVar[bool] = False
    takes_boxes: ClassVar[bool] = False
    takes_labels: ClassVar[bool] = False

    def forward(self, views: Mapping[str, Tensor], pairs: Pairs, now: Progress) -> Output:
        """The loss of this rank's part of a batch.

        Args:
            views: Normalised images by view name, `(n, 3, size, size)`; the size may differ between views, and row i
                is image i in all of them.
            pairs: (anchor, positive) view names.
        """
        raise NotImplementedError

    def before_update(self, now: Progress) -> None:
        """Called after the backward pass, before the optimizer: gradients may be changed or dropped."""

    def after_update(self, now: Progress) -> None:
        """Called after the optimizer: momentum encoders, queues and centres move."""

    def backbones(self) -> dict[str, Backbone]:
        """The backbones by the name of their place, such as `encoder.backbone`; the first is scored and exported."""
        raise NotImplementedError


class PairMethod(Method):
    """A method whose loss is made of pairs: predictions of anchors, each pulled to targets.

    Wrappers (`backends/wrappers/`) act on such methods: they pull predictions of views of their own, such as mixtures,
    by the method's own loss. Its settings say `offers = ("pairs",)`.

    Attributes:
        encoder: Trained by gradient; its backbone is the only one unless `backbones` says otherwise.
    """

    encoder: Encoder

    def backbones(self) -> dict[str, Backbone]:
        return {"encoder.backbone": self.encoder.backbone}

    def predict(self, embeddings: Tensor) -> Tensor:
        """The prediction that an anchor's embedding makes: the embedding itself, or what a predictor makes of it."""
        return embeddings

    def pull(self, predictions: Tensor, targets: Sequence[Tensor], negatives: Tensor | None = None) -> Tensor:
        """The loss of predictions `(n, dim)` against each of the targets `(n, dim)`, means over the batch: `(p,)`.

        Args:
            negatives: One more negative for each row, `(n, dim)`; methods without negatives ignore it.
        """
        raise NotImplementedError

    def reduce(self, losses: Tensor) -> Tensor:
        """One loss from those of all pairs, `(p,)`."""
        return losses.sum()


def momentum_copy(network: NetworkT) -> NetworkT:
    """A copy that `momentum_update` moves: without gradients, and nothing in it is dropped at random."""
    copied = copy.deepcopy(network).requires_grad_(False)
    for part in copied.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        elif hasattr(part, "drop_prob"):  # timm's DropPath
            setattr(part, "drop_prob", 0.0)  # noqa: B010
    return copied


@torch.no_grad()
def momentum_update(moved: nn.Module, towards: nn.Module, momentum: float | Tensor) -> None:
    """`moved <- momentum * moved + (1 - momentum) * towards`, for parameters; buffers stay each network's own.

    Args:
        momentum: A number, or a scalar on the device, as `step_inputs.step_number` returns.

    Raises:
        ValueError: Parameters that are moved have gradients too.
    """
    own, others = list[Tensor](moved.parameters()), list[Tensor](towards.parameters())
    if any(parameter.requires_grad for parameter in own):
        raise ValueError("momentum_update moves what is trained by gradient, too: give the copy requires_grad_(False)")
    if isinstance(momentum, Tensor):
        steps = torch._foreach_sub(others, own)
        torch._foreach_mul_(steps, (1 - momentum).to(own[0].dtype))
        torch._foreach_add_(own, steps)
    else:
        torch._foreach_lerp_(own, others, 1 - momentum)


def encode_views(encoder: Any, views: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The embeddings of each view: in one pass where `in_one_pass` says so, each view with statistics of its own."""
    if not in_one_pass(encoder, views):
        return {name: encoder(images) for name, images in views.items()}
    with separate_statistics(encoder, len(views)):
        embeddings = encoder(torch.cat(list(views.values())))
    return dict(zip(views, embeddings.chunk(len(views)), strict=True))


def in_one_pass(encoder: Any, views: Mapping[str, Tensor]) -> bool:
    """Whether views go through the encoder together: those of one size, where it has no batch statistics.

    On a GPU also where it has, as groups of BatchNorm. On a CPU that saves nothing, and sums differ in their last bits.
    """
    if len({images.shape[1:] for images in views.values()}) > 1:
        return False
    if not encoder.batch_statistics:
        return True
    on_gpu = all(images.device.type == "cuda" for images in views.values())
    return on_gpu and encoder.training and can_separate_statistics(encoder)


def share_batch_norm(method: nn.Module, settings: MethodSettings, facts: Facts) -> None:
    """Let the BatchNorm layers of a method, or of a part of it, take their statistics over all processes, where the
    settings have `sync_batchnorm` and it is on."""
    if getattr(settings, "sync_batchnorm", False) and facts.device_type == "cuda" and facts.ranks > 1:
        sync_batch_norm(method)  # in place: only layers are replaced
    else:
        split_batch_norm(method, 1)  # for `in_one_pass`


def reduce_pairs(losses: Tensor, reduction: Literal["sum", "mean"]) -> Tensor:
    """One loss from those of all pairs: their sum (LeOCLR, equation 3) or mean."""
    return losses.sum() if reduction == "sum" else losses.mean()
