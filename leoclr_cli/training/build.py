"""From settings to the objects of a run. The one place that knows which setting goes into which constructor."""

from __future__ import annotations

from typing import cast

import torch

from leoclr.backends.methods.moco import MoCo
from leoclr.backends.methods.simclr import SimCLR
from leoclr.backends.networks.backbones import Backbone, build_backbone
from leoclr.backends.networks.batchnorm import sync_batch_norm
from leoclr.backends.networks.encoder import Encoder
from leoclr.backends.networks.memory_format import keep_short_rows_contiguous
from leoclr.backends.queue import KeyQueue
from leoclr.cli.config.settings import EncoderSettings, Settings
from leoclr.cli.run.devices import check_backbone
from leoclr.datasets.errors import SettingsError


def backbone(settings: EncoderSettings) -> Backbone:
    """The backbone with weights from torch's global generator; SettingsError when there is no such model."""
    try:
        return build_backbone(settings.backbone, settings.stem, settings.width)
    except ValueError as error:
        raise SettingsError(f"encoder: {error}") from None


def backend(settings: Settings, device: torch.device) -> MoCo | SimCLR:
    """The contrastive method with weights from `train.seed`, on the device, the same on every rank.

    Raises:
        RunError: The backbone cannot be trained on such images on this device.
        SettingsError: There is no such backbone.
    """
    torch.manual_seed(settings.train.seed)
    network = backbone(settings.encoder)
    check_backbone(network, settings.data.image_size, settings.train.precision, device)
    head = settings.encoder
    encoder = Encoder(network, head.projector_hidden, head.projector_dim, head.projector_layers)
    method: MoCo | SimCLR
    if settings.backend == "moco":
        moco = settings.moco
        method = MoCo(
            encoder,
            KeyQueue(moco.queue, encoder.dim, settings.train.seed),
            momentum=moco.momentum,
            temperature=moco.temperature,
            enqueue=moco.enqueue,
            reduction=moco.reduction,
            bn_splits=moco.bn_splits,
            seed=settings.train.seed,
        )
    else:
        simclr = settings.simclr
        if simclr.sync_batchnorm and device.type == "cuda":
            encoder = cast(Encoder, sync_batch_norm(encoder))
        method = SimCLR(encoder, simclr.temperature, simclr.reduction, simclr.stop_gradient)
    train = settings.train
    memory_format = torch.channels_last if train.channels_last else torch.contiguous_format
    method.to(device, memory_format=memory_format)  # type: ignore[call-overload]
    encoders = [part for part in method.children() if isinstance(part, Encoder)]
    if train.channels_last and train.precision == "bf16" and device.type == "cpu":
        for each in encoders:
            keep_short_rows_contiguous(each.backbone, settings.data.image_size)
    if train.compile:
        for each in encoders:
            each.compile()  # and not torch.compile, whose wrapper would rename the weights
    return method
